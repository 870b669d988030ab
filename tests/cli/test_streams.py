"""Streams that are full, closed, or of an encoding that lacks the characters of the output."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from command_line import ONE_THREAD, make_run

NO_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(command: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of shell in which `igrpo` is the command."""
    line = f'igrpo() {{ "{sys.executable}" -m igrpo_cli "$@"; }}; {command}'
    return subprocess.run(["sh", "-c", line], env={**ONE_THREAD, **env}, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("streams") / "rün-解")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("stream", ["2>/dev/full", "2>&-", "2>/dev/full -v"])
def test_the_exit_code_stands_where_nobody_can_be_told_the_error(tmp_path, stream):
    assert shell(f"igrpo status {tmp_path} {stream}").returncode == 3


@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, NO_UTF8])
def test_what_an_encoding_lacks_is_printed_as_an_escape(run, env):
    done = shell(f"cd {run} && igrpo status", **env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u2013" in done.stdout


def test_json_in_another_encoding_is_json_still(run):
    done = shell(f"igrpo status {run} --json", PYTHONIOENCODING="latin-1")
    assert (done.returncode, json.loads(done.stdout)["run"]) == (0, str(run))


@pytest.mark.parametrize("arguments", ["status {} --json >&-", "sql 'SELECT 1' {} >&-", "status {} <&- >&- 2>&-"])
def test_a_closed_stream_is_as_good_as_dev_null(run, arguments):
    done = shell(f"igrpo {arguments.format(run)}")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_no_file_is_given_the_descriptor_of_a_closed_stdout():
    code = "from igrpo_cli.cli.app import prepare_streams as p; p(); exit(open('/dev/zero').fileno())"
    done = shell(f'"{sys.executable}" -c "{code}" <&- >&-')
    assert done.returncode > 2


WARN = (
    "from igrpo_cli.__main__ import _silence_libraries as f; f(); import warnings; warnings.warn('old', FutureWarning)"
)


@pytest.mark.parametrize(("option", "is_shown"), [([], False), (["-W", "default"], True)])
def test_a_warning_of_a_library_is_shown_only_on_request(option: list[str], is_shown: bool):
    env = {name: value for name, value in ONE_THREAD.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run([sys.executable, *option, "-c", WARN], env=env, capture_output=True, text=True, check=True)
    assert ("FutureWarning: old" in done.stderr) == is_shown
