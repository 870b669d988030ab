"""The commands in the guides work, in order, in an empty directory."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import typer.main
from shell_blocks import Shell, blocks

from igrpo_cli.cli.app import app

ROOT = Path(__file__).parents[2]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KINDS = {"sh", "text", "python", "toml", "sql"}
NOT_RUN = 19
"""Number of blocks that need a GPU, a server, a cluster, a download or another program."""
MENTIONED = re.compile(r"(?:^|`|&& )igrpo ([a-z]+(?:-[a-z]+)*)((?: [^`|#&\n]*)?)", re.M)
"""Matches a command in a block or between backticks."""


def commands_of(path):
    return [block for block in blocks(path.read_text("utf-8")) if block.kind == "sh"]


@pytest.mark.slow
@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_the_commands_of_a_guide_work_in_their_order(path, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "work").mkdir()
    shell = Shell(tmp_path / "work", tmp_path / "bin")
    for block in blocks(path.read_text("utf-8")):
        if not block.note:
            for command, result in shell.run(block):
                assert result.code == 0, f"{command}\n{result.stdout}\n{result.stderr}"


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_every_block_has_a_language_and_a_reason_if_it_is_not_run(path):
    for block in blocks(path.read_text("utf-8")):
        assert block.kind in KINDS, block.text
        assert re.fullmatch(r"(no-run: .{10,})?", block.note), block.note
        assert block.kind == "sh" or not block.note
        assert block.kind == "sh" or not re.match(r"(igrpo|pip|python) ", block.text), "commands are marked sh"


def test_few_blocks_are_not_run():
    assert sum(bool(block.note) for path in GUIDES for block in commands_of(path)) == NOT_RUN


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_commands_and_flags_that_a_guide_mentions_exist(path):
    known = typer.main.get_command(app).commands
    for name, rest in MENTIONED.findall(path.read_text("utf-8").replace("\\\n", " ")):
        assert name in known, f"igrpo {name}{rest}"
        flags = {flag for parameter in known[name].params for flag in parameter.opts} | {"--help"}
        used = re.findall(r"(?<=\s)--?[a-z][a-z-]*", rest)
        assert set(used) <= flags, f"igrpo {name}{rest}"


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_extras_that_a_guide_installs_exist(path):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for asked in re.findall(r"pip install (?:-c \S+ )?'(?:igrpo-cli|\.)\[([\w,-]+)\]'", path.read_text("utf-8")):
        assert set(asked.split(",")) <= set(extras), asked


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_links_within_the_repository_have_a_target(path):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target
