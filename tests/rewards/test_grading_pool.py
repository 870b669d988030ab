"""The pool: same verdicts as in one process, whatever some rows do to their worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import pytest

from igrpo_cli.config.files import check_config
from igrpo_cli.config.rewards import RewardSection
from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.rewards import grading_pool
from igrpo_cli.rewards.grading import grade_answer
from igrpo_cli.rewards.grading_pool import ROWS_PER_CHUNK, GradingPool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and needs the kernel's limits")

ENDLESS = ("\\boxed{\\prod_{k=1}^{9999} \\sin k}", "7")
"""One multiplication of C code that no Python timeout can interrupt."""

PAIRS = [
    ("<think>a</think><answer>12</answer>", "12"),
    ("\\boxed{\\frac{1}{2}}", "0.5"),
    ("\\boxed{(x+1)^2}", "x^2+2x+1"),
    ("\\boxed{3}", "4"),
    ("who knows what it may be in the end", "4"),
    ("\\boxed{3\ud800\0}", "3"),
    ("3", ""),
]


@pytest.fixture(scope="module")
def pool():
    with GradingPool(RewardSection(num_workers=2)) as pool:
        yield pool


def children() -> set[int]:
    """Process ids of the living children of this process."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


def wait_until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def essence(grades):
    return [(grade.verdict, grade.extracted_answer) for grade in grades]


EXPECTED = essence([grade_answer(*pair) for pair in PAIRS])


def test_grades_come_in_order_and_as_in_one_process(pool):
    repeats = 3 * ROWS_PER_CHUNK
    assert essence(pool.grade(PAIRS * repeats)) == EXPECTED * repeats


def test_no_rows_are_no_work(pool):
    assert pool.grade([]) == []


