"""Commands that fail, are killed or are stopped, and what must hold of the run afterwards."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from forked import FEW_OPERATIONS, REPLACING, Fork, WarmRun, everything_below, timed

from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.verify import verify_run

SECONDS_TO_STOP = 10.0
SIGNALS = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}


MUST_SAY = frozenset({"open", "os.link", "os.rename", "fsync"})
"""Operations without which something is not on disk. Not `mkdir`: some are of directories that are there already, and
without the others the next operation fails."""


class LostError(AssertionError):
    """A promise that was not kept."""


def require(condition: object, what: str) -> None:
    if not condition:
        raise LostError(what)


def every_operation(warm: WarmRun, name: str, kind: str, first: int = 1) -> Iterator[str | None]:
    """`kind` at the n-th file operation, n = `first`, … until none is left; yields None, or what was lost."""
    n = first
    while True:
        run = warm.reset(name)
        process = Fork(*warm.command(name), fault=f"{kind}@{n}", below=run)
        code = process.wait()
        if not process.reached:
            require(code == 0, f"{name} without a fault exits {code}: {process.stderr}")
            return
        where = f"{name}, {kind}@{n} ({process.reached})"
        yield lost(lambda p=process, c=code: _after_fault(warm, name, kind, c, p), where)
        n += 1


def _after_fault(warm: WarmRun, name: str, kind: str, code: int, process: Fork) -> None:
    if kind == "kill":
        require(code == -signal.SIGKILL, f"exit {code}")
    elif code != 0 or process.reached in MUST_SAY:
        require_said(warm, code, process.stderr)
    goes_on(warm, name)


def require_said(warm: WarmRun, code: int, stderr: str) -> None:
    """A documented exit code, and an error that names a file of the run."""
    require(code == 1, f"exit {code}: {stderr}")
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    require(len(errors) == 1 and "Traceback" not in stderr, f"stderr is {stderr!r}")
    require(f"{warm.work}/" in errors[0], f"no file is named: {errors[0]}")


def goes_on(warm: WarmRun, name: str) -> None:
    """Nothing partial is there, `verify` has nothing to say, and the same command finishes with the same bytes."""
    whole_or_not_there(warm, name)
    again = Fork(*warm.command(name))
    code = again.wait()
    require(code == 0, f"run again, it exits {code}: {again.stderr}")
    same_as_undisturbed(warm, name)


def whole_or_not_there(warm: WarmRun, name: str) -> None:
    expected, before = warm.result(name), everything_below(warm.before(name)) if name.endswith(REPLACING) else {}
    for relative, content in everything_below(warm.work).items():
        # Until the second rename of an update its policy lies in it.
        place = relative.replace("iteration_0000/update/policy/", "policies/0001/")
        require(place in expected, f"{relative} is no file of an undisturbed run")
        require(content in (expected[place], before.get(place)), f"{relative} is partial")
    # What is replaced is missed by what was made from it, until it is there again.
    if not name.endswith(REPLACING) and (name != "init" or RunDirectory(warm.work).run_toml.exists()):
        require_sound(warm)


def same_as_undisturbed(warm: WarmRun, name: str) -> None:
    expected, found = warm.result(name), everything_below(warm.work)
    differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    require(not differing, f"other files than undisturbed: {differing}")
    require_sound(warm)


def require_sound(warm: WarmRun) -> None:
    problems = verify_run(RunDirectory(warm.work)).problems
    require(not problems, f"verify: {[f'{each.path}: {each.what}' for each in problems]}")


def lost(check, where: str) -> str | None:
    """None when `check` passes, else where and why it did not."""
    try:
        check()
    except (LostError, TimeoutError, OSError, ValueError) as error:
        return f"{where}: {error}"
    return None


def random_kills(warm: WarmRun, tries: int, seed: int = 0) -> Iterator[str | None]:
    """`igrpo run` killed at random times and started again, over and over; each finished run is compared."""
    rng, command = random.Random(seed), ["run", warm.work, "-q"]
    warm.reset("draft")
    seconds = timed(lambda: require(Fork(*command).wait() == 0, "run fails"))
    warm.reset("draft")
    kills = 0
    while kills < tries:
        process, doomed = Fork(*command), rng.uniform(0, seconds)
        try:
            code = process.wait(doomed)
        except TimeoutError:
            kills += 1
            yield lost(lambda: require_sound(warm), f"kill {kills} after {doomed:.3f} s")
        else:
            yield from _finished(warm, code, f"after {kills} kills")
            warm.reset("draft")
    yield from _finished(warm, Fork(*command).wait(), "at the end")


def _finished(warm: WarmRun, code: int, where: str) -> Iterator[str]:
    """A run that got to its end before the killer came is no try of its own, but may have lost something."""
    what = lost(lambda: (require(code == 0, f"exit {code}"), same_as_undisturbed(warm, "update")), where)
    if what is not None:
        yield what


def signals(warm: WarmRun, name: str, times: int, seed: int = 0) -> Iterator[str | None]:
    """SIGTERM, SIGUSR1 and SIGINT before some file operation, `times` times in a row."""
    rng = random.Random(f"{name} {times} {seed}")
    for number, expected in SIGNALS.items():
        warm.reset(name)
        yield lost(lambda n=number, e=expected: _signalled(warm, name, n, e, times, rng), f"{name}, {number!r}")


def _signalled(warm: WarmRun, name: str, number: int, expected: int, times: int, rng: random.Random) -> None:
    # Stopped there first, so that the signal meets it at work however fast the machine is.
    process = Fork(*warm.command(name), fault=f"stop@{rng.randint(2, FEW_OPERATIONS.get(name, 12))}", below=warm.work)
    require(process.is_stopped, "ended before the signal came")
    for _ in range(times):
        process.send(number)
        process.send(signal.SIGCONT)
        time.sleep(rng.uniform(0, 0.05))
    code = process.wait(SECONDS_TO_STOP)
    require(code == expected, f"exit {code}, not {expected}: {process.stderr}")
    require("Traceback" not in process.stderr, process.stderr)
    goes_on(warm, name)


def late_twins(warm: WarmRun, name: str, first: int = 1) -> Iterator[str | None]:
    """A task stops before its n-th operation, its requeued twin does all of it, and the task comes back."""
    n = first
    while True:
        run = warm.reset(name)
        process = Fork(*warm.command(name), fault=f"stop@{n}", below=run)
        if not process.is_stopped:
            require(process.wait() == 0, process.stderr)
            return
        yield lost(lambda p=process: _comes_back(warm, name, p), f"{name}, stop@{n}")
        n += 1


def _comes_back(warm: WarmRun, name: str, process: Fork) -> None:
    twin = Fork(*warm.command(name))
    code = twin.wait()
    process.send(signal.SIGCONT)
    late = process.wait()
    require(code == 0, f"the twin exits {code}: {twin.stderr}")
    require(late == 0, f"the late task exits {late}: {process.stderr}")
    same_as_undisturbed(warm, name)


def file_size_limits(warm: WarmRun, name: str, limits: Iterable[int]) -> Iterator[str | None]:
    """No file of the process may be larger than a limit (RLIMIT_FSIZE), as under a quota; then the limit goes."""
    for limit in limits:
        warm.reset(name)
        yield lost(lambda n=limit: _limited(warm, name, n), f"{name}, files of {limit} bytes at most")


def _limited(warm: WarmRun, name: str, limit: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        process = Fork(*warm.command(name))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    code = process.wait()
    if code != 0:
        require_said(warm, code, process.stderr)
    goes_on(warm, name)


def full_disks(warm: WarmRun, kilobytes: Iterable[int]) -> Iterator[str | None]:
    """The run lies on a tmpfs of 1 MB that has so many kB left, all of it is run, and room is made.

    Nothing is tried where this process may not mount.
    """
    disk, work = warm.directory / "disk", warm.work
    disk.mkdir(exist_ok=True)
    for free in kilobytes:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
            return
        try:
            warm.work = disk / "run"
            shutil.copytree(warm.before("draft"), warm.work)
            yield lost(lambda n=free: _filled(warm, disk, n), f"a disk with {free} kB left")
        finally:
            warm.work = work
            subprocess.run(["umount", disk], check=True)


def _filled(warm: WarmRun, disk: Path, free: int) -> None:
    room = os.statvfs(disk)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(room.f_bavail * room.f_bsize - free * 1024))
    process = Fork("run", warm.work, "-q")
    code = process.wait()
    require_said(warm, code, process.stderr)
    require("No space left" in process.stderr, f"stderr is {process.stderr!r}")
    whole_or_not_there(warm, "update")
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    again = Fork("run", warm.work, "-q")
    code = again.wait()
    require(code == 0, f"with room, it exits {code}: {again.stderr}")
    same_as_undisturbed(warm, "update")
