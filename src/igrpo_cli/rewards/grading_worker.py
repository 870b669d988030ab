"""The grading process: grades one row at a time, and is ended by the kernel when a row is too expensive.

It is started by `grading_pool` and shares only a pipe of JSON with it. A message to it is a list. It replies to
each element: a row [completion, reference, further arguments of the user's functions], or a group for a function,
{"function": name, "rows": such rows, each with its extracted answer and verdict}.
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
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igrpo_cli.errors import UsageError

if TYPE_CHECKING:
    from igrpo_cli.rewards.functions import RewardFunction

SECONDS_BETWEEN_CHECKS = 2.0
"""Interval at which an idle worker checks that its parent lives: a fork of the parent may keep the pipe open."""

_PR_SET_PDEATHSIG = 1

_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that a scheduler or terminal sends to every process of a job; the parent handles them."""


def main(arguments: list[str]) -> None:
    """Grade rows until the pipe closes.

    `arguments`: file descriptor of the pipe, process id of the parent, limits (JSON), functions by name (JSON).
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
        _send(pipe, {"functions": {each.name: asdict(each.signature) for each in functions}})
        per_row = [each for each in functions if not each.signature.is_batched]
        per_group = {each.name: each for each in functions if each.signature.is_batched}
        spare_mb = limits["memory_mb"] / 16
        max_mb = _peak_memory_mb() + spare_mb
        for row in _rows(pipe, parent):
            if isinstance(row, dict):
                reply = _call_with_group(per_group[row["function"]], row["rows"], limits)
            else:
                reply = _grade(row, per_row, limits, spare_mb)
            is_last = _peak_memory_mb() > max_mb  # sympy does not give memory back: let another worker go on
            _send(pipe, {**reply, "is_last": is_last})
            if is_last:
                return


def _end_with_parent(parent: int) -> None:
    """Let Linux end this process with the one that started it, even if a user's function waits forever.

    On other systems a busy worker notices the end of its parent only after its row.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)


def _load() -> None:
    """Import the slow libraries, and disable the one function of sympy that compiles text of a completion.

    `hypsum` turns the terms of an infinite series into Python source in which the names of unknown functions appear
    as they are written, so `exit(3)` would be called. Series of numbers still work.
    """
    import sympy.core.evalf as evalf
    from sympy.core.function import AppliedUndef

    from igrpo_cli.rewards.equivalence import are_equal

    if not are_equal(r"\frac{f(x) + 1}{2}", r"\frac{1 + f(x)}{2}"):  # builds the parser's tables
        raise RuntimeError("math_verify does not know that f(x) + 1 = 1 + f(x)")
    compile_term = evalf.lambdify

    def lambdify_numbers(variable: Any, term: Any) -> Any:
        if term.free_symbols - {variable} or term.has(AppliedUndef):
            raise NotImplementedError("a series with unknowns")
        return compile_term(variable, term)

    evalf.lambdify = lambdify_numbers


def _load_functions(targets: dict[str, str]) -> list[RewardFunction]:
    """Import the user's functions. The current directory is searched last, so that it hides no module."""
    if not targets:
        return []
    from igrpo_cli.rewards.functions import RewardFunction

    sys.path.append(str(Path.cwd()))
    return [RewardFunction(name, target) for name, target in targets.items()]