def test_batches_may_be_submitted_while_others_wait_and_from_any_thread(pool):
    futures = [pool.submit(PAIRS) for _ in range(5)]
    results = []
    threads = [threading.Thread(target=lambda: results.append(pool.grade(PAIRS))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [essence(grades) for grades in results] == [EXPECTED] * 3
    assert [essence(future.result()) for future in futures] == [EXPECTED] * 5


def test_a_row_beyond_the_cpu_limit_is_ungraded_and_costs_no_other_row_its_grade():
    with GradingPool(RewardSection(num_workers=1, cpu_seconds=1.0)) as pool:
        grades = pool.grade([*PAIRS, ENDLESS, *PAIRS])
        assert essence(grades) == [*EXPECTED, ("ungraded", None), *EXPECTED]
        assert pool.ungraded_reasons == {"CPU time limit": 1, "empty reference": 2}
        assert all(grade.seconds > 0.0 for grade in grades)


def test_the_cpu_limit_is_counted_anew_for_each_row():
    nested = ["\\boxed{g(t) + " + f"\\sqrt{{{digit}+" * 8 + "2" + "}" * 9 for digit in range(3, 33)]
    with GradingPool(RewardSection(num_workers=1, cpu_seconds=2.5)) as pool:
        grades = pool.grade([(completion, "2") for completion in nested])
    assert {grade.verdict for grade in grades} == {"wrong"}
    assert sum(grade.seconds for grade in grades) > 2.5


def test_a_row_that_hangs_is_ended_by_the_clock():
    with GradingPool(RewardSection(num_workers=1, cpu_seconds=600.0), wall_seconds=1.0) as pool:
        assert essence(pool.grade([ENDLESS, *PAIRS[:1]])) == [("ungraded", None), *EXPECTED[:1]]
        assert pool.ungraded_reasons == {"wall time limit": 1}


def test_the_memory_limit_is_the_workers_own_however_large_its_parent_is():
    # On Linux ru_maxrss outlives fork and exec: measured by it, this worker would start at 400 MB and never grow.
    ballast = bytearray(400 << 20)
    ballast[:: 1 << 12] = b"x" * (len(ballast) >> 12)
    with GradingPool(RewardSection(num_workers=1, cpu_seconds=60.0, memory_mb=320)) as pool:
        (grade,) = pool.grade([("<answer>g(t) + (a+b+c+d+e+f)^{200}</answer>", "2")])
    assert grade.verdict == "ungraded"


@pytest.mark.parametrize("answer", ["\\operatorname{zeros}(100000, 100000)", "g(t) + (a+b+c+d+e+f)^{200}"])
def test_a_row_beyond_the_memory_limit_is_ungraded(answer):
    with GradingPool(RewardSection(num_workers=1, cpu_seconds=60.0, memory_mb=320)) as pool:
        grades = pool.grade([(f"<answer>{answer}</answer>", "2"), *PAIRS])
    assert essence(grades) == [("ungraded", answer), *EXPECTED]


def test_a_worker_that_is_killed_loses_and_repeats_no_row():
    before = children()
    with GradingPool(RewardSection(num_workers=1, cpu_seconds=1.0)) as pool:
        pool.grade(PAIRS)
        future = pool.submit([ENDLESS, *PAIRS])
        (worker,) = children() - before
        os.kill(worker, signal.SIGKILL)
        assert essence(future.result()) == [("ungraded", None), *EXPECTED]
        assert pool.ungraded_reasons["CPU time limit"] == 1


def test_a_row_that_always_kills_its_worker_is_given_up(monkeypatch):
    class Fragile(grading_pool.WorkerProcess):
        def send(self, pairs):
            self.close()
            super().send(pairs)

    monkeypatch.setattr("igrpo_cli.rewards.grading_pool.WorkerProcess", Fragile)
    with GradingPool(RewardSection(num_workers=1)) as pool:
        assert essence(pool.grade([PAIRS[0]])) == [("ungraded", None)]
        assert pool.ungraded_reasons == {"the worker ended with SIGKILL": 1}


def test_workers_ignore_the_signals_of_a_job_and_end_with_the_pool():
    before = children()
    pool = GradingPool(RewardSection(num_workers=2))
    pool.grade(PAIRS * 4 * ROWS_PER_CHUNK)
    workers = children() - before
    assert len(workers) == 2
    for worker in workers:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.kill(worker, number)
    assert essence(pool.grade(PAIRS)) == EXPECTED
    assert children() - before == workers
    pool.close()
    pool.close()
    assert children() == before


def test_closing_cancels_what_is_unfinished():
    pool = GradingPool(RewardSection(num_workers=1, cpu_seconds=60.0))
    futures = [pool.submit([ENDLESS]), pool.submit(PAIRS)]
    time.sleep(0.5)
    pool.close()
    for future in futures:
        with pytest.raises(CancelledError):
            future.result()
    with pytest.raises(IgrpoError, match="closed"):
        pool.submit(PAIRS)


def test_closing_ends_the_wait_of_another_thread():
    pool = GradingPool(RewardSection(num_workers=1, cpu_seconds=60.0))
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.grade, [ENDLESS] * 3 * ROWS_PER_CHUNK)
        time.sleep(0.5)
        pool.close()
        with pytest.raises(CancelledError):
            waiting.result(timeout=30)


@pytest.mark.parametrize("executable", ["/bin/false", "/nonexistent"])
def test_workers_that_cannot_start_are_an_error_and_no_verdict(monkeypatch, executable):
    monkeypatch.setattr(sys, "executable", executable)
    with GradingPool(RewardSection(num_workers=1)) as pool, pytest.raises((IgrpoError, OSError)):
        pool.grade(PAIRS)


def test_a_worker_that_lacks_a_library_says_so(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('no algebra here')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with GradingPool(RewardSection(num_workers=1)) as pool, pytest.raises(IgrpoError, match="no algebra here"):
        pool.grade(PAIRS)


def test_a_pool_needs_a_worker():
    with pytest.raises(UsageError):
        check_config({"reward": {"num_workers": 0}}, "run.toml")


PARENT = r"""
import sys, time
from pathlib import Path
from igrpo_cli.config.rewards import RewardSection
from igrpo_cli.rewards.grading_pool import GradingPool
pool = GradingPool(RewardSection(num_workers=2, cpu_seconds=1.0))
pool.grade([("\\boxed{\\sqrt{4}}", "2")] * 64)
pool.submit([("\\boxed{\\prod_{k=1}^{9999} \\sin k}", "7")])
tasks = Path("/proc/self/task").glob("*/children")
print(*(pid for task in tasks for pid in task.read_text().split()), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent_or_writes_to_its_terminal(number):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    os.killpg(parent.pid, number)
    _, errors = parent.communicate(timeout=60)
    assert errors.count("Traceback") == (1 if number == signal.SIGINT else 0)  # the parent's own
    wait_until(lambda: not any(is_running(pid) for pid in workers))
