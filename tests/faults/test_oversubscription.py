"""Rewards and rows while eight times as many processes want the CPUs as there are CPUs: the same, only later."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from command_line import files_below, igrpo, make_run
from igrpo_cli.rewards.workers import GradingLimits, GradingPool

LOAD = 8
PAIRS = [
    *((rf"so $\boxed{{\frac{{{n}}}{{{n + 2}}}}}$", rf"\frac{{{3 * n}}}{{{3 * n + 6}}}") for n in range(1, 20)),
    *((rf"\boxed{{\sqrt{{{n}}}}}", f"{n}^{{1/2}}") for n in range(1, 20)),
    *((rf"<answer>x^2 + {n}x</answer>", rf"x(x + {n})") for n in range(1, 20)),
    *((f"the answer is {n},000.0", str(1000 * n + n % 2)) for n in range(1, 20)),
    (r"\boxed{9^{9^{9^{9}}}}", "1"),
    (r"\boxed{" + "-" * 4000 + "1}", "1"),
    ("nothing at all", "1"),
]


@pytest.fixture
def busy():
    """Processes that do nothing but compute, eight for each CPU."""
    burn = [sys.executable, "-c", "while True: pass"]
    crowd = [subprocess.Popen(burn) for _ in range(LOAD * (os.cpu_count() or 1))]
    yield
    for process in crowd:
        process.kill()
    for process in crowd:
        process.wait()


def grades():
    with GradingPool(2, GradingLimits(cpu_seconds=1)) as pool:
        return [(grade.verdict, grade.extracted_answer) for grade in pool.grade(PAIRS)]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """A run with nothing done yet, and what grading and drafting it give."""
    run = make_run(tmp_path_factory.mktemp("runs") / "run", "data.problems_per_iteration=2")
    drafted = shutil.copytree(run, run.with_name("drafted"))
    assert igrpo("draft", drafted).code == 0
    return run, grades(), files_below(drafted)


def test_rewards_and_rows_are_the_same(quiet, busy):
    run, verdicts, files = quiet
    assert {verdict for verdict, _ in verdicts} >= {"correct", "wrong", "ungraded"}
    assert grades() == verdicts
    assert igrpo("draft", run).code == 0
    assert files_below(run) == files
