"""`run.staleness = 1`: drafts from the policy before, sampled ahead of the update, with importance weights."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from command_line import files_below, igrpo, make_run, sets
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.manifest import publish_manifest, read_manifest
from igrpo_cli.store.policies import read_policy

SETTINGS = ("run.staleness=1", "run.num_iterations=3", "data.problems_per_iteration=2", "update.train_on=both")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three iterations by `igrpo run`."""
    run = make_run(tmp_path_factory.mktemp("stale") / "run", *SETTINGS)
    first = igrpo("run", run)
    assert first.code == 0, first.stderr
    return RunDirectory(run)


def sampler(run, iteration, stage):
    return read_manifest(run.shard(iteration, stage, 0, 1)).identity.policy


def test_drafts_come_from_the_policy_before_and_refinements_from_the_current_one(run):
    ids = [read_policy(run, iteration).id for iteration in range(4)]
    assert [sampler(run, iteration, "draft") for iteration in range(3)] == [ids[0], ids[0], ids[1]]
    assert [sampler(run, iteration, "refine") for iteration in range(3)] == ids[:3]
    verified = igrpo("verify", run.root, "--replay", "0-2")
    assert verified.code == 0, verified.stdout + verified.stderr


def test_single_commands_sample_ahead_and_make_the_same_files(run, tmp_path):
    """The order of a cluster, where the drafts of the next iteration are sampled during the update."""
    other = make_run(tmp_path / "run", *SETTINGS)
    too_early = igrpo("draft", other, "--iteration", 2)
    assert (too_early.code, "policy 1 does not exist" in too_early.stderr) == (3, True), too_early.stderr
    for command in ("draft 0", "select 0", "refine 0", "draft 1", "select 1", "update 0", "draft 2"):
        stage, iteration = command.split()
        result = igrpo(stage, other, "--iteration", iteration)
        assert result.code == 0, result.stderr
        verified = igrpo("verify", other)
        assert verified.code == 0, (command, verified.stdout)
    assert igrpo("status", other).code == 0
    for command in ("refine 1", "update 1", "select 2", "refine 2", "update 2"):
        stage, iteration = command.split()
        assert igrpo(stage, other, "--iteration", iteration).code == 0
    assert files_below(other) == files_below(run.root)


def test_an_update_that_is_made_again_names_and_removes_what_followed_from_it(run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run.root, other)
    again = ("update", other, "--iteration", 0, *sets("update.learning_rate=1e-2"))
    overwritten = igrpo(*again, "--overwrite")
    assert (overwritten.code, "iteration_0001/refine" in overwritten.stderr) == (0, True), overwritten.stderr
    assert "iteration_0001/draft" not in overwritten.stderr
    cascaded = igrpo(*again, "--cascade")
    assert cascaded.code == 0, cascaded.stderr
    found = RunDirectory(other)
    assert (found.policy_iterations(), found.iterations()) == ([0, 1], [0, 1])
    assert sorted(path.name for path in found.iteration(1).iterdir()) == ["draft", "select"]
    assert igrpo("verify", other).code == 0
    assert igrpo("run", other).code == 0


def test_missing_drafts_are_made_from_the_policy_before_when_a_run_goes_on(run, tmp_path):
    other = make_run(tmp_path / "run", *SETTINGS)
    assert igrpo("run", other, "--iterations", 1).code == 0
    shutil.rmtree(RunDirectory(other).stage(1, "draft"))
    assert igrpo("run", other).code == 0
    assert files_below(other) == files_below(run.root)


def test_importance_weights_are_on_unless_they_are_turned_off(run, tmp_path):
    assert "importance_sampling_correction = true" in run.run_toml.read_text()
    other = make_run(tmp_path / "run", *SETTINGS, "update.importance_sampling_correction=false")
    assert "importance_sampling_correction = false" in (other / "run.toml").read_text()
    query = "SELECT iteration, value FROM metrics WHERE name = 'importance_weight_mean' AND step >= 0"
    weights = {row["iteration"]: row["value"] for row in igrpo("sql", query, run.root, "--json").json["rows"]}
    assert weights[0] == pytest.approx(1, abs=1e-4)
    assert abs(weights[2] - 1) > 1e-3


def test_drafts_of_another_staleness_are_refused(run, tmp_path):
    other = make_run(tmp_path / "run", *SETTINGS[1:])
    refused = igrpo("run", other, *sets("run.staleness=1"))
    assert (refused.code, "run.staleness was fixed" in refused.stderr) == (4, True), refused.stderr


def test_verify_knows_which_policy_drafts_come_from(run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run.root, other)
    found = RunDirectory(other)
    path = found.shard(2, "draft", 0, 1)
    manifest = read_manifest(path)
    changed = replace(manifest, identity=replace(manifest.identity, policy=read_policy(found, 2).id))
    publish_manifest(path.manifest, changed, replace=True)
    assert "was made from another policy than" in igrpo("verify", other).stdout
