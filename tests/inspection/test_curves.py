from __future__ import annotations

import shutil

import numpy as np
import pytest

from command_line import igrpo
from igrpo_cli.algo.estimates import clustered_interval
from igrpo_cli.inspection.curves import metrics_by_iteration, read_curves, refinement_points, stage_points
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.views import NO_DRAFT, RolloutColumns, SelectionColumns

CORRECT, WRONG, UNGRADED = 0, 1, 3


def columns(group_id, verdict, rewards, completion=None, draft_sample_id=None, sample_id=None):
    number = len(group_id)
    return RolloutColumns(
        group_id=np.array(group_id),
        sample_id=np.array(sample_id or [0] * number),
        draft_sample_id=np.array(draft_sample_id or [NO_DRAFT] * number),
        completion=completion or ["text"] * number,
        num_tokens=np.array([2] * number),
        logprob_sum=np.array([-1.0] * number),
        is_truncated=np.array([True] + [False] * (number - 1)),
        reward=np.array(rewards, np.float64),
        verdict=np.array(verdict),
    )


def test_the_figures_of_a_stage_by_hand():
    points = stage_points(columns([0, 0, 5, 5], [CORRECT, WRONG, WRONG, WRONG], [2, 1, 1, 1]), "draft")
    assert points["draft/verdict_correct"].value == 0.25
    assert (points["draft/verdict_correct"].low, points["draft/verdict_correct"].high) == clustered_interval([0.5, 0.0])
    # Means of the groups 1.5 and 1: 1.25 ± t(1) = 12.7062 times 0.25.
    assert points["draft/reward_mean"].value == 1.25
    assert points["draft/reward_mean"].high == pytest.approx(1.25 + 12.7062 * 0.25, abs=1e-4)
    assert points["draft/groups_with_gradient"].value == 0.5
    assert points["draft/sampled_entropy"].value == 0.5
    assert points["draft/truncated"].value == 0.25
    assert points["draft/completion_length_mean"].value == 2.0


def test_completions_that_could_not_be_graded_count_in_lengths_alone():
    verdicts = [CORRECT, UNGRADED, WRONG, UNGRADED, UNGRADED, UNGRADED]
    points = stage_points(columns([0, 0, 5, 5, 7, 7], verdicts, [1, 0, 0, 9, 9, 0]), "draft")
    assert points["draft/reward_mean"].value == points["draft/verdict_correct"].value == 0.5
    assert points["draft/groups_with_gradient"].value == 0.0
    assert points["draft/verdict_ungraded"].value == pytest.approx(4 / 6)
    assert points["draft/completion_length_mean"].value == 2.0
    nothing_graded = stage_points(columns([0, 0], [UNGRADED, UNGRADED], [1, 0]), "draft")
    assert "draft/reward_mean" not in nothing_graded


def test_the_interval_of_groups_of_different_sizes_contains_the_figure():
    groups = [0] * 16 + [1] * 16 + list(range(2, 14))
    point = stage_points(columns(groups, [WRONG] * 32 + [CORRECT] * 12, [0] * 44), "draft")["draft/verdict_correct"]
    assert point.value == pytest.approx(12 / 44)
    assert 0 <= point.low < point.value < point.high <= 1


def test_a_pair_that_could_not_be_graded_counts_in_the_copy_rate_alone():
    drafts = columns([0, 1, 2], [WRONG, UNGRADED, CORRECT], [0, 0, 1], ["a", "b", "c"])
    refined = columns([0, 1, 2], [CORRECT, CORRECT, UNGRADED], [1, 1, 0], ["a", "x", "x"], [0, 0, 0])
    selections = SelectionColumns(np.array([0, 1, 2]), np.array([0, 1, 2]), np.array([1, 1, 1]))
    points = refinement_points(drafts, selections, refined)
    assert {name: point.value for name, point in points.items()} == {
        "refine/fix_rate": 1.0,
        "refine/copy_rate": pytest.approx(1 / 3),
    }


def test_the_rates_of_refinements_by_hand():
    drafts = columns([0, 0, 1], [WRONG, CORRECT, CORRECT], [0, 1, 1], ["a", "b", "c "], sample_id=[0, 1, 0])
    refined = columns(
        [0, 0, 1, 1, 2], [CORRECT, WRONG, CORRECT, WRONG, WRONG], [1, 0, 1, 0, 0], list("xacca"), [0, 0, 0, 0, 3]
    )
    selections = SelectionColumns(np.array([0, 1, 2]), np.array([0, 1, 2]), np.array([1, 1, 1]))
    points = refinement_points(drafts, selections, refined)
    assert {name: point.value for name, point in points.items()} == {
        "refine/fix_rate": 0.5,
        "refine/break_rate": 0.5,
        "refine/copy_rate": 0.75,
    }


def test_a_draft_of_another_group_is_the_one_that_counts():
    drafts = columns([0, 1], [WRONG, CORRECT], [0, 1], ["a", "b"])
    refined = columns([0, 1], [CORRECT, WRONG], [1, 0], ["b", "b"], [0, 0])
    shuffled = SelectionColumns(np.array([0, 1]), np.array([1, 0]), np.array([1, 1]))
    points = refinement_points(drafts, shuffled, refined)
    assert (points["refine/fix_rate"].value, points["refine/break_rate"].value) == (0.0, 0.0)
    assert points["refine/copy_rate"].value == 0.5


def test_the_figures_are_those_that_the_updates_recorded(finished_run):
    run = RunDirectory(finished_run)
    figures = list(read_curves(run))
    assert [each.iteration for each in figures] == [0, 1]
    for each, recorded in zip(figures, metrics_by_iteration(run), strict=True):
        assert {name: each.points[name].value for name in recorded.whole} == pytest.approx(recorded.whole, abs=1e-12)
        assert each.points["grad_norm"].value == recorded.steps[each.iteration]["grad_norm"]
        assert each.points["draft/verdict_correct"].low is not None
        assert each.costs["draft"].rollouts == 24
        assert each.costs["draft"].groups == 8
        assert not each.unreadable


def test_what_is_damaged_or_missing_is_said_and_the_rest_is_told(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    drafts, selections = run.shard(0, "draft", 0, 1), run.shard(0, "select", 0, 1)
    drafts.data.write_bytes(drafts.data.read_bytes()[:-100])
    selections.manifest.unlink()
    run.update(1).manifest.write_text("{}")
    first, second = read_curves(run)
    assert "refine/fix_rate" in first.points, "the update recorded it"
    assert first.points["refine/fix_rate"].low is None
    assert first.points["refine/verdict_correct"].low is not None
    assert any("draft" in message and "damaged" in message for message in first.unreadable)
    assert "select of iteration 0: 0 of 1 shards are complete" in first.unreadable
    assert second.points["draft/verdict_correct"].low is not None
    assert "grad_norm" not in second.points
    assert len(second.unreadable) == 1


def test_an_iteration_under_way_has_the_figures_of_its_drafts(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    for stage in ("select", "refine", "update"):
        shutil.rmtree(tmp_path / "run" / "iteration_0001" / stage)
    last = list(read_curves(RunDirectory(tmp_path / "run")))[-1]
    assert last.points["draft/verdict_correct"].low is not None
    assert not any(name.startswith("refine/") for name in last.points)
    assert not last.unreadable
    assert igrpo("report", tmp_path / "run").code == 0
