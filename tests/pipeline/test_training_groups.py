"""Groups of the gradient step: the scale of advantages, masks, and dynamic sampling."""

from __future__ import annotations

from dataclasses import replace

import pytest

from igrpo_cli.config import RunConfig
from igrpo_cli.pipeline.training_groups import Observations
from igrpo_cli.pipeline.update_steps import groups_with_advantages
from igrpo_cli.records import Rollout


def rollout(stage, group_id, sample_id, reward, finish_reason="stop"):
    return Rollout(
        iteration=0,
        stage=stage,
        problem_id=f"p{group_id}",
        group_id=group_id,
        sample_id=sample_id,
        draft_sample_id=None,
        prompt="",
        prompt_ids=[1],
        completion="",
        completion_ids=[2],
        sampling_logprobs=[-1.0],
        finish_reason=finish_reason,
        seed=0,
        reward=reward,
        reward_parts={"accuracy": reward, "format": 0.0},
        verdict="correct" if reward else "incorrect",
        extracted_answer=None,
    )


def observed(**rewards_by_stage):
    """Groups of two completions: `observed(refine=["10", "11"])` has one group with a gradient and one without."""
    return Observations(
        rollouts={
            stage: [
                rollout(stage, group_id, sample_id, float(reward))
                for group_id, rewards in enumerate(groups)
                for sample_id, reward in enumerate(rewards)
            ]
            for stage, groups in rewards_by_stage.items()
        },
        sampling={stage: {"temperature": 0.5, "max_completion_length": 7} for stage in rewards_by_stage},
        selections=[],
    )


def config_of(update, problems_per_iteration=1, **sections):
    return RunConfig(data={"problems_per_iteration": problems_per_iteration}, update=update, **sections)


def chosen(observations, problems_per_iteration, **section):
    groups = groups_with_advantages(observations, config_of(section, problems_per_iteration))
    return [(group.stage, group.group_id) for group in groups]


def test_every_group_is_kept_by_default():
    assert chosen(observed(refine=["11", "10", "00"]), 3) == [("refine", 0), ("refine", 1), ("refine", 2)]


def test_dropped_groups_are_replaced_by_spare_ones_in_their_order():
    observations = observed(refine=["11", "10", "00", "01", "10"])
    drop = {"dynamic_sampling": True}
    assert chosen(observations, 2, **drop) == [("refine", 1), ("refine", 3)]
    assert chosen(observations, 3, **drop) == [("refine", 1), ("refine", 3), ("refine", 4)]
    assert chosen(observations, 5, **drop) == [("refine", 1), ("refine", 3), ("refine", 4)]
    assert observations.num_groups("refinements") == 5


def test_each_stage_that_is_trained_on_is_filled_by_itself():
    observations = observed(draft=["10", "11", "10"], refine=["11", "10", "11"])
    found = chosen(observations, 2, dynamic_sampling=True, train_on="both")
    assert found == [("draft", 0), ("draft", 2), ("refine", 1)]


def test_where_nothing_has_a_gradient_as_many_groups_stay_as_there_are_minibatches():
    observations = observed(refine=["11", "00", "11"])
    assert chosen(observations, 3, dynamic_sampling=True) == [("refine", 0)]
    assert chosen(observations, 3, dynamic_sampling=True, num_minibatches=2) == [("refine", 0), ("refine", 1)]


@pytest.mark.parametrize(
    ("section", "advantage"),
    [
        ({}, 0.5 / (0.5**0.5 + 1e-4)),
        ({"loss_type": "gspo"}, 0.5 / (0.5**0.5 + 1e-4)),
        ({"loss_type": "dr_grpo"}, 0.5),
        ({"loss_type": "dr_grpo", "scale_rewards": "population_std"}, 0.5 / (0.5 + 1e-4)),
    ],
)
def test_advantages_have_the_scale_of_the_objective_unless_it_is_set(section, advantage):
    (group,) = groups_with_advantages(observed(refine=["10"]), config_of(section))
    assert group.advantages == pytest.approx([advantage, -advantage])
    assert (set(group.temperatures), group.max_completion_length) == ({0.5}, 7)


def test_completions_have_the_recorded_temperatures_in_turn_by_their_place_in_the_group():
    observations = observed(refine=["101"])
    observations.sampling["refine"] = {"temperature": [0.7, 0.0], "max_completion_length": 7}
    (group,) = groups_with_advantages(observations, config_of({}))
    assert group.temperatures == [0.7, 1.0, 0.7]  # Greedy log-probs are those of the plain distribution.


def test_truncated_completions_are_masked_on_demand_and_still_count_for_the_baseline():
    observations = observed(refine=["10"])
    observations.rollouts["refine"][1] = rollout("refine", 0, 1, 0.0, "length")
    for is_on in (False, True):
        (group,) = groups_with_advantages(observations, config_of({"mask_truncated_completions": is_on}))
        assert group.is_masked == [False, is_on]
        assert group.advantages[0] > 0 > group.advantages[1]


def with_verdicts(verdicts, rewards):
    rows = [rollout("refine", 0, sample, reward) for sample, reward in enumerate(rewards)]
    rows = [replace(row, verdict=verdict) for row, verdict in zip(rows, verdicts, strict=True)]
    return Observations({"refine": rows}, {"refine": {"temperature": 1.0, "max_completion_length": 7}}, [])