def _limit_memory(memory_mb: int) -> None:
    for kind, limit in ((resource.RLIMIT_AS, memory_mb << 20), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # a platform without it, or a lower hard limit
            resource.setrlimit(kind, (limit, limit))


def _rows(pipe: Connection, parent: int) -> Iterator[Any]:
    while True:
        while not pipe.poll(SECONDS_BETWEEN_CHECKS):
            if os.getppid() != parent:
                return
        yield from json.loads(pipe.recv_bytes())


def _send(pipe: Connection, message: dict[str, Any]) -> None:
    pipe.send_bytes(json.dumps(message).encode("ascii"))


def _grade(
    row: tuple[str, str, dict[str, Any]], functions: Sequence[RewardFunction], limits: dict[str, Any], spare_mb: float
) -> dict[str, Any]:
    """Return the fields of the row's `Grade`, computed under a CPU limit that no Python code can catch or outlive.

    A function that fails makes the row `ungraded`; the other functions are still called. sympy turns a MemoryError
    into "not equal", so a `wrong` that took more than `spare_mb` of memory becomes `ungraded`.
    """
    from igrpo_cli.rewards.grading import grade_answer

    before, start = _peak_memory_mb(), time.perf_counter()
    signal.setitimer(signal.ITIMER_PROF, limits["cpu_seconds"])
    completion, answer, context = row
    problem = context.get("problem") if limits.get("refuse_copied_answers") else None
    grade = grade_answer(completion, answer, problem=problem)
    verdict, reason = grade.verdict, grade.reason
    if verdict == "wrong" and _peak_memory_mb() - before > spare_mb:
        verdict, reason = "ungraded", "memory limit"
    parts: dict[str, float] = {}
    if functions:
        parts, failure = _call(functions, _arguments(completion, answer, context, grade.extracted_answer, verdict))
        if failure is not None:
            verdict, reason = "ungraded", failure
    signal.setitimer(signal.ITIMER_PROF, 0.0)
    fields = {"verdict": verdict, "extracted_answer": grade.extracted_answer, "reason": reason, "parts": parts}
    return {**fields, "seconds": time.perf_counter() - start}


def _arguments(
    completion: str, answer: str, context: dict[str, Any], extracted_answer: str | None, verdict: str
) -> dict[str, Any]:
    """Return everything that a function may be called with. A column of the data replaces nothing."""
    ours = {"completion": completion, "answer": answer, "extracted_answer": extracted_answer, "verdict": verdict}
    return {**context, **ours}


def _call(functions: Sequence[RewardFunction], arguments: dict[str, Any]) -> tuple[dict[str, float], str | None]:
    """Return the values of the functions by name, and the error of the last one that failed.

    A function that needs a column which the data of the row lacks is not called.
    """
    from igrpo_cli.rewards.functions import FunctionFailedError

    parts: dict[str, float] = {}
    reason = None
    for function in functions:
        if function.signature.missing(arguments):
            continue
        try:
            parts[function.name] = function(arguments)
        except FunctionFailedError as error:
            reason = str(error)
    return parts, reason


def _call_with_group(
    function: RewardFunction, graded: Sequence[Sequence[Any]], limits: dict[str, Any]
) -> dict[str, Any]:
    """Return the values for the rows of a group, and why a row has none. The group has the CPU time of its rows."""
    from igrpo_cli.rewards.functions import FunctionFailedError

    rows = [_arguments(*each) for each in graded]
    if function.signature.missing(rows[0]):
        return {"values": [None] * len(rows), "reasons": [None] * len(rows)}
    signal.setitimer(signal.ITIMER_PROF, limits["cpu_seconds"] * len(rows))
    try:
        found: Sequence[float | FunctionFailedError] = function.of_group(rows)
    except FunctionFailedError as error:
        found = [error] * len(rows)
    signal.setitimer(signal.ITIMER_PROF, 0.0)
    failed = [isinstance(each, FunctionFailedError) for each in found]
    return {
        "values": [None if is_failed else each for each, is_failed in zip(found, failed, strict=True)],
        "reasons": [str(each) if is_failed else None for each, is_failed in zip(found, failed, strict=True)],
    }


def _peak_memory_mb() -> float:
    """Return the maximum memory that this program has used, in MiB.

    On Linux not from `ru_maxrss`, which survives exec: a worker would start with the peak of its parent, gigabytes of
    torch, and would never be seen to grow.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / (1 << 10)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / (1 << 10)


if __name__ == "__main__":
    main(sys.argv[1:])
