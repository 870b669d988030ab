"""Optimiser states and policies that a run keeps: `update.save_optimizer_every` and `policy.keep = "deltas"`."""

from __future__ import annotations

import pytest

from command_line import files_below, igrpo, make_run
from igrpo_cli.store.layout import RunDirectory

SETTINGS = ("data.problems_per_iteration=2", "run.num_iterations=4", "run.cpu_threads=1")


def states(run):
    run = RunDirectory(run)
    return [iteration for iteration in run.iterations() if run.update(iteration).optimizer.is_dir()]


def policies(run):
    return {path: content for path, content in files_below(run).items() if path.startswith("policies/")}


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
    assert "the optimiser state of iteration 1 was removed; computing updates 0 to 1 again" in went_on.stderr
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