def test_an_ungraded_completion_is_masked_and_counts_in_no_statistic():
    verdicts = ["correct", "wrong", "ungraded"]
    (group,) = groups_with_advantages(with_verdicts(verdicts, [1.0, 0.0, 0.0]), config_of({}))
    # Mean 0.5 and sample deviation sqrt(0.5) of the two graded rewards.
    expected = 0.5 / (0.5**0.5 + 1e-4)
    assert group.advantages == pytest.approx([expected, -expected, 0.0])
    assert group.is_masked == [False, False, True]


def test_an_ungraded_completion_is_wrong_where_the_setting_says_so():
    observations = with_verdicts(["correct", "ungraded"], [1.0, 0.0])
    (group,) = groups_with_advantages(observations, config_of({}, reward={"ungraded": "wrong"}))
    assert group.advantages[1] < 0
    assert group.is_masked == [False, False]


@pytest.mark.parametrize(("rewards", "kept"), [([1.0, 0.0], 1), ([1.0, 1.0], 2), ([0.0, 0.0], 2)])
def test_dynamic_sampling_compares_accuracy_and_not_other_parts_of_the_reward(rewards, kept):
    rows = [rollout("refine", 0, sample, reward) for sample, reward in enumerate(rewards)]
    rows = [replace(row, reward=row.reward + 0.1 * row.sample_id) for row in rows]
    mixed = [rollout("refine", 1, sample, float(sample)) for sample in range(2)]
    observations = Observations(
        {"refine": rows + mixed}, {"refine": {"temperature": 1.0, "max_completion_length": 7}}, []
    )
    groups = groups_with_advantages(observations, config_of({"dynamic_sampling": True}))
    assert [group.group_id for group in groups] == ([0] if kept == 1 else [1])


def test_a_group_whose_rewarded_completions_are_masked_has_no_variance():
    rows = [rollout("refine", 0, sample, float(sample), finish_reason="length") for sample in range(2)]
    rows += [rollout("refine", 1, sample, float(sample)) for sample in range(2)]
    observations = Observations({"refine": rows}, {"refine": {"temperature": 1.0, "max_completion_length": 7}}, [])
    config = config_of({"dynamic_sampling": True, "mask_truncated_completions": True})
    assert [group.group_id for group in groups_with_advantages(observations, config)] == [1]


# Four drafts of each problem, one or four of them right; two refinements.
DRAFTED = {"draft": ["1000", "1111"], "refine": ["11", "10"]}


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        # Drafts: mean 0.25 and std 0.5; mean 1 without deviation, so the difference is not divided.
        ("drafts", [[0.75 / 0.5001] * 2, [0.0, -1.0]]),
        # Pooled: [1,0,0,0,1,1] has mean 0.5 and std sqrt(0.3); [1,1,1,1,1,0] has mean 5/6 and std sqrt(1/6).
        ("pooled", [[0.5 / (0.3**0.5 + 1e-4)] * 2, [(1 / 6) / (6**-0.5 + 1e-4), (-5 / 6) / (6**-0.5 + 1e-4)]]),
        ("group", [[0.0, 0.0], [0.5 / (0.5**0.5 + 1e-4), -0.5 / (0.5**0.5 + 1e-4)]]),
    ],
)
def test_refinements_are_measured_against_the_rewards_that_the_baseline_names(baseline, expected):
    groups = groups_with_advantages(observed(**DRAFTED), config_of({"baseline": baseline, "train_on": "both"}))
    first = 0.75 / 0.5001
    assert [group.advantages for group in groups[:2]] == [pytest.approx([first] + [-first / 3] * 3), [0.0] * 4]
    assert [group.advantages for group in groups[2:]] == [pytest.approx(each) for each in expected]


def test_refinements_can_be_trained_as_completions_of_the_problem_alone():
    observations = observed(**DRAFTED)
    for stage, prompt in (("draft", [1]), ("refine", [1, 2])):
        observations.rollouts[stage][:] = [replace(row, prompt_ids=prompt) for row in observations.rollouts[stage]]
    settings = {"train_on": "both", "refinement_prompt": "without_draft", "shaping_gamma": 0.2}
    groups = groups_with_advantages(observations, config_of(settings))
    assert [(group.stage, group.prompt_ids, group.shaping_gamma) for group in groups] == [
        *[("draft", [1], 0.0)] * 2,
        *[("refine", [1], 0.2)] * 2,
    ]
    groups = groups_with_advantages(observations, config_of({"train_on": "both"}))
    assert [(group.prompt_ids, group.shaping_gamma) for group in groups[2:]] == [([1, 2], 0.0)] * 2


def test_ungraded_drafts_are_no_baseline():
    observations = observed(draft=["1000"], refine=["11"])
    drafts = observations.rollouts["draft"]
    drafts[1:] = [replace(draft, verdict="ungraded") for draft in drafts[1:]]
    settings = {"baseline": "drafts", "scale_rewards": "none"}
    (group,) = groups_with_advantages(observations, config_of(settings))
    assert group.advantages == [0.0, 0.0]
    (group,) = groups_with_advantages(observations, config_of(settings, reward={"ungraded": "wrong"}))
    assert group.advantages == [0.75, 0.75]
    drafts[0] = replace(drafts[0], verdict="ungraded")
    (group,) = groups_with_advantages(observations, config_of(settings))
    assert (group.advantages, group.baseline) == ([0.0, 0.0], ())


def test_dynamic_sampling_keeps_equal_rewards_that_differ_from_the_drafts():
    observations = observed(draft=["1000", "1111", "0000"], refine=["11", "11", "10"])
    assert chosen(observations, 3, dynamic_sampling=True) == [("refine", 2)]
    found = chosen(observations, 3, dynamic_sampling=True, baseline="drafts")
    assert found == [("refine", 0), ("refine", 2)]
