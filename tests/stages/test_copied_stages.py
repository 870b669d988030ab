"""`igrpo stages`: the scripts of the package as files of the user."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

from command_line import igrpo
from igrpo_cli.problems.sources import packaged_folder

ROOT = Path(__file__).parents[2]


def test_the_scripts_are_copied_once_and_files_of_the_user_are_kept(tmp_path):
    target = tmp_path / "mine"
    first = igrpo("stages", "--copy-to", target)
    assert (first.code, f"{target}/submit.sh RUN --dry-run" in first.stdout) == (0, True)
    ours = {path.name: path.read_bytes() for path in (ROOT / "stages").iterdir()}
    assert {path.name: path.read_bytes() for path in target.iterdir()} == ours
    assert os.access(target / "submit.sh", os.X_OK)
    assert igrpo("stages", "--copy-to", target, "--json").json == {"directory": str(target), "copied": []}
    (target / "task.sh").write_text("mine\n")
    (target / "draft.sbatch").unlink()
    changed = igrpo("stages", "--copy-to", target)
    assert (changed.code, "has other files of these names: task.sh" in changed.stderr) == (4, True)
    assert (target / "task.sh").read_text() == "mine\n"
    assert not (target / "draft.sbatch").exists()


def test_the_wheel_has_every_folder_that_is_looked_up():
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    folders = {source.partition("/")[0] for source in included["force-include"]}
    assert folders == set(get_args(get_type_hints(packaged_folder)["name"]))
