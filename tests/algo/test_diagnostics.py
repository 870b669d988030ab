"""Metrics of rollouts that are written by hand."""

from __future__ import annotations

import dataclasses

import pytest

from igrpo_cli.algo.diagnostics import refinement_metrics, rollout_metrics, selection_metrics
from igrpo_cli.records import Rollout, Selection

DRAFT = Rollout(
    iteration=0,
    stage="draft",
    problem_id="p0",
    group_id=0,
    sample_id=0,
    draft_sample_id=None,
    prompt="1+1?",
    prompt_ids=[5],
    completion="2",
    completion_ids=[7, 8],
    sampling_logprobs=[-0.5, -1.5],
    finish_reason="stop",
    seed=1,
    reward=1.0,
    reward_parts={"accuracy": 1.0, "format": 0.0},
    verdict="correct",
    extracted_answer="2",
)
SELECTION = Selection(
    iteration=0,
    group_id=0,
    problem_id="p0",
    action="condition",
    draft_group_id=0,
    draft_sample_id=0,
    draft="2",
    draft_answer="2",
    draft_reward=1.0,
    num_tied=1,
    group_reward_mean=0.5,
    group_reward_std=0.7,
)


def rollout(**changes):
    return dataclasses.replace(DRAFT, **changes)


def shown(draft_group_id: int, draft: str) -> Selection:
    return dataclasses.replace(SELECTION, draft_group_id=draft_group_id, draft=draft)


def wrong(**changes):
    return rollout(reward=0.0, reward_parts={"accuracy": 0.0, "format": 0.0}, verdict="wrong", **changes)


def test_rollout_metrics_are_averages_named_by_their_prompt():
    rows = [
        rollout(),
        wrong(sample_id=1, completion_ids=[7], sampling_logprobs=[-1.0], finish_reason="length"),
        wrong(group_id=1, completion_ids=[7], sampling_logprobs=[-3.0]),
    ]
    metrics = rollout_metrics(rows, "draft")
    assert metrics["draft/reward_mean"] == pytest.approx(1 / 3)
    assert metrics["draft/groups_with_gradient"] == 0.5
    assert metrics["draft/completion_length_mean"] == pytest.approx(4 / 3)
    assert metrics["draft/completion_length_max"] == 2
    assert metrics["draft/truncated"] == pytest.approx(1 / 3)
    assert metrics["draft/sampled_entropy"] == pytest.approx((0.5 + 1.5 + 1.0 + 3.0) / 4)
    assert metrics["draft/accuracy_mean"] == pytest.approx(1 / 3)
    assert metrics["draft/verdict_wrong"] == pytest.approx(2 / 3)


def test_no_rollouts_have_no_metrics():
    assert rollout_metrics([], "refine") == {}
    assert selection_metrics([]) == {}
    assert refinement_metrics([], {}, {}) == {}


def test_selection_metrics_count_ties_and_actions():
    rows = [
        SELECTION,
        dataclasses.replace(SELECTION, group_id=1, num_tied=3, draft_reward=0.0, action="bare"),
        dataclasses.replace(SELECTION, group_id=2, num_tied=2, draft_reward=0.0, action="drop"),
        dataclasses.replace(SELECTION, group_id=3, num_tied=1, draft_reward=2.0),
    ]
    assert selection_metrics(rows) == {
        "select/ties": 0.5,
        "select/bare": 0.25,
        "select/dropped": 0.25,
        "select/draft_reward_mean": 0.75,
    }


def test_fix_break_and_copy_rates_follow_the_draft_that_was_seen():
    drafts = {(0, 0): rollout(), (1, 0): wrong(group_id=1, completion="3")}
    refinements = [
        rollout(stage="refine", draft_sample_id=0, completion=" 2\n"),  # right stays right, a copy
        wrong(stage="refine", sample_id=1, draft_sample_id=0, completion="5"),  # broken
        rollout(stage="refine", group_id=1, draft_sample_id=0),  # fixed
        wrong(stage="refine", group_id=1, sample_id=1, draft_sample_id=0, completion="3"),  # wrong, a copy
        wrong(stage="refine", group_id=1, sample_id=2, draft_sample_id=0, completion="4"),
        rollout(stage="refine", group_id=2, draft_sample_id=None),  # refined bare: counts in no rate
    ]
    metrics = refinement_metrics(refinements, drafts, {0: 0, 1: 1, 2: 2})
    assert metrics["refine/break_rate"] == 0.5
    assert metrics["refine/fix_rate"] == pytest.approx(1 / 3)
    assert metrics["refine/copy_rate"] == pytest.approx(2 / 5)


def test_a_shuffled_draft_is_looked_up_in_the_group_it_came_from():
    drafts = {(0, 0): rollout(), (1, 0): wrong(group_id=1)}
    refined = [rollout(stage="refine", group_id=0, draft_sample_id=0)]
    assert refinement_metrics(refined, drafts, {0: 1})["refine/fix_rate"] == 1.0
    assert "refine/fix_rate" not in refinement_metrics(refined, drafts, {0: 0})


def test_an_external_draft_has_a_copy_rate_and_no_other():
    external = [shown(-1, "5"), dataclasses.replace(shown(0, "2"), group_id=1)]
    refined = [rollout(stage="refine", draft_sample_id=0, completion=text) for text in ("5", "2", "4", "6")]
    assert refinement_metrics(refined, {}, {0: -1}, {0: "5"}) == {"refine/copy_rate": 0.25}
    assert selection_metrics(external[:1]) == {"select/ties": 0.0, "select/bare": 0.0, "select/dropped": 0.0}
    assert selection_metrics(external)["select/draft_reward_mean"] == 1.0


def test_an_ungraded_rollout_counts_in_no_rate_of_graded_ones():
    ungraded = rollout(sample_id=2, reward=0.0, reward_parts={"accuracy": 0.0, "format": 0.0}, verdict="ungraded")
    metrics = rollout_metrics([rollout(), wrong(sample_id=1), ungraded], "draft")
    assert (metrics["draft/accuracy_mean"], metrics["draft/reward_mean"]) == (0.5, 0.5)
    assert (metrics["draft/verdict_wrong"], metrics["draft/verdict_ungraded"]) == (0.5, pytest.approx(1 / 3))


def test_a_pair_with_an_ungraded_rollout_is_neither_fixed_nor_broken():
    ungraded = rollout(stage="refine", draft_sample_id=0, verdict="ungraded", completion="3")
    rates = refinement_metrics([ungraded], {(0, 0): rollout()}, {0: 0})
    assert rates == {"refine/copy_rate": 0.0}
