"""The process that grades, one row at a time: started by `workers`, ended by the kernel when a row is too dear.

It shares nothing with the process that started it but one pipe, over which JSON goes: a chunk of rows in, each
[completion, reference, what the user's own functions may ask for], one reply for each row out.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igrpo_cli.errors import UsageError

if TYPE_CHECKING:
    from igrpo_cli.rewards.functions import RewardFunction

SECONDS_BETWEEN_LOOKS = 2.0
"""How often an idle worker looks whether its parent lives: a fork of it may keep the pipe open."""

_PR_SET_PDEATHSIG = 1

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that a scheduler or terminal sends to every process of a job: the parent decides what they mean."""


def main(arguments: list[str]) -> None:
    """Serves until the pipe closes.

    `arguments`: descriptor of the pipe, process id of the parent, limits (JSON), functions by name (JSON).
    """
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    descriptor, parent, limits, targets = int(arguments[0]), int(arguments[1]), *map(json.loads, arguments[2:])
    _end_with_parent(parent)
    with contextlib.suppress(EOFError, OSError), Connection(descriptor) as pipe:
        try:
            _limit_memory(limits["memory_mb"])
            _load()
            functions = _load_functions(targets)
        except UsageError as error:
            _send(pipe, {"failed": error.message, "hint": error.hint})
            return
        except Exception as error:
            _send(pipe, {"failed": f"{type(error).__name__}: {error}"})
            return
        _send(pipe, {"ready": True})
        spare_mb = limits["memory_mb"] / 16
        most_mb = _peak_memory_mb() + spare_mb
        for row in _rows(pipe, parent):
            reply = _grade(row, functions, limits, spare_mb)
            reply["leaving"] = _peak_memory_mb() > most_mb  # what sympy has taken does not come back
            _send(pipe, reply)
            if reply["leaving"]:
                return


def _end_with_parent(parent: int) -> None:
    """Let Linux end this process with the one that started it, even where a function of the user's waits for ever.

    Elsewhere a worker that has a row sees the end of its parent only when it is done with it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)


def _load() -> None:
    """Imports what is slow, and shuts the one place where sympy compiles text that a model may have written.

    `hypsum` turns the terms of an infinite series into Python source in which the names of unknown
    functions stand as they came, so `exit(3)` would be called. Series of numbers are left as they are.
    """
    import sympy.core.evalf as evalf
    from sympy.core.function import AppliedUndef

    from igrpo_cli.rewards.equivalence import are_equal

    if not are_equal(r"\frac{x + 1}{2}", r"\frac{1 + x}{2}"):  # builds the parser's tables
        raise RuntimeError("math_verify does not know that x + 1 = 1 + x")
    compile_term = evalf.lambdify

    def lambdify_numbers(variable: Any, term: Any) -> Any:
        if term.free_symbols - {variable} or term.has(AppliedUndef):
            raise NotImplementedError("a series with unknowns")
        return compile_term(variable, term)

    evalf.lambdify = lambdify_numbers


def _load_functions(targets: dict[str, str]) -> list[RewardFunction]:
    """The user's own functions, from modules that may stand in the current directory, behind all others."""
    if not targets:
        return []
    from igrpo_cli.rewards.functions import RewardFunction

    sys.path.append(str(Path.cwd()))
    return [RewardFunction(name, target) for name, target in targets.items()]


def _limit_memory(memory_mb: int) -> None:
    for kind, limit in ((resource.RLIMIT_AS, memory_mb << 20), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # a platform without it, or a lower hard limit
            resource.setrlimit(kind, (limit, limit))


def _rows(pipe: Connection, parent: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    while True:
        while not pipe.poll(SECONDS_BETWEEN_LOOKS):
            if os.getppid() != parent:
                return
        yield from json.loads(pipe.recv_bytes())


def _send(pipe: Connection, message: dict[str, Any]) -> None:
    pipe.send_bytes(json.dumps(message).encode("ascii"))


def _grade(
    row: tuple[str, str, dict[str, Any]], functions: Sequence[RewardFunction], limits: dict[str, Any], spare_mb: float
) -> dict[str, Any]:
    """The reply for one row, under a CPU limit that no Python code can catch or outlive.

    A function that fails makes the row `ungraded`; the others are asked all the same. sympy turns a MemoryError into
    "not equal", so a verdict against the completion that took more than `spare_mb` to reach is no verdict.
    """
    from igrpo_cli.rewards.grading import Judgement, judge

    before, start = _peak_memory_mb(), time.perf_counter()
    signal.setitimer(signal.ITIMER_PROF, limits["cpu_seconds"])
    completion, answer, context = row
    judgement = judge(completion, answer)
    if judgement.verdict == "wrong" and _peak_memory_mb() - before > spare_mb:
        judgement = Judgement("ungraded", judgement.extracted_answer, "memory limit")
    parts: dict[str, float] = {}
    if functions:
        facts = {"completion": completion, "answer": answer, **context}
        facts |= {"extracted_answer": judgement.extracted_answer, "verdict": judgement.verdict}
        parts, reason = _call(functions, facts)
        judgement = judgement if reason is None else replace(judgement, verdict="ungraded", reason=reason)
    signal.setitimer(signal.ITIMER_PROF, 0.0)
    return {**asdict(judgement), "parts": parts, "seconds": time.perf_counter() - start}


def _call(functions: Sequence[RewardFunction], facts: dict[str, Any]) -> tuple[dict[str, float], str | None]:
    """What the functions say of one row, by name, and why one of them did not."""
    from igrpo_cli.rewards.functions import FunctionFailedError

    parts: dict[str, float] = {}
    reason = None
    for function in functions:
        try:
            parts[function.name] = function(facts)
        except FunctionFailedError as error:
            reason = str(error)
    return parts, reason


def _peak_memory_mb() -> float:
    """Most memory that this program has held. Not `ru_maxrss` on Linux: that outlives exec, so that a worker would
    start with the peak of the process that started it, gigabytes of torch, and never be seen to grow."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / (1 << 10)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / (1 << 10)


if __name__ == "__main__":
    main(sys.argv[1:])
