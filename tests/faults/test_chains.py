"""Policies and optimiser states that do not come from what lies before them, and those that a kill left in between."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from command_line import files_below, igrpo, sets
from igrpo_cli.pipeline import update_trainer
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.policies import write_policy_manifest
from igrpo_cli.store.settings import checksummed_settings
from igrpo_cli.store.temporaries import temporary_name

EVAL = ("--bench", "arithmetic", "--samples", 1, *sets("eval.limit=2", "eval.max_gen_toks=8"))


@pytest.fixture
def run(finished_run, tmp_path):
    return RunDirectory(shutil.copytree(finished_run, tmp_path / "run"))


def go_on_to_three(run: RunDirectory) -> None:
    """Settings of one more iteration, as if `init` had written them."""
    settings = run.run_toml.read_bytes().partition(b"\n")[2]
    run.run_toml.write_bytes(checksummed_settings(settings.replace(b"num_iterations = 2", b"num_iterations = 3")))


def make_anew(run: RunDirectory, iteration: int) -> None:
    """Another policy in the place of one of the run, recorded as it should be."""
    place = run.policy(iteration)
    parent = json.loads((place / "manifest.json").read_text())["parent"]
    settings = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(settings | {"made": "anew"}))
    write_policy_manifest(place, iteration, parent)


@pytest.mark.parametrize("command", [("draft", "--iteration", 2), ("update", "--iteration", 2), ("run",), ("eval",)])
def test_a_policy_whose_forebear_was_made_anew_is_not_gone_on_from(run, command):
    go_on_to_three(run)
    make_anew(run, 1)
    before = files_below(run.root)
    name, *options = command
    result = igrpo(name, run.root, *options, *(EVAL if name == "eval" else ()))
    assert (result.code, result.stdout) == (4, "")
    assert str(run.policy(2)) in result.stderr
    assert str(run.policy(1)) in result.stderr
    assert f"hint: igrpo update {run.root} --iteration 1 --overwrite" in result.stderr
    assert {name: data for name, data in files_below(run.root).items() if not name.startswith("eval/")} == before


def test_what_was_made_anew_further_back_is_seen_too(run):
    go_on_to_three(run)
    parent = json.loads((run.policy(2) / "manifest.json").read_text())["policy_id"]
    shutil.copytree(run.policy(2), run.policy(3))
    write_policy_manifest(run.policy(3), 3, parent)
    make_anew(run, 1)
    result = igrpo("eval", run.root, *EVAL)
    assert result.code == 4
    assert str(run.policy(2)) in result.stderr


def test_a_forebear_that_was_removed_to_save_room_stops_nobody(run):
    shutil.rmtree(run.policy(1))
    assert igrpo("eval", run.root, *EVAL).code == 0


def test_the_policy_that_a_kill_left_in_its_update_is_the_one_measured(run):
    shutil.move(run.policy(2), run.update(1).policy)
    missing = ("status", run.root, "--missing", "eval", "--bench", "arithmetic")
    assert igrpo(*missing).stdout == "0\n"
    result = igrpo("eval", run.root, "--json", *EVAL)
    assert result.code == 0, result.stderr
    assert result.json["model"]["name"] == "policy 2"
    assert run.policy(2).is_dir()
    assert not run.update(1).policy.exists()
    assert igrpo(*missing).stdout == ""
    assert igrpo("verify", run.root).code == 0


@pytest.fixture
def two_left(run):
    """The run before its last update, which goes on from the optimiser state of the first."""
    shutil.rmtree(run.policy(2))
    shutil.rmtree(run.update(1).directory)
    return run


def verify_says(run: RunDirectory) -> list[str]:
    result = igrpo("verify", run.root, "--json")
    assert result.code == 1
    return [problem["what"] for problem in result.json["problems"]]


def test_the_optimiser_state_of_another_run_is_not_gone_on_from(two_left, tmp_path):
    run, other = two_left, RunDirectory(shutil.copytree(two_left.root, tmp_path / "other"))
    result = igrpo("update", other.root, "--iteration", 0, "--overwrite", *sets("update.adam_beta2=0.5"))
    assert result.code == 0, result.stderr
    shutil.rmtree(run.update(0).optimizer)
    shutil.copytree(other.update(0).optimizer, run.update(0).optimizer)
    before = files_below(run.root)
    result = igrpo("update", run.root, "--iteration", 1)
    assert (result.code, result.stdout) == (4, "")
    assert str(run.update(0).optimizer) in result.stderr
    assert (
        f"hint: igrpo update {run.root} --iteration 0 --overwrite recreates policy and optimiser state" in result.stderr
    )
    assert files_below(run.root) == before
    assert any("speaks of another iteration_0000/update/optimizer/manifest.json" in what for what in verify_says(run))


def test_an_update_whose_state_is_kept_beside_another_policy_is_not_gone_on_from(two_left, tmp_path):
    run, other = two_left, RunDirectory(shutil.copytree(two_left.root, tmp_path / "other"))
    assert igrpo("update", other.root, "--iteration", 0, "--overwrite", *sets("update.learning_rate=0.5")).code == 0
    shutil.rmtree(run.update(0).directory)
    shutil.copytree(other.update(0).directory, run.update(0).directory)
    result = igrpo("update", run.root, "--iteration", 1)
    assert result.code == 4
    assert f"the update of iteration 0 made another policy than the one that lies in {run.policy(1)}" in result.stderr


def test_a_state_that_was_pruned_is_made_again_by_the_update_that_needs_it(run):
    before = run.update(1).metrics.read_bytes()
    shutil.rmtree(run.update(0).optimizer)
    assert igrpo("update", run.root, "--iteration", 0).code == 0
    assert igrpo("status", run.root, "--json").json["faults"] == []
    assert igrpo("verify", run.root).code == 0
    result = igrpo("update", run.root, "--iteration", 1, "--overwrite")
    assert result.code == 0, result.stderr
    assert "the optimiser state of iteration 0 does not exist; computing update 0 again" in result.stderr
    assert run.update(1).metrics.read_bytes() == before


def test_what_a_kill_left_of_pruning_is_removed_by_the_next_update(run):
    state = run.update(0).optimizer
    dead = state.with_name(re.sub(r"-[0-9]+-[0-9]+\.", "-4194303-1.", temporary_name(state.name)))
    shutil.copytree(state, dead)
    result = igrpo("update", run.root, "--iteration", 1, *sets("update.keep_optimizer_states=1"))
    assert result.code == 0, result.stderr
    assert "already done" in result.stdout
    assert not state.exists()
    assert not dead.exists()
    assert run.update(1).optimizer.is_dir()


def test_states_of_all_earlier_iterations_are_pruned(run):
    """Also those that a kill, or a setting that was another one then, has left further back."""
    go_on_to_three(run)
    result = igrpo("run", run.root, *sets("update.keep_optimizer_states=1"))
    assert result.code == 0, result.stderr
    assert [run.update(iteration).optimizer.is_dir() for iteration in range(3)] == [False, False, True]
    assert igrpo("verify", run.root).code == 0


def test_a_late_twin_whose_optimiser_state_is_pruned_finds_its_work_done(two_left, monkeypatch):
    run, keep_one = two_left, sets("update.keep_optimizer_states=1")
    of_the_late_one = update_trainer.load_trainer
    twin = []

    def after_the_twin(*arguments):
        monkeypatch.undo()
        twin.append(igrpo("update", run.root, "--iteration", 1, *keep_one))
        assert not run.update(0).optimizer.exists()
        return of_the_late_one(*arguments)

    monkeypatch.setattr(update_trainer, "load_trainer", after_the_twin)
    late = igrpo("update", run.root, "--iteration", 1, *keep_one)
    assert [twin[0].code, late.code] == [0, 0], late.stderr
    assert igrpo("verify", run.root).code == 0
