"""`run.toml` is what `init` wrote, or the commands that work with it refuse; those that look say so and go on."""

from __future__ import annotations

import shutil
import tomllib

import pytest

from command_line import files_below, igrpo
from igrpo_cli.store.settings import checksummed_settings

CHANGED = "is not what `igrpo init` wrote"


@pytest.fixture
def run(finished_run, tmp_path):
    """A finished run of which another seed stands in `run.toml`, and the last update is to be made again."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(run / "iteration_0001/update")
    shutil.rmtree(run / "policies/0002")
    settings = (run / "run.toml").read_text()
    assert settings.count("\nseed = 0\n") == 1
    (run / "run.toml").write_text(settings.replace("\nseed = 0\n", "\nseed = 1\n"))
    return run


@pytest.mark.parametrize(
    "command",
    [
        ["draft"],
        ["select", "--dry-run"],
        ["refine", "--iteration", 0],
        ["update"],
        ["run"],
        ["eval", "--bench", "aime24"],
        ["grade", "--stage", "draft"],
        ["log", "--to", "tensorboard"],
        ["init", "--preset", "arithmetic"],
    ],
    ids=lambda command: command[0],
)
def test_nothing_is_made_with_settings_that_were_changed(run, command):
    before = files_below(run)
    result = igrpo(command[0], run, *command[1:])
    assert (result.code, result.stdout) == (4, "")
    assert f"error: {run}/run.toml {CHANGED}" in result.stderr
    assert (
        f"restore it; for other settings igrpo set RUN section.key=value, or igrpo init NEW_RUN --config {run}/run.toml"
        in (result.stderr)
    )
    assert files_below(run) == before


def test_verify_and_doctor_name_the_file(run):
    for command in ("verify", "doctor"):
        result = igrpo(command, run)
        assert result.code == 1
        assert CHANGED in result.stdout


@pytest.mark.parametrize(
    "command", [["status"], ["report"], ["show"], ["sql"], ["diff"]], ids=lambda command: command[0]
)
def test_what_only_looks_says_so_and_goes_on(run, command):
    arguments = {"sql": ["SELECT 1", run], "diff": [run, 0, 1]}.get(command[0], [run])
    result = igrpo(command[0], *arguments)
    assert result.code == 0, result.stderr
    assert CHANGED in result.stderr


def test_what_was_restored_goes_on(run, finished_run):
    shutil.copy(finished_run / "run.toml", run)
    assert igrpo("update", run).code == 0
    assert igrpo("verify", run).code == 0


@pytest.mark.parametrize("content", [b"", b"[run]\n", b"\x00\xff{", checksummed_settings(b"[run]\n")[:-1]])
def test_cut_or_foreign_settings(run, content):
    (run / "run.toml").write_bytes(content)
    assert igrpo("refine", run).code == 4
    assert igrpo("verify", run).code == 1


def test_another_run_takes_its_settings_edited_or_not(run, finished_run, tmp_path):
    for source, seed in ((finished_run, 0), (run, 1)):
        result = igrpo("init", tmp_path / f"of seed {seed}", "--config", source / "run.toml")
        assert result.code == 0, result.stderr
        written = (tmp_path / f"of seed {seed}" / "run.toml").read_bytes()
        assert tomllib.loads(written.decode())["run"]["seed"] == seed
        assert written == checksummed_settings(written.partition(b"\n")[2])
        assert igrpo("draft", tmp_path / f"of seed {seed}", "--dry-run").code == 0


def test_a_flipped_bit_of_each_byte_is_noticed_by_verify_and_by_draft(tmp_path):
    path = tmp_path / "run.toml"
    content = checksummed_settings(b"[run]\nseed = 0\n")
    path.write_bytes(content)
    assert CHANGED not in igrpo("verify", tmp_path).stdout
    assert igrpo("draft", tmp_path).code == 3  # there are no policy and no problems
    for byte in range(len(content)):
        flipped = bytearray(content)
        flipped[byte] ^= 1 << byte % 8
        path.write_bytes(flipped)
        assert CHANGED in igrpo("verify", tmp_path).stdout, byte
        assert igrpo("draft", tmp_path).code == 4, byte
