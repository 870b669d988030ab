"""What hints say to type, from where the command was typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from igrpo_cli.store.hints import command_line
from igrpo_cli.store.layout import RunDirectory


@pytest.mark.parametrize(
    ("root", "command"),
    [
        (".", "igrpo status"),
        ("runs/first", "igrpo status runs/first"),
        ("/data/my runs", "igrpo status '/data/my runs'"),
        ("-rf", "igrpo status ./-rf"),
    ],
)
def test_the_run_is_named_as_it_was_typed_and_as_a_shell_takes_it(root, command):
    assert command_line(Path(root), "status") == command


def test_what_makes_anew_is_a_flag_that_the_command_has():
    here, run = RunDirectory(Path()), RunDirectory(Path("runs/first"))
    assert here.shard(0, "draft", 1, 2).overwrite_command == "igrpo draft --iteration 0 --shard 1 --overwrite"
    assert run.eval_problems("aime24").overwrite_command == "igrpo eval runs/first --bench aime24 --overwrite"
    assert run.problems().overwrite_command == "igrpo init runs/first --config runs/first/run.toml"
