"""task.sh: environment, exit code and signals of its command."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest
from stage_scripts import STAGES

TALE = 'echo "$IGRPO_ENVIRONMENT: $1"'


@pytest.mark.parametrize("kind", ["sampling", "training"])
def test_a_command_runs_in_the_environment_of_its_kind(scripts, kind):
    result = scripts.call("task.sh", kind, "bash", "-c", TALE, "bash", "two words")
    assert (result.code, result.stdout) == (0, f"{kind}: two words\n")


def test_without_environments_the_command_runs_in_the_one_of_the_job(scripts):
    result = scripts.call("task.sh", "sampling", "bash", "-c", TALE, "bash", "x", IGRPO_SAMPLING_ENV="")
    assert (result.code, result.stdout) == (0, ": x\n")


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 137])
def test_the_exit_code_is_that_of_the_command(scripts, code):
    result = scripts.call("task.sh", "training", "bash", "-c", f"exit {code}")
    assert (result.code, result.stderr) == (code, "")


def test_after_the_last_requeue_75_is_a_failure_with_a_hint(scripts):
    result = scripts.call(
        "task.sh", "sampling", "bash", "-c", "exit 75", SLURM_RESTART_COUNT="3", IGRPO_MAX_REQUEUES="3"
    )
    assert result.code == 75
    assert "error: stopped again after 3 requeues" in result.stderr
    assert "hint: stages/submit.sh" in result.stderr


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("trap 'sleep 0.3; echo kept; exit 75' TERM; echo ready; while :; do sleep 0.05; done", 75),
        ("echo ready; exec sleep 60", 75),
        ("trap 'sleep 0.3; echo kept; exit 0' TERM; echo ready; while :; do sleep 0.05; done", 0),
    ],
    ids=["stopped cleanly", "stopped before it listened", "finished all the same"],
)
def test_sigterm_is_forwarded_and_the_script_waits_for_the_command(scripts, command, code):
    """Nothing is requeued: without Slurm that fails, and with Slurm it would undo a scancel."""
    words = ["bash", STAGES / "task.sh", "sampling", "bash", "-c", command]
    task = subprocess.Popen(words, env=scripts.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert task.stdout is not None
    assert task.stdout.readline() == "ready\n"
    time.sleep(0.1)
    task.send_signal(signal.SIGTERM)
    stdout, stderr = task.communicate(timeout=30)
    assert (task.returncode, stderr) == (code, "")
    assert stdout == ("kept\n" if "kept" in command else "")
