"""Running the command line as a user does, and small runs to run it on: what tests of whole commands share."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from igrpo_cli.cli.app import main

TRACKIO_DIRECTORY = tempfile.TemporaryDirectory()
# trackio reads its folder when it is imported, by whomever: TRL does so, too.
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TRACKIO_DIR=TRACKIO_DIRECTORY.name)
os.environ.pop("SLURM_ARRAY_TASK_ID", None)
# One thread, before torch is imported: sums are then the same however many cores the machine has.
ONE_THREAD = dict(os.environ)

SMALL = (
    "run.num_iterations=2",
    "data.problems_per_iteration=8",
    "draft.num_generations=3",
    "refine.num_generations=3",
    "engine.groups_per_block=2",
    "reward.num_workers=1",
)
"""The preset `arithmetic`, small enough for a test: 4 blocks of 2 groups a stage."""


@dataclass(frozen=True)
class Result:
    """What a command left behind on its streams."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self):
        """The JSON object on stdout."""
        return json.loads(self.stdout)


def igrpo(*arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Result:
    """Run `igrpo` in this process, which saves the seconds that importing torch takes, with streams of its own."""
    stdout, stderr = io.StringIO(), io.StringIO()
    before = Path.cwd()
    try:
        os.chdir(cwd or before)
        with (
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
            pytest.MonkeyPatch.context() as patch,
        ):
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as exit_:
                main([str(argument) for argument in arguments])
    finally:
        os.chdir(before)
    code = exit_.value.code
    assert isinstance(code, int)
    return Result(code, stdout.getvalue(), stderr.getvalue())


def igrpo_process(*arguments: object, cwd: Path | None = None) -> Result:
    """Run `igrpo` as a user does, in a process of its own."""
    command = [sys.executable, "-m", "igrpo_cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=ONE_THREAD, capture_output=True, text=True, timeout=300)
    return Result(done.returncode, done.stdout, done.stderr)


def sets(*overrides: str) -> list[str]:
    """`--set` for each override."""
    return [piece for override in overrides for piece in ("--set", override)]


def make_run(path: Path, *overrides: str) -> Path:
    """A small run on arithmetic, with nothing done yet."""
    result = igrpo("init", path, "--preset", "arithmetic", *sets(*SMALL, *overrides))
    assert result.code == 0, result.stderr
    return path


def run_to_end(path: Path) -> Path:
    """All iterations of a run."""
    result = igrpo("run", path)
    assert result.code == 0, result.stderr
    return path


def files_below(path: Path, suffixes: Sequence[str] = (".parquet", ".safetensors")) -> dict[str, bytes]:
    """The bytes of all data files of a run; manifests hold times and are left out."""
    found = sorted(file for file in path.rglob("*") if file.suffix in suffixes)
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in found}
