"""Commands in forks of a process that has imported and warmed up everything: a second each instead of ten."""

from __future__ import annotations

import functools
import gc
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from file_faults import install

from command_line import igrpo, sets

SETTINGS = (
    "run.num_iterations=1",
    "run.num_shards=2",
    "data.problems_per_iteration=3",
    "draft.num_generations=2",
    "refine.num_generations=2",
    "draft.max_completion_length=8",
    "refine.max_completion_length=8",
    "engine.groups_per_block=1",
    "reward.num_workers=1",
    "update.num_minibatches=2",
    "eval.limit=2",
    "eval.max_gen_toks=8",
)
"""The least that has two of everything: shards, blocks of a shard, rows of a group, steps of an update."""
VARYING = frozenset({"host", "started", "finished", "seconds", "gpu_seconds", "spent", "wall_seconds", "checksum"})
"""What two manifests of the same shard differ in."""
AGAIN = " --overwrite"
"""Ends the name of a command that is made to do its work once more."""
COMMANDS = {
    "init": ("--preset", "arithmetic", *sets(*SETTINGS)),
    "draft": ("--iteration", "0"),
    "select": ("--iteration", "0"),
    "refine": ("--iteration", "0"),
    "update": ("--iteration", "0"),
    "eval": ("--bench", "arithmetic", "--samples", "2"),
    "eval with more samples": ("--bench", "arithmetic", "--samples", "3"),
    "grade": ("--stage", "draft", "--iteration", "0", "--reward", "format"),
    "set": ("select.strategy=worst",),
    "extend": ("--iterations", "2"),
    "fork": ("RUN/fork", "--from", "1"),
}
"""Commands in their order by a name that begins with the command, with what follows the run; RUN is its path."""
FEW_OPERATIONS = {"set": 5, "extend": 5}
"""Commands with few file operations: one in the middle of them."""
REPLACING = (AGAIN, " more samples")
"""Ends of the names of commands that replace files. What was made from these is missed by `verify` meanwhile."""
OVERWRITING = ("draft", "select", "refine", "update", "eval", "grade")
"""Commands that can do their work once more."""


class Fork:
    """A command in a fork of this process."""

    def __init__(self, *arguments: object, fault: str | None = None, below: Path | None = None) -> None:
        """`fault` as `file_faults.install` takes it."""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115, read when the process has ended
        self._reached = tempfile.TemporaryFile()  # noqa: SIM115, read when the process has ended
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _child(arguments, self._stderr.fileno(), self._reached.fileno(), fault, below)

    @property
    def is_stopped(self) -> bool:
        """Waits until the process is stopped or has ended; True when it is stopped."""
        info = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return info is not None and info.si_code == os.CLD_STOPPED

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 120.0) -> int:
        """The exit code, negative for a signal. Raises TimeoutError for one that does not end, and kills it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        self.send(signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise TimeoutError(f"not ended after {seconds} s")

    @property
    def reached(self) -> str:
        """What the n-th operation was; empty where there were fewer."""
        self._reached.seek(0)
        return self._reached.read().decode()

    @property
    def stderr(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode()


def _child(arguments: tuple[object, ...], stderr: int, reached: int, fault: str | None, below: Path | None) -> None:
    from igrpo_cli.__main__ import main

    code = 99
    try:
        os.dup2(stderr, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        # In the background of a script Ctrl-C is ignored, and what is started there inherits that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if fault is not None:
            assert below is not None
            install(fault, below, lambda event: os.write(reached, event.encode()) and None)
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 98
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


class GradingHere:
    """A grading worker in this very process: starting one takes a second, and none of these faults is about grading."""

    def __init__(self, config, functions, wall_seconds) -> None:
        self._rows = deque()

    def wait_until_ready(self) -> None: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...

    def send(self, rows) -> None:
        self._rows.extend(rows)

    def receive(self):
        from igrpo_cli.rewards.grading import grade_answer

        completion, answer, _ = self._rows.popleft()
        return {**asdict(grade_answer(completion, answer)), "is_last": False}


class WarmRun:
    """An undisturbed run: what lies on disk before and after each command of it."""

    def __init__(self, directory: Path) -> None:
        """Does everything once in this process, so that its forks have it imported and compiled."""
        from igrpo_cli.rewards import grading_pool

        grading_pool.WorkerProcess = GradingHere  # type: ignore[misc, assignment]
        # transformers compiles 700 patterns each time that it loads a model; only 512 are remembered.
        re._MAXCACHE = 1 << 14  # type: ignore[attr-defined]
        self.directory = directory
        self.work = directory / "run"
        self.work.mkdir()
        for name in COMMANDS:
            shutil.copytree(self.work, self.before(name))
            result = igrpo(*self.command(name))
            assert result.code == 0, result.stderr
            shutil.copytree(self.work, self.after(name))
        gc.collect()
        gc.freeze()

    def command(self, name: str) -> list[object]:
        first = name.removesuffix(AGAIN)
        arguments = [each.replace("RUN", str(self.work)) for each in COMMANDS[first]]
        return [first.partition(" ")[0], self.work, *arguments, *(["--overwrite"] if first != name else []), "-q"]

    def reset(self, name: str, finished: bool = False) -> Path:
        """Put the run directory back to how it was before a command, or with `finished` after it."""
        shutil.rmtree(self.work)
        shutil.copytree(self.after(name) if finished else self.before(name), self.work, symlinks=True)
        return self.work

    @functools.cache  # noqa: B019
    def result(self, name: str) -> dict[str, object]:
        """All files after an undisturbed command."""
        return everything_below(self.after(name))

    def before(self, name: str) -> Path:
        """The run as a command found it; one that is done once more found its own result."""
        return self.after(name) if name.endswith(AGAIN) else self.directory / f"before-{name}"

    def after(self, name: str) -> Path:
        """The run as a command left it."""
        return self.directory / f"after-{name.removesuffix(AGAIN)}"


def everything_below(root: Path) -> dict[str, object]:
    """What all files of a run hold, by path, but temporaries and what hides behind a dot: parts, checkpoints."""
    paths = [path for path in root.rglob("*") if path.is_file()]
    names = {path: path.relative_to(root) for path in paths}
    return {names[path].as_posix(): content_of(path) for path in paths if not is_hidden(names[path])}


def is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def content_of(path: Path) -> object:
    """The bytes of a file; of a manifest what two undisturbed commands agree in."""
    content = path.read_bytes()
    try:
        value = json.loads(content) if path.suffix == ".json" else None
    except ValueError:
        value = None
    if isinstance(value, dict) and "manifest_version" in value:
        return {key: fact for key, fact in value.items() if key not in VARYING}
    return content


def timed(work: Callable[[], None]) -> float:
    """Wall seconds of `work`."""
    start = time.monotonic()
    work()
    return time.monotonic() - start
