"""What a run took: sums over manifests, time in which anything was made, and the projection, all computed by hand."""

from __future__ import annotations

import json

import pytest

from igrpo_cli.inspection.run_state import CURVES, Spent, iteration_costs, project, read_complete_iteration
from igrpo_cli.store.checksummed_json import checksummed_bytes
from igrpo_cli.store.hashing import sha256_file
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.manifest import DataFile, publish_manifest
from sample_run import identity_of, manifest_of

STAGES = ("draft", "update")


def publish(path, started, finished, seconds, tokens, gpu_seconds=0.0, data=b"rows", **more):
    """Publish a shard with the given costs. Its data is not Parquet: no cost is read from data."""
    path.data.parent.mkdir(parents=True, exist_ok=True)
    path.data.write_bytes(data)
    file = DataFile("rollouts", 1, 1, 1, sha256_file(path.data), len(data))
    times = {"started": f"2026-01-01T{started}+00:00", "finished": f"2026-01-01T{finished}+00:00"}
    amounts = {"seconds": seconds, "tokens": tokens, "gpu_seconds": gpu_seconds}
    publish_manifest(path.manifest, manifest_of(identity_of(path), file, **times, **amounts, **more))


@pytest.fixture
def run(tmp_path):
    """Iteration 0 is complete. One draft shard of iteration 1 is there."""
    run = RunDirectory(tmp_path)
    first, second = run.shards(0, "draft", 2)
    publish(first, "10:00:00", "10:01:00", 60.0, 1000, 120.0)
    publish(second, "10:00:30", "10:02:00", 90.5, 2000, 181.0)
    before = iteration_costs(run, 0, ["draft"])
    update = run.update(0).shard
    recorded = {"spent": before.stages, "wall_seconds": before.wall_seconds, "metrics": {CURVES[0]: 0.25}}
    publish(update, "10:10:00", "10:10:30", 30.0, 3000, 30.0, **recorded)
    publish(run.shard(1, "draft", 0, 2), "11:00:00", "11:00:10", 10.0, 500, 20.0)
    return run


def test_the_costs_of_a_stage_are_the_sums_over_its_shards(run):
    costs = iteration_costs(run, 0, STAGES)
    assert costs.stages == {"draft": Spent(3000, 150.5, 301.0), "update": Spent(3000, 30.0, 30.0)}
    assert costs.unreadable == []


def test_time_counts_once_where_shards_overlap_and_not_while_nothing_is_made(run):
    # 10:00:00 to 10:02:00, then nothing until the update from 10:10:00 to 10:10:30.
    assert iteration_costs(run, 0, STAGES).wall_seconds == 150.0


def test_the_update_records_what_its_iteration_took(run):
    costs, metrics = read_complete_iteration(run, 0, STAGES)
    assert costs == iteration_costs(run, 0, STAGES)
    assert metrics == {CURVES[0]: 0.25}


def test_the_manifests_before_a_complete_update_are_not_read_again(run):
    run.shard(0, "draft", 1, 2).manifest.write_text("{")
    costs, _ = read_complete_iteration(run, 0, STAGES)
    assert (costs.stages["draft"], costs.unreadable) == (Spent(3000, 150.5, 301.0), [])


@pytest.mark.parametrize("name", ["manifest.json", "metrics.parquet"])
def test_a_damaged_update_is_named_and_the_costs_come_from_the_other_manifests(run, name):
    file = run.update(0).directory / name
    file.write_bytes(b"\x00\xff{")
    costs, metrics = read_complete_iteration(run, 0, STAGES)
    assert costs.stages == {"draft": Spent(3000, 150.5, 301.0), "update": Spent()}
    assert [str(file) in each for each in costs.unreadable] == [True]
    assert metrics == {}


def test_a_complete_update_without_its_metrics_is_named(run):
    run.update(0).metrics.unlink()
    costs, _ = read_complete_iteration(run, 0, STAGES)
    assert ["metrics.parquet" in each for each in costs.unreadable] == [True]


def test_an_iteration_that_has_not_begun_took_nothing(run):
    costs = iteration_costs(run, 7, STAGES)
    assert (costs.stages["draft"], costs.stages["update"], costs.wall_seconds) == (Spent(), Spent(), 0.0)


def test_the_projection_is_the_mean_of_the_complete_iterations_times_all(run):
    costs = [iteration_costs(run, number, STAGES) for number in (0, 1)]
    projection = project(costs[:1], unfinished=3)
    assert projection is not None
    assert projection.finished_iterations == 1
    assert projection.spent == Spent(6000 * 4, 180.5 * 4, 331.0 * 4)
    assert (projection.wall_seconds_per_iteration, projection.wall_seconds_left) == (150.0, 450.0)
    assert project(costs, unfinished=1).spent.tokens == 6500 * 3 // 2


def test_nothing_is_projected_from_nothing_or_to_the_end_of_a_finished_run(run):
    costs = iteration_costs(run, 0, STAGES)
    assert project([], unfinished=3) is None
    assert project([costs], unfinished=0) is None


@pytest.mark.parametrize("content", ["", "{}", "\x00" * 100, "[" * 100_000], ids=["empty", "no keys", "zeros", "deep"])
def test_a_damaged_manifest_is_named_and_counts_nothing(run, content):
    damaged = run.shard(0, "draft", 1, 2).manifest
    damaged.write_text(content)
    costs = iteration_costs(run, 0, STAGES)
    assert costs.stages["draft"] == Spent(1000, 60.0, 120.0)
    assert [str(damaged) in each for each in costs.unreadable] == [True]


@pytest.mark.parametrize("key", ["spent", "wall_seconds", "metrics", "seconds", "data"])
def test_an_update_whose_manifest_lacks_a_figure_is_named(run, key):
    path = run.update(0).manifest
    facts = json.loads(path.read_text())
    del facts["checksum"], facts[key]
    path.write_bytes(checksummed_bytes(facts))
    costs, metrics = read_complete_iteration(run, 0, STAGES)
    assert costs.stages["draft"] == Spent(3000, 150.5, 301.0)
    assert [f"lacks the key {key}" in each for each in costs.unreadable] == [True]
    assert metrics == {}
