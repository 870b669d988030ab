"""Signals to processes as a user starts them: the documented code, soon, in words, and nothing left behind."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line import ONE_THREAD, igrpo, make_run, sets

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

CODES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}
SECONDS_TO_STOP = 10.0
STAGES = ("draft", "select", "refine", "update")
COMMANDS = {
    **dict.fromkeys(STAGES, ("--iteration", "0")),
    "eval": ("--bench", "arithmetic", "--samples", "2"),
    "grade": ("--stage", "draft", "--iteration", "0", "--reward", "format"),
    "run": (),
}
SETTINGS = ("run.num_iterations=1", "engine.groups_per_block=1", "update.num_minibatches=4", "eval.limit=4")

MOMENTS = (0.0, 0.02, 0.1, 0.3)
"""Seconds after the process has its handlers: until then, some hundredths after its start, a signal kills Python."""
WAYS = ("once", "twice", "to the group")
EARLY = list(itertools.product(MOMENTS, CODES, WAYS))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What each command finds, by its name."""
    path = make_run(tmp_path_factory.mktemp("runs") / "run", *SETTINGS)
    found = {}
    for name in (*STAGES, "eval", "grade"):
        found[name] = shutil.copytree(path, path.parent / name)
        if name in STAGES:
            result = igrpo(name, path)
            assert result.code == 0, result.stderr
    found["eval"] = found["grade"]
    found["run"] = found["draft"]
    return found


class Process:
    """`igrpo` with an interpreter and a process group of its own."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "igrpo_cli", *map(str, arguments)]
        self._process = subprocess.Popen(
            command,
            env=ONE_THREAD,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def wait_until(self, condition):
        """False where the process has ended before `condition` held."""
        deadline = time.monotonic() + 120
        while not condition():
            if self._process.poll() is not None:
                return False
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.004)
        return True

    def has_handlers(self):
        caught = status_of(self.pid, "SigCgt")
        return all(int(caught, 16) >> (number - 1) & 1 for number in (signal.SIGTERM, signal.SIGUSR1))

    def send(self, number, way="once"):
        for is_later in range(2 if way == "twice" else 1):
            time.sleep(0.1 * is_later)
            if way == "to the group" and self._process.poll() is None:
                os.killpg(self.pid, number)
            else:
                self._process.send_signal(number)

    def read_error(self):
        return self._process.stderr.readline() + self._process.stderr.readline()

    def end(self):
        """The exit code and the rest of stderr."""
        try:
            _, stderr = self._process.communicate(timeout=SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise
        return self._process.returncode, stderr


def status_of(pid, name):
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return line.split()[1]


def processes_with(*words):
    """Ids of the living processes whose arguments hold all of `words`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has just ended
        if all(word in arguments for word in words):
            found.append(int(path.parent.name))
    return found


def workers_of(pid):
    return processes_with("igrpo_cli.rewards.grading_worker", str(pid))


def gone_soon(find):
    deadline = time.monotonic() + SECONDS_TO_STOP
    while find() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not find()


def require_clean_stop(process, number, where):
    code, stderr = process.end()
    assert code in (CODES[number], 0), f"{where}: {stderr}"
    if code:
        lines = [line.split(":")[0] for line in stderr.splitlines() if line]
        assert lines == ["error", "hint"], f"{where}: {stderr}"
    assert gone_soon(lambda: workers_of(process.pid)), where


@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_while_a_command_starts_and_while_it_works(runs, tmp_path, name):
    run = shutil.copytree(runs[name], tmp_path / "run")
    command = (name, run, *COMMANDS[name], "-q")
    turn = list(COMMANDS).index(name)
    for moment, number, way in EARLY[turn :: len(COMMANDS)]:
        process = Process(*command)
        assert process.wait_until(process.has_handlers)
        time.sleep(moment)
        process.send(number, way)
        require_clean_stop(process, number, f"{number!r} {way} after {moment} s")
    number, way = list(CODES)[turn % 3], WAYS[turn // 3]
    before = set(run.rglob("*"))
    process = Process(*command)
    process.wait_until(lambda: set(run.rglob("*")) - before)
    process.send(number, way)
    require_clean_stop(process, number, f"{number!r} {way} in the middle")
    again = igrpo(*command)
    assert again.code == 0, again.stderr
    assert igrpo("verify", run).code == 0


@pytest.mark.parametrize("number", CODES)
def test_once_the_code_is_decided_signals_change_nothing(runs, tmp_path, number):
    run = shutil.copytree(runs["draft"], tmp_path / "run")
    process = Process("draft", run, "-q")
    assert process.wait_until(lambda: list(run.rglob("block-*.parquet")))
    process.send(number)
    error = process.read_error()
    assert error.startswith("error: "), error
    assert "\nhint: run the same command again" in error
    for later in CODES:  # torch alone takes a second to be torn down
        process.send(later, "twice")
    assert process.end() == (CODES[number], "")


def test_slurms_notice_and_then_its_request_to_end_are_one(runs, tmp_path):
    run = shutil.copytree(runs["refine"], tmp_path / "run")
    process = Process("refine", run, "-q")
    assert process.wait_until(lambda: list(run.rglob("block-*.parquet")))
    process.send(signal.SIGUSR1)
    process.send(signal.SIGTERM, "to the group")
    require_clean_stop(process, signal.SIGUSR1, "SIGUSR1, then SIGTERM")


def test_ctrl_c_stays_ignored_where_a_shell_has_it_ignored(runs):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = Process("status", runs["draft"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.wait_until(process.has_handlers)
    process.send(signal.SIGINT)
    assert process.end() == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_grading_worker_and_no_tracker_is_left(runs, tmp_path, number):
    pytest.importorskip("tensorboard")
    run = shutil.copytree(runs["update"], tmp_path / "run")
    process = Process("run", run, "-q", *sets('log.report_to=["tensorboard"]'))

    def trackers():
        return processes_with("--follow", str(run.resolve()))

    assert process.wait_until(trackers)
    process.send(number, "to the group")
    code, stderr = process.end()
    assert code in (CODES.get(number, -number), 0)
    assert "Traceback" not in stderr
    assert gone_soon(lambda: trackers() + workers_of(process.pid))
