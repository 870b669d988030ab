"""The objective by hand: two tokens, every number written out."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log

import pytest
import torch
from torch import tensor

from igrpo_cli.algo.losses import Objective, SequenceBatch, TokenLogprobs, kl_k3, policy_loss
from igrpo_cli.config.update import PUBLISHED, UpdateSection
from igrpo_cli.training.step import objective_of


def published(loss_type="grpo", max_importance_weight=None, **settings):
    return replace(
        objective_of(UpdateSection(loss_type=loss_type, **settings)), max_importance_weight=max_importance_weight
    )


def batch(advantages, num_tokens, group_sizes, num_groups=1, max_length=10, masked=(), weights=None, gammas=None):
    return SequenceBatch(
        advantages=torch.tensor(advantages, dtype=torch.float64),
        num_tokens=tensor(num_tokens),
        group_sizes=tensor(group_sizes),
        max_lengths=torch.full((len(advantages),), max_length),
        loss_weights=torch.tensor(weights or [1.0] * len(advantages), dtype=torch.float64),
        shaping_gammas=torch.tensor(gammas or [0.0] * len(advantages), dtype=torch.float64),
        is_masked=tensor([index in masked for index in range(len(advantages))]),
        num_groups=num_groups,
    )


def logprobs(sequence, policy, old, reference=None, sampling=None):
    def double(values):
        return None if values is None else torch.tensor(values, dtype=torch.float64)

    sampling = old if sampling is None else sampling
    policy = double(policy).requires_grad_()
    return TokenLogprobs(tensor(sequence), policy, double(old), double(sampling), double(reference))


def test_two_tokens_of_two_sequences():
    # Token 0: ratio 0.5, A = -1, the minimum of -0.5 and the clipped -0.8. Token 1: ratio 1.1 in range, A = 2.
    tokens = logprobs([0, 1], [log(0.5), log(1.1)], [0.0, 0.0])
    output = policy_loss(published(), batch([-1.0, 2.0], [1, 1], [2, 2]), tokens)
    assert output.loss.item() == pytest.approx(-(-0.8 + 2.2) / 2)
    output.loss.backward()
    # d/d logprob of (1/2) * 1.1 * 2 is 1.1; the clipped token has no gradient.
    assert tokens.policy_logprobs.grad.tolist() == pytest.approx([0.0, -1.1])
    assert output.ratio.tolist() == pytest.approx([0.5, 1.1])
    assert output.clipped.tolist() == [True, False]
    assert output.kl is None


def test_a_loss_weight_multiplies_surrogate_and_kl():
    # Two sequences of one token: A = 1 and ratio 1; KL of exp(log 2) - log 2 - 1 each, with beta 0.5.
    tokens = logprobs([0, 1], [0.0, 0.0], [0.0, 0.0], reference=[log(2), log(2)])
    weighted = batch([1.0, 1.0], [1, 1], [2, 2], weights=[3.0, 0.5])
    kl = 2 - log(2) - 1
    assert policy_loss(published(beta=0.5), weighted, tokens).loss.item() == pytest.approx(-3.5 * (1 - 0.5 * kl) / 2)


def test_a_shaped_completion_has_its_steepest_slope_at_unlikely_tokens():
    # p / (p + 0.1) of p = 0.1 is 1/2, of p = 0.9 it is 0.9. The ratio of the third sequence is 1, A = 1.
    tokens = logprobs([0, 1, 2], [log(0.1), log(0.9), log(0.5)], [0.0, 0.0, log(0.5)])
    output = policy_loss(published(), batch([2.0, -1.0, 1.0], [1] * 3, [3] * 3, gammas=[0.1, 0.1, 0.0]), tokens)
    assert output.loss.item() == pytest.approx(-(2 * 0.5 - 0.9 + 1) / 3)
    output.loss.backward()
    # d/d logprob of p / (p + g) is g p / (p + g)^2: 0.01 / 0.04 and 0.09 / 1.
    assert tokens.policy_logprobs.grad.tolist() == pytest.approx([-2 * 0.25 / 3, 0.09 / 3, -1 / 3])
    assert output.clipped.tolist() == [False, False, False]


@pytest.mark.parametrize(
    ("advantage", "ratio", "objective", "clipped"),
    [
        (1.0, 1.5, 1.2, True),
        (1.0, 0.5, 0.5, False),
        (-1.0, 1.5, -1.5, False),
        (-1.0, 0.5, -0.8, True),
        (1.0, 1.19, 1.19, False),
        (0.0, 9.0, 0.0, False),
    ],
)
def test_the_clip_only_ever_lowers_the_objective(advantage, ratio, objective, clipped):
    tokens = logprobs([0], [log(ratio)], [0.0])
    output = policy_loss(published(), batch([advantage], [1], [1]), tokens)
    assert output.loss.item() == pytest.approx(-objective)
    output.loss.backward()
    assert tokens.policy_logprobs.grad.item() == pytest.approx(0.0 if clipped else -objective)
    assert output.clipped.item() is clipped


def test_the_upper_range_can_be_wider():
    tokens = logprobs([0, 1], [log(1.25), log(1.5)], [0.0, 0.0])
    output = policy_loss(published(epsilon_high=0.28), batch([1.0, 1.0], [1, 1], [1, 1], 2), tokens)
    assert output.loss.item() == pytest.approx(-(1.25 + 1.28) / 2)
    assert output.clipped.tolist() == [False, True]


def test_at_ratio_one_the_gradient_is_the_weighted_advantage():
    # Two groups, of two completions and of one; lengths 1, 3 and 2.
    shape = batch([1.5, -0.5, 2.0], [1, 3, 2], [2, 2, 1], num_groups=2)
    values = [-1.0, -2.0, -3.0, -0.5, -0.1, -4.0]
    tokens = logprobs([0, 1, 1, 1, 2, 2], values, values)
    output = policy_loss(published(), shape, tokens)
    output.loss.backward()
    expected = [1.5 / 4, *[-0.5 / 12] * 3, *[2.0 / 4] * 2]
    assert tokens.policy_logprobs.grad.tolist() == pytest.approx([-value for value in expected])
    assert output.loss.item() == pytest.approx(-(1.5 / 4 - 0.5 / 4 + 2.0 / 2))


def test_the_kl_term_by_hand():
    # Reference twice as likely for token 0: k3 = 2 - ln 2 - 1. Equal for token 1: 0.
    tokens = logprobs([0, 0], [log(0.25), log(0.5)], [log(0.25), log(0.5)], [log(0.5), log(0.5)])
    output = policy_loss(published(beta=0.1), batch([0.0], [2], [1]), tokens)
    assert output.kl.tolist() == pytest.approx([1 - log(2), 0.0])
    assert output.loss.item() == pytest.approx(0.1 * (1 - log(2)) / 2)
    output.loss.backward()
    # d k3 / d policy = 1 - reference / policy = -1 for token 0.
    assert tokens.policy_logprobs.grad.tolist() == pytest.approx([-0.05, 0.0])


def test_k3_is_exact_in_expectation_and_never_negative():
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.5, 0.3])
    estimates = kl_k3(policy.log(), reference.log())
    assert (estimates >= 0).all()
    assert (policy * estimates).sum().item() == pytest.approx((policy * (policy / reference).log()).sum().item())


def test_parts_of_a_batch_add_up_to_the_batch():
    shape = batch([1.0, -1.0, 0.5, -0.5], [2, 1, 1, 2], [2, 2, 2, 2], num_groups=2)
    sequence = [0, 0, 1, 2, 3, 3]
    policy, old = [-0.1, -0.9, -2.0, -0.3, -1.0, -0.2], [-0.2, -0.5, -2.1, -0.3, -3.0, -0.1]
    whole = policy_loss(published(), shape, logprobs(sequence, policy, old)).loss
    parts = [
        policy_loss(published(), shape, logprobs(sequence[part], policy[part], old[part])).loss
        for part in (slice(0, 2), slice(2, 3), slice(3, 6))
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-12)


def test_an_empty_completion_counts_in_its_group_and_adds_nothing():
    tokens = logprobs([0], [-1.0], [-1.0])
    output = policy_loss(published(), batch([1.0, -1.0], [1, 0], [2, 2]), tokens)
    assert output.loss.item() == pytest.approx(-0.5)


def test_no_tokens_at_all_is_a_loss_of_zero():
    no_tokens = [torch.zeros(0)] * 3
    nothing = TokenLogprobs(torch.zeros(0, dtype=torch.int64), *no_tokens, None)
    assert policy_loss(published(), batch([1.0], [0], [1]), nothing).loss.item() == 0.0


@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_a_log_prob_that_is_no_number_is_never_masked_away(advantage):
    tokens = logprobs([0, 0], [-1.0, float("nan")], [-1.0, -1.0])
    assert policy_loss(published(), batch([advantage], [2], [1]), tokens).loss.isnan()


def test_beta_without_a_reference_is_refused():
    with pytest.raises(ValueError, match="reference"):
        policy_loss(published(beta=0.1), batch([1.0], [1], [1]), logprobs([0], [-1.0], [-1.0]))


def test_ratio_uses_nats():
    tokens = logprobs([0], [-1.0], [-1.1])
    output = policy_loss(published(), batch([1.0], [1], [1]), tokens)
    assert output.loss.item() == pytest.approx(-exp(0.1))


# Two groups of two completions, of 1, 3, 2 and 2 tokens; every ratio of the first completion of a group is 1.1, of the
# second one 0.9.
SHAPE = {"advantages": [1.0, -1.0, 2.0, -2.0], "num_tokens": [1, 3, 2, 2], "group_sizes": [2, 2, 2, 2], "num_groups": 2}
SEQUENCE = [0, 1, 1, 1, 2, 2, 3, 3]
OLD = [-1.0, -2.0, -0.5, -0.1, -3.0, -0.2, -1.0, -1.0]
RATIOS = [1.1, 0.9, 0.9, 0.9, 1.1, 1.1, 0.9, 0.9]
POLICY = [old + log(ratio) for old, ratio in zip(OLD, RATIOS, strict=True)]


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        # The mean over the four completions of r A: (1.1 - 0.9 + 2.2 - 1.8) / 4.
        (published("grpo"), -0.6 / 4),
        # The sum over the eight tokens of r A: 1.1 - 3 * 0.9 + 2 * 2.2 - 2 * 1.8.
        (published("dapo"), -(1.1 - 2.7 + 4.4 - 3.6) / 8),
        # The same sum over 4 completions of at most 10 tokens.
        (published("dr_grpo"), -(1.1 - 2.7 + 4.4 - 3.6) / 40),
        # All tokens of a completion have the same ratio, so it is that of the completion; the clip is narrower:
        # (1.0004 - 0.9997 + 2 * 1.0004 - 2 * 0.9997) / 4.
        (published("gspo"), -3 * (1.0004 - 0.9997) / 4),
        # r A log p, the ratio a constant.
        (
            published("cispo"),
            -(1.1 * POLICY[0] - 0.9 * sum(POLICY[1:4]) + 2 * 1.1 * sum(POLICY[4:6]) - 2 * 0.9 * sum(POLICY[6:8])) / 8,
        ),
    ],
    ids=lambda value: value.loss_type if isinstance(value, Objective) else "",
)
def test_each_objective_by_hand(settings, loss):
    output = policy_loss(settings, batch(**SHAPE), logprobs(SEQUENCE, POLICY, OLD))
    assert output.loss.item() == pytest.approx(loss)


def clip_range(objective):
    return 1 - objective.epsilon, 1 + objective.epsilon_high


@pytest.mark.parametrize(
    ("loss_type", "low", "high"),
    [("grpo", 0.8, 1.2), ("dapo", 0.8, 1.28), ("dr_grpo", 0.8, 1.2), ("gspo", 0.9997, 1.0004), ("cispo", 0.0, 5.0)],
)
def test_each_objective_has_the_clip_range_it_was_published_with(loss_type, low, high):
    assert clip_range(published(loss_type)) == pytest.approx((low, high))


def test_one_given_clip_range_leaves_the_other_as_published():
    assert clip_range(published("grpo", epsilon=0.1)) == pytest.approx((0.9, 1.1))
    assert clip_range(published("dapo", epsilon=0.1)) == pytest.approx((0.9, 1.28))
    assert clip_range(published("gspo", epsilon_high=0.5)) == pytest.approx((0.9997, 1.5))


@pytest.mark.parametrize("loss_type", PUBLISHED)
def test_at_ratio_one_the_gradient_of_every_objective_is_its_weight_times_the_advantage(loss_type):
    per_token = {"grpo": [1 / 4, 1 / 12, 1 / 8, 1 / 8], "gspo": [1 / 4, 1 / 12, 1 / 8, 1 / 8], "dr_grpo": [1 / 40] * 4}
    tokens = logprobs(SEQUENCE, OLD, OLD)
    policy_loss(published(loss_type), batch(**SHAPE), tokens).loss.backward()
    weights = per_token.get(loss_type, [1 / 8] * 4)
    expected = [-weights[sequence] * SHAPE["advantages"][sequence] for sequence in SEQUENCE]
    assert tokens.policy_logprobs.grad.tolist() == pytest.approx(expected)


def test_gspo_clips_whole_completions():
    # The ratios of the completion are 2 and 1/2: their geometric mean is 1, and nothing is clipped.
    tokens = logprobs([0, 0], [log(2.0), log(0.5)], [0.0, 0.0])
    output = policy_loss(published("gspo"), batch([1.0], [2], [1]), tokens)
    assert output.loss.item() == pytest.approx(-1.0)
    assert output.ratio.tolist() == pytest.approx([1.0, 1.0])
    assert output.clipped.tolist() == [False, False]
    clipped = policy_loss(published(), batch([1.0], [2], [1]), tokens)
    assert clipped.clipped.tolist() == [True, False]


def test_cispo_keeps_the_gradient_of_a_clipped_token():
    tokens = logprobs([0], [log(9.0)], [0.0])
    output = policy_loss(published("cispo"), batch([1.0], [1], [1]), tokens)
    output.loss.backward()
    assert tokens.policy_logprobs.grad.item() == pytest.approx(-5.0)
    assert output.clipped.tolist() == [True]


@pytest.mark.parametrize("loss_type", PUBLISHED)
def test_parts_of_a_batch_add_up_for_every_objective(loss_type):
    settings = published(loss_type, beta=0.1, max_importance_weight=1.5)
    reference, sampling = [value - 0.3 for value in OLD], [value + 0.2 for value in OLD]

    def loss(part):
        values = (SEQUENCE[part], POLICY[part], OLD[part], reference[part], sampling[part])
        return policy_loss(settings, batch(**SHAPE, masked=[3]), logprobs(*values)).loss.item()

    parts = (slice(0, 1), slice(1, 6), slice(6, 8))
    assert sum(map(loss, parts)) == pytest.approx(loss(slice(0, 8)), rel=1e-12)


def test_a_masked_completion_adds_nothing_and_its_tokens_count_nowhere():
    def loss(loss_type):
        shape = batch(**SHAPE, masked=[2])
        return policy_loss(published(loss_type), shape, logprobs(SEQUENCE, POLICY, OLD)).loss.item()

    assert loss("grpo") == pytest.approx(-(1.1 - 0.9 - 1.8) / 4)
    assert loss("dapo") == pytest.approx(-(1.1 - 2.7 - 3.6) / 6)
    assert loss("dr_grpo") == pytest.approx(-(1.1 - 2.7 - 3.6) / 40)


def test_importance_weights_are_of_old_over_sampler_and_truncated_above():
    # Old is 4 times and 1/2 times as likely as the sampler had it; the cap is 2.
    tokens = logprobs([0, 1], [0.0, 0.0], [0.0, 0.0], sampling=[-log(4.0), log(2.0)])
    output = policy_loss(published(max_importance_weight=2.0), batch([1.0, -1.0], [1, 1], [2, 2]), tokens)
    assert output.importance_weights.tolist() == pytest.approx([2.0, 0.5])
    assert output.loss.item() == pytest.approx(-(2.0 - 0.5) / 2)
    output.loss.backward()
    assert tokens.policy_logprobs.grad.tolist() == pytest.approx([-1.0, 0.25])


@pytest.mark.parametrize(
    ("mode", "weights"),
    [
        ("token_truncate", [2.0, 0.5, 1.5]),
        ("token_mask", [0.0, 0.5, 1.5]),
        ("sequence_truncate", [2.0, 2.0, 1.5]),
        ("sequence_mask", [0.0, 0.0, 1.5]),
    ],
)
def test_importance_weights_of_tokens_and_of_completions_above_the_bound(mode, weights):
    # The ratios of the tokens are 6, 1/2 and 3/2, those of the two completions 3 and 3/2. The bound is 2.
    tokens = logprobs([0, 0, 1], [0.0] * 3, [0.0] * 3, sampling=[-log(6.0), log(2.0), -log(1.5)])
    settings = replace(published(max_importance_weight=2.0), importance_mode=mode)
    output = policy_loss(settings, batch([1.0, -1.0], [2, 1], [2, 2]), tokens)
    assert output.importance_weights.tolist() == pytest.approx(weights)
    assert output.loss.item() == pytest.approx(-(sum(weights[:2]) / 2 - weights[2]) / 2)


def test_a_completion_of_another_prompt_has_no_importance_weight():
    # Its policy shaping is A p / (p + gamma) = 0.5 / (0.5 + 0.5); the other completion has the weight 1/2.
    tokens = logprobs([0, 1], [log(0.5), 0.0], [log(0.5), 0.0], sampling=[log(0.1), log(2.0)])
    sequences = batch([1.0, 1.0], [1, 1], [2, 2], gammas=[0.5, 0.0])
    output = policy_loss(published(max_importance_weight=2.0), sequences, tokens)
    assert output.importance_weights.tolist() == pytest.approx([1.0, 0.5])
    assert output.loss.item() == pytest.approx(-(0.5 + 0.5) / 2)


def test_importance_weights_leave_the_kl_term_alone():
    tokens = logprobs([0], [0.0], [0.0], reference=[log(2.0)], sampling=[-log(2.0)])
    output = policy_loss(published(beta=1.0, max_importance_weight=9.0), batch([1.0], [1], [1]), tokens)
    assert output.loss.item() == pytest.approx(-(2.0 - (1 - log(2.0))))
