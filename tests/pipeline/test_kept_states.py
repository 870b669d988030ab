"""Optimiser states and policies that a run keeps: `update.save_optimizer_every` and `policy.keep = "deltas"`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time

import pytest

from command_line import ONE_THREAD, files_below, igrpo, make_run, sets
from igrpo_cli.store.layout import RunDirectory

SETTINGS = ("data.problems_per_iteration=2", "run.num_iterations=4", "run.cpu_threads=1")


def states(run):
    run = RunDirectory(run)
    return [iteration for iteration in run.iterations() if run.update(iteration).optimizer.is_dir()]


def policies(run):
    return {path: content for path, content in files_below(run).items() if path.startswith("policies/")}


def kill_when(command, run, file):
    """Run a command in a process that is killed when `file` exists; return its exit code."""
    words = [sys.executable, "-m", "igrpo_cli", command, str(run), "-q"]
    with subprocess.Popen(words, env=ONE_THREAD, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not file.exists():
            time.sleep(0.01)
        process.kill()
    return process.returncode


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of four iterations that writes each optimiser state and keeps two."""
    run = make_run(tmp_path_factory.mktemp("unbroken") / "run", *SETTINGS)
    assert igrpo("run", run).code == 0
    assert states(run) == [2, 3]
    return run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_that_stopped_between_two_states_ends_with_the_same_policies(tmp_path, unbroken, dtype):
    run = make_run(tmp_path / "run", *SETTINGS, "update.save_optimizer_every=3", f"policy.dtype={dtype}")
    assert igrpo("run", run, "--iterations", 2).code == 0
    assert states(run) == [1]  # the last iteration of a command
    stopped = RunDirectory(run).update(1)
    for file in stopped.optimizer.iterdir():  # as after a kill of a longer command, which would not have written it
        file.unlink()
    stopped.optimizer.rmdir()
    went_on = igrpo("run", run)
    assert went_on.code == 0, went_on.stderr
    assert "the optimiser state of iteration 1 does not exist; computing updates 0 to 1 again" in went_on.stderr
    assert states(run) == [2, 3]
    if dtype == "float32":
        assert policies(run) == policies(unbroken)
    assert igrpo("verify", run, "--replay", "0-3").code == 0


def test_old_policies_are_stored_as_differences_and_restored_with_the_same_bytes(tmp_path, unbroken):
    run = make_run(tmp_path / "run", *SETTINGS, "policy.keep=deltas")
    assert igrpo("run", run).code == 0
    found = RunDirectory(run)
    assert (found.policy_iterations(), found.delta_iterations()) == ([0, 3, 4], [1, 2, 3])
    size = {each: sum(file.stat().st_size for file in each.iterdir()) for each in (found.policy(3), found.delta(2))}
    assert size[found.delta(2)] < size[found.policy(3)]
    gone = igrpo("draft", run, "--iteration", 2, "--overwrite")
    assert (gone.code, f"hint: igrpo policy {run} 2" in gone.stderr) == (3, True), gone.stderr
    copied = igrpo("policy", run, 1, "--output", tmp_path / "first", "--json")
    assert (copied.code, copied.json["restored"]) == (0, True), copied.stderr
    assert files_below(tmp_path / "first") == files_below(RunDirectory(unbroken).policy(1))
    assert igrpo("policy", run, 2).code == 0
    assert found.policy_iterations() == [0, 2, 3, 4]
    kept = {path: content for path, content in policies(unbroken).items() if "0001" not in path}
    assert kept.items() <= policies(run).items()
    assert igrpo("verify", run).code == 0


@pytest.mark.parametrize("keep", ["2", "deltas"])
def test_the_policies_since_the_newest_state_are_kept_for_a_run_that_is_killed(tmp_path, unbroken, keep):
    run = make_run(tmp_path / "run", *SETTINGS, f"policy.keep={keep}", "update.save_optimizer_every=4")
    found = RunDirectory(run)
    assert igrpo("run", run, "--iterations", 3).code == 0
    assert (states(run), found.policy_iterations()) == ([2], [0, 2, 3])
    again = make_run(tmp_path / "again", *SETTINGS, f"policy.keep={keep}", "update.save_optimizer_every=4")
    found = RunDirectory(again)
    killed = kill_when("run", again, found.update(2).manifest)
    assert killed != 0
    assert (states(again), found.policy_iterations()[:3]) == ([], [0, 1, 2])
    assert igrpo("run", again).code == 0
    assert found.policy(4).joinpath("model.safetensors").read_bytes() == (
        RunDirectory(unbroken).policy(4).joinpath("model.safetensors").read_bytes()
    )


def test_a_difference_of_a_policy_that_was_made_again_is_not_restored(tmp_path):
    run = make_run(tmp_path / "run", *SETTINGS, "policy.keep=deltas", "update.learning_rate=1e-3")
    found = RunDirectory(run)
    assert igrpo("run", run, "--iterations", 3).code == 0
    assert (found.policy_iterations(), found.delta_iterations()) == ([0, 2, 3], [1, 2])
    assert igrpo("policy", run, 1).code == 0
    outside = igrpo("policy", run, 1, "--output", run / "policies" / "0009")
    assert (outside.code, "lies in the run" in outside.stderr) == (4, True), outside.stderr
    old = found.delta(1)
    shutil.copytree(old, tmp_path / "delta")
    assert igrpo("update", run, "--iteration", 0, "--overwrite", *sets("update.learning_rate=1e-2")).code == 0
    assert not old.exists()
    shutil.copytree(tmp_path / "delta", old)
    shutil.rmtree(found.policy(1))
    wrong = igrpo("policy", run, 1)
    assert (wrong.code, "is of another policy than the one that" in wrong.stderr) == (4, True), wrong.stderr
    assert "0001.delta is of another policy" in igrpo("verify", run).stdout
