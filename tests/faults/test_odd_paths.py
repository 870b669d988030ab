"""Paths that scripts trip over, and directories that cannot be written, read or found: they work, or are named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from forked import Fork

from command_line import files_below, igrpo, igrpo_process, make_run, sets
from igrpo_cli.errors import EXIT_FAILED, EXIT_MISSING, EXIT_USAGE

ROW = '{"problem": "1 + 1 = ?", "answer": "2"}\n'
EVERYTHING = "-rf  a\nb \u202e *[0-9]?{a,b}'\"$(touch x)`touch x`;&|"
ODD = {"a flag": "-rf", "255 bytes of everything": EVERYTHING + "x" * (255 - len(EVERYTHING.encode()))}
NOT_UTF8 = os.fsdecode(b"a\xff\xfeb")


@pytest.mark.parametrize("name", ODD)
def test_a_run_in_a_directory_of_an_odd_name_goes_through_all_stages(tmp_path, name):
    """By its name from the directory above, as a user types it; `--` ends the flags."""
    (tmp_path / "above").mkdir()
    settings = ("data.problems_per_iteration=2", "run.num_iterations=1", "reward.num_workers=1")
    place = {"cwd": tmp_path / "above"}
    assert igrpo("init", "--preset", "arithmetic", *sets(*settings), "--", ODD[name], **place).code == 0
    for command in ("run", "verify", "status", "show", "report"):
        result = igrpo(command, "--", ODD[name], **place)
        assert result.code == 0, result.stderr
        assert "\u202e" not in result.stdout + result.stderr
    assert os.listdir(tmp_path / "above") == [ODD[name]]


def test_problems_in_a_file_of_an_odd_name(tmp_path):
    name = f"{ODD['255 bytes of everything'][:200]}.jsonl"
    (tmp_path / name).write_text(ROW)
    made = igrpo("init", "run", "--preset", "arithmetic", *sets(f"data.train={json.dumps(name)}"), cwd=tmp_path)
    assert made.code == 0, made.stderr


def test_a_name_that_is_no_text_is_refused_in_words(tmp_path):
    (tmp_path / NOT_UTF8).mkdir()
    for arguments in (["init", NOT_UTF8], ["status", NOT_UTF8], ["init", "run", "--set", f"data.train={NOT_UTF8}"]):
        result = igrpo_process(*arguments, cwd=tmp_path)
        assert (result.code, result.stdout) == (EXIT_USAGE, "")
        assert result.stderr.startswith("error: ")
        assert "a\\udcff\\udcfeb is not UTF-8" in result.stderr
    assert os.listdir(os.fsencode(tmp_path)) == [b"a\xff\xfeb"]


def test_a_link_that_leads_to_itself_is_named(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for arguments in (["status", tmp_path / "loop"], ["verify", tmp_path / "loop"], ["draft", tmp_path / "loop"]):
        result = igrpo(*arguments)
        assert result.code in (EXIT_FAILED, EXIT_MISSING), result
        assert "loop" in result.stderr
    result = igrpo("init", tmp_path / "loop", "--preset", "arithmetic")
    assert result.code == EXIT_FAILED
    assert "loop" in result.stderr
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "around").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "train.jsonl").write_text(ROW)
    made = igrpo("init", tmp_path / "run", "--preset", "arithmetic", "--set", f"data.train={tmp_path / 'set'}")
    assert made.code == 0, made.stderr


def test_a_link_in_place_of_a_shard_is_not_followed_around(finished_run, tmp_path):
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (data,) = (run / "iteration_0001" / "draft").glob("*.parquet")
    data.unlink()
    data.symlink_to(data.name)
    result = igrpo("verify", run)
    assert result.code == 1
    assert data.name in result.stderr + result.stdout
    assert igrpo("status", run).code == 0
    again = igrpo("draft", run, "--iteration", 1)
    assert again.code == EXIT_FAILED
    assert f"{data} is a link that leads nowhere" in again.stderr


def test_a_run_that_vanishes_is_named(finished_run, tmp_path):
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    shutil.rmtree(run / "policies")
    result = igrpo("draft", run, "--iteration", 1, "--overwrite")
    assert result.code == EXIT_MISSING
    assert "policy 1 does not exist" in result.stderr
    shutil.rmtree(run)
    for command in ("draft", "status", "verify", "report"):
        result = igrpo(command, run)
        assert result.code == EXIT_MISSING
        assert str(run) in result.stderr


def test_a_stage_whose_directory_is_a_link_that_leads_nowhere_is_named(finished_run, tmp_path):
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    select = run / "iteration_0001" / "select"
    shutil.rmtree(select)
    select.symlink_to("select")
    result = igrpo("select", run, "--iteration", 1)
    assert result.code == EXIT_FAILED
    assert f"{select} is a link that leads nowhere" in result.stderr
    assert "remove the link" in result.stderr
    verified = igrpo("verify", run)
    assert verified.code == EXIT_FAILED
    assert f"{select}: is a link that leads nowhere" in verified.stdout


@pytest.mark.parametrize("operation", [1, 2, 5])
@pytest.mark.parametrize("command", ["select", "draft"])
def test_a_run_that_vanishes_while_it_is_worked_on_is_named_and_not_made_anew(
    finished_run, tmp_path, command, operation
):
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    process = Fork(command, run, "--iteration", 1, "--overwrite", fault=f"stop@{operation}", below=run)
    assert process.is_stopped
    shutil.rmtree(run)
    process.send(signal.SIGCONT)
    assert process.wait() in (EXIT_FAILED, EXIT_MISSING), process.stderr
    assert str(run) in process.stderr
    assert "Traceback" not in process.stderr
    assert not run.exists()


UNREADABLE = {
    "iteration_0001/draft/shard-00000-of-00001.parquet": ["select", "--iteration", "1", "--overwrite"],
    "policies/0001/model.safetensors": ["draft", "--iteration", "1", "--overwrite"],
    "problems.parquet": ["draft", "--iteration", "1", "--overwrite"],
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_may_not_be_read_is_named(finished_run, tmp_path, without_privileges, name):
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (run / name).chmod(0)
    for command, *flags in (UNREADABLE[name], ["verify"]):
        arguments = [sys.executable, "-m", "igrpo_cli", command, str(run), *flags]
        done = subprocess.run([*without_privileges, *arguments], capture_output=True, text=True)
        assert "Traceback" not in done.stderr
        assert done.returncode in (EXIT_FAILED, EXIT_MISSING), done
        assert str(run / name) in done.stderr + done.stdout


@pytest.fixture
def without_privileges():
    """What to put before a command so that permissions hold for it: root reads everything."""
    if os.geteuid() != 0:
        return []
    prefix = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]
    if shutil.which("setpriv") is None or subprocess.run([*prefix, "true"]).returncode:
        pytest.skip("root reads everything, and can give up no privileges here")
    return prefix


@pytest.fixture
def read_only(finished_run, tmp_path):
    """A run of which nothing can be changed; root, who ignores permissions, needs a mount of its own for that."""
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    shutil.rmtree(run / "iteration_0001" / "update")
    shutil.rmtree(run / "policies" / "0002")
    if os.geteuid() != 0:
        subprocess.run(["chmod", "-R", "a-w", str(run)], check=True)
        yield run
        subprocess.run(["chmod", "-R", "u+w", str(run)], check=True)
        return
    bind = ["mount", "--bind", "-o", "ro", str(run), str(run)]
    if shutil.which("mount") is None or subprocess.run(bind, capture_output=True).returncode:
        pytest.skip("root ignores permissions, and may mount nothing here")
    subprocess.run(["mount", "-o", "remount,ro,bind", str(run)], check=True, capture_output=True)
    yield run
    subprocess.run(["umount", str(run)], check=True)


def test_a_read_only_run_can_be_looked_at_and_not_worked_on(read_only):
    before = files_below(read_only)
    for command in ("status", "verify", "show"):
        result = igrpo(command, read_only)
        assert result.code == 0, result.stderr
    for arguments in (["update"], ["draft", "--iteration", "1", "--overwrite"], ["report"]):
        result = igrpo(arguments[0], read_only, *arguments[1:])
        assert result.code == EXIT_FAILED, result.stdout
        assert str(read_only) in result.stderr
        assert result.stderr.count("error: ") == 1
    assert files_below(read_only) == before


def test_a_directory_that_may_not_be_read_is_named(tmp_path, without_privileges):
    run = make_run(tmp_path / "run", "data.problems_per_iteration=2")
    run.chmod(0)
    command = [*without_privileges, sys.executable, "-m", "igrpo_cli", "status", str(run)]
    done = subprocess.run(command, capture_output=True, text=True)
    run.chmod(0o700)
    assert "Traceback" not in done.stderr
    assert done.returncode in (EXIT_FAILED, EXIT_USAGE), done
    assert str(run) in done.stderr
    assert igrpo_process("status", run).code == 0
