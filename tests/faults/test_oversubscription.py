"""Rewards and rows while eight other processes want the CPU that grades and samples: the same, only later."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from command_line import files_below, igrpo, make_run
from igrpo_cli.config.rewards import RewardSection
from igrpo_cli.rewards.grading_pool import GradingPool

LOAD = 8
PAIRS = [
    *((rf"so $\boxed{{\frac{{{n}}}{{{n + 2}}}}}$", rf"\frac{{{3 * n}}}{{{3 * n + 6}}}") for n in range(1, 8)),
    *((rf"\boxed{{\sqrt{{{n}}}}}", f"{n}^{{1/2}}") for n in range(1, 8)),
    *((rf"<answer>x^2 + {n}x</answer>", rf"x(x + {n})") for n in range(1, 8)),
    *((f"the answer is {n},000.0", str(1000 * n + n % 2)) for n in range(1, 8)),
    (r"\boxed{\prod_{k=1}^{9999} \sin k}", "1"),
    (r"\boxed{" + "-" * 4000 + "1}", "1"),
    ("nothing at all", "1"),
]


@pytest.fixture
def busy():
    """Eight processes that do nothing but compute, on the one CPU that is left to the test."""
    free = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(free)})
    crowd = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(LOAD)]
    yield
    for process in crowd:
        process.kill()
    for process in crowd:
        process.wait()
    os.sched_setaffinity(0, free)


def grades():
    with GradingPool(RewardSection(num_workers=2, cpu_seconds=1)) as pool:
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
