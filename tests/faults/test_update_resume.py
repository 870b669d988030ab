"""An update of several steps that is stopped goes on after its last step and ends in the same bytes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time

import pytest

from command_line import ONE_THREAD, files_below, igrpo, make_run, run_to_end

SIX_STEPS = ("run.num_iterations=1", "update.num_minibatches=3", "update.num_epochs=2")
CHECKPOINTS = "iteration_0000/.update/*"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run_to_end(make_run(tmp_path_factory.mktemp("runs") / "undisturbed", *SIX_STEPS))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run whose update was killed after its third step."""
    return killed_in_the_update(make_run(tmp_path_factory.mktemp("runs") / "stopped", *SIX_STEPS))


def killed_in_the_update(run):
    for stage in ("draft", "select", "refine"):
        assert igrpo(stage, run).code == 0
    command = [sys.executable, "-m", "igrpo_cli", "update", str(run), "-q"]
    process = subprocess.Popen(command, env=ONE_THREAD, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not any(run.glob(f"{CHECKPOINTS}/step_000003")):
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (run / "iteration_0000/update").exists()
    return run


def finish(run):
    result = igrpo("update", run)
    assert result.code == 0, result.stderr
    assert not list(run.glob("iteration_0000/.*")), "checkpoints stay until the update is published, and no longer"
    return result.stderr


def test_it_goes_on_after_the_last_step(undisturbed, stopped, tmp_path):
    run = shutil.copytree(stopped, tmp_path / "run")
    assert "going on after step" in finish(run)
    assert files_below(run) == files_below(undisturbed)


@pytest.mark.slow
def test_with_the_optimizer_on_the_host_the_bytes_are_the_same(undisturbed, tmp_path):
    run = killed_in_the_update(make_run(tmp_path / "run", *SIX_STEPS, "update.offload_optimizer=true"))
    assert "going on after step" in finish(run)
    assert files_below(run) == files_below(undisturbed)


def test_a_damaged_checkpoint_is_passed_over(undisturbed, stopped, tmp_path):
    run = shutil.copytree(stopped, tmp_path / "run")
    for weights in run.glob(f"{CHECKPOINTS}/step_*/master.safetensors"):
        damaged = bytearray(weights.read_bytes())
        damaged[-5] ^= 4
        weights.write_bytes(damaged)
    stderr = finish(run)
    assert "of no use" in stderr
    assert "going on" not in stderr
    assert files_below(run) == files_below(undisturbed)


def test_checkpoints_of_other_settings_are_of_no_use(stopped, tmp_path):
    run = shutil.copytree(stopped, tmp_path / "run")
    result = igrpo("update", run, "--set", "update.learning_rate=3e-6")
    assert result.code == 0, result.stderr
    assert "going on" not in result.stderr


def test_without_checkpoints_the_bytes_are_the_same(undisturbed, stopped, tmp_path):
    run = shutil.copytree(stopped, tmp_path / "run")
    shutil.rmtree(run / "iteration_0000/.update")
    assert igrpo("update", run, "--set", "update.save_steps=0").code == 0
    assert files_below(run) == files_below(undisturbed)
