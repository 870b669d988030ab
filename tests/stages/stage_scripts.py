"""Call the scripts of `stages/` as a user does."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from command_line import Result

STAGES = Path(__file__).parent.parent.parent / "stages"


@dataclass(frozen=True)
class Scripts:
    """The scripts of `stages/`, with `igrpo` in two environments."""

    folder: Path
    environment: dict[str, str]

    def call(self, script: str, *arguments: object, **environment: str) -> Result:
        """Run a script of `stages/`."""
        command = ["bash", str(STAGES / script), *map(str, arguments)]
        variables = {**self.environment, **environment}
        done = subprocess.run(command, env=variables, cwd=self.folder, capture_output=True, text=True, timeout=120)
        return Result(done.returncode, done.stdout, done.stderr)

    def dry_run(self, run: Path, *arguments: object) -> list[list[str]]:
        """Return the sbatch commands of submit.sh, split into words."""
        result = self.call("submit.sh", run, "--dry-run", *arguments)
        assert (result.code, result.stderr) == (0, "")
        return [shlex.split(line) for line in result.stdout.splitlines()]
