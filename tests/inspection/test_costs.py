"""What a run cost: sums of manifests, time that was worked, and the projection, all computed by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from igrpo_cli.errors import DamagedFileError
from igrpo_cli.inspection.run_state import Spent, costs_of_iterations, iteration_costs, project, read_cost
from igrpo_cli.store.layout import RunDirectory

STAGES = ("draft", "update")


def commit_manifest(path, started, finished, seconds, tokens, gpu_seconds=0.0, **more):
    """As much of a manifest as tells what its shard took, in the order in which manifests tell it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = {"started": f"2026-01-01T{started}+00:00", "finished": f"2026-01-01T{finished}+00:00"}
    amounts = {"seconds": seconds, "tokens": tokens, "gpu_seconds": gpu_seconds}
    facts = {"stage": "draft", **more, **times, **amounts, "counts": {"ties": 3}}
    path.write_text(json.dumps(facts, indent=2) + "\n")


@pytest.fixture
def run(tmp_path):
    """Iteration 0 is finished; of iteration 1 one draft shard is there."""
    run = RunDirectory(tmp_path)
    first, second = run.shards(0, "draft", 2)
    commit_manifest(first.manifest, "10:00:00", "10:01:00", 60.0, 1000, 120.0)
    commit_manifest(second.manifest, "10:00:30", "10:02:00", 90.5, 2000, 181.0)
    commit_manifest(run.update(0).manifest, "10:10:00", "10:10:30", 30.0, 3000, 30.0)
    commit_manifest(run.shard(1, "draft", 0, 2).manifest, "11:00:00", "11:00:10", 10.0, 500, 20.0)
    return run


def test_the_shards_of_a_stage_add_up(run):
    costs = iteration_costs(run, 0, STAGES)
    assert costs.stages == {"draft": Spent(3000, 150.5, 301.0), "update": Spent(3000, 30.0, 30.0)}
    assert costs.unreadable == []


def test_time_is_counted_once_where_shards_overlap_and_not_while_nothing_is_made(run):
    # 10:00:00 to 10:02:00, then nothing until the update from 10:10:00 to 10:10:30.
    assert iteration_costs(run, 0, STAGES).wall_seconds == 150.0


def test_an_iteration_that_has_not_begun_cost_nothing(run):
    costs = iteration_costs(run, 7, STAGES)
    assert (costs.stages["draft"], costs.stages["update"], costs.wall_seconds) == (Spent(), Spent(), 0.0)


def test_the_projection_is_the_mean_of_the_finished_iterations_times_all(run):
    costs = costs_of_iterations(run, [0, 1], STAGES)
    projection = project([costs[0]], unfinished=3)
    assert projection is not None
    assert projection.finished_iterations == 1
    assert projection.spent == Spent(6000 * 4, 180.5 * 4, 331.0 * 4)
    assert (projection.wall_seconds_per_iteration, projection.wall_seconds_left) == (150.0, 450.0)
    assert project([costs[0], costs[1]], unfinished=1).spent.tokens == 6500 * 3 // 2


def test_nothing_is_projected_from_nothing_or_to_the_end_of_a_finished_run(run):
    costs = iteration_costs(run, 0, STAGES)
    assert project([], unfinished=3) is None
    assert project([costs], unfinished=0) is None


@pytest.mark.parametrize(
    "content",
    ["", "{}", '{"started": "2026-01-01T10:00:00+00:00"}', "\x00" * 100, "[" * 100_000],
    ids=["empty", "no keys", "cut off", "zeros", "deep"],
)
def test_a_manifest_that_does_not_say_is_named_and_counts_nothing(run, content):
    damaged = run.shard(0, "draft", 1, 2).manifest
    damaged.write_text(content)
    costs = iteration_costs(run, 0, STAGES)
    assert costs.stages["draft"] == Spent(1000, 60.0, 120.0)
    assert costs.unreadable == [f"{damaged} does not say what its shard took"]


def test_a_day_that_does_not_exist_is_damage(tmp_path):
    path = tmp_path / "shard.json"
    commit_manifest(path, "10:00:00", "10:00:00", 1.0, 1)
    path.write_text(path.read_text().replace("2026-01-01", "2026-13-01"))
    with pytest.raises(DamagedFileError, match="does not say what its shard took"):
        read_cost(str(path))


@pytest.mark.parametrize("seconds", ["e", "1e999", "-1.5", "1.2.3"])
@pytest.mark.parametrize("key", ["seconds", "gpu_seconds"])
def test_seconds_that_no_clock_counts_are_damage(tmp_path, key, seconds):
    path = tmp_path / "shard.json"
    commit_manifest(path, "10:00:00", "10:00:02", 2.25, 1, 2.25)
    path.write_text(path.read_text().replace(f'"{key}": 2.25', f'"{key}": {seconds}'))
    with pytest.raises(DamagedFileError, match="does not say what its shard took"):
        read_cost(str(path))


def test_settings_that_look_like_costs_are_not_taken_for_them(tmp_path):
    path = tmp_path / "shard.json"
    decoy = '"started": "2020-01-01T00:00:00+00:00", "finished": "2020-01-01T00:00:00+00:00", "seconds": 9, "tokens": 9'
    commit_manifest(path, "10:00:00", "10:00:02", 1.5, 7, 3.0, config={"prompts": {"system_prompt": decoy}})
    _, completed, *amounts = read_cost(str(path))
    assert amounts == [1.5, 7, 3.0]
    assert completed == datetime(2026, 1, 1, 10, 0, 2, tzinfo=UTC).timestamp()
