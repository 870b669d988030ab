"""The objective by hand: two tokens, every number written out."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch import tensor

from igrpo_cli.algo.losses import LossSettings, SequenceBatch, TokenLogprobs, kl_k3, policy_loss


def batch(advantages, num_tokens, group_sizes, num_groups=1):
    return SequenceBatch(
        torch.tensor(advantages, dtype=torch.float64), tensor(num_tokens), tensor(group_sizes), num_groups
    )


def logprobs(sequence, policy, old, reference=None):
    def double(values):
        return None if values is None else torch.tensor(values, dtype=torch.float64)

    return TokenLogprobs(tensor(sequence), double(policy).requires_grad_(), double(old), double(reference))


def test_two_tokens_of_two_sequences():
    # Token 0: ratio 0.5, A = -1, the minimum of -0.5 and the clipped -0.8. Token 1: ratio 1.1 in range, A = 2.
    tokens = logprobs([0, 1], [log(0.5), log(1.1)], [0.0, 0.0])
    output = policy_loss(LossSettings(), batch([-1.0, 2.0], [1, 1], [2, 2]), tokens)
    assert output.loss.item() == pytest.approx(-(-0.8 + 2.2) / 2)
    output.loss.backward()
    # d/d logprob of (1/2) * 1.1 * 2 is 1.1; the clipped token has no gradient.
    assert tokens.policy_logprobs.grad.tolist() == pytest.approx([0.0, -1.1])
    assert output.ratio.tolist() == pytest.approx([0.5, 1.1])
    assert output.clipped.tolist() == [True, False]
    assert output.kl is None


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
    output = policy_loss(LossSettings(), batch([advantage], [1], [1]), tokens)
    assert output.loss.item() == pytest.approx(-objective)
    output.loss.backward()
    assert tokens.policy_logprobs.grad.item() == pytest.approx(0.0 if clipped else -objective)
    assert output.clipped.item() is clipped


def test_the_upper_range_can_be_wider():
    tokens = logprobs([0, 1], [log(1.25), log(1.5)], [0.0, 0.0])
    output = policy_loss(LossSettings(epsilon_high=0.28), batch([1.0, 1.0], [1, 1], [1, 1], 2), tokens)
    assert output.loss.item() == pytest.approx(-(1.25 + 1.28) / 2)
    assert output.clipped.tolist() == [False, True]


def test_at_ratio_one_the_gradient_is_the_weighted_advantage():
    # Two groups, of two completions and of one; lengths 1, 3 and 2.
    shape = batch([1.5, -0.5, 2.0], [1, 3, 2], [2, 2, 1], num_groups=2)
    values = [-1.0, -2.0, -3.0, -0.5, -0.1, -4.0]
    tokens = logprobs([0, 1, 1, 1, 2, 2], values, values)
    output = policy_loss(LossSettings(), shape, tokens)
    output.loss.backward()
    expected = [1.5 / 4, *[-0.5 / 12] * 3, *[2.0 / 4] * 2]
    assert tokens.policy_logprobs.grad.tolist() == pytest.approx([-value for value in expected])
    assert output.loss.item() == pytest.approx(-(1.5 / 4 - 0.5 / 4 + 2.0 / 2))


def test_the_kl_term_by_hand():
    # Reference twice as likely for token 0: k3 = 2 - ln 2 - 1. Equal for token 1: 0.
    tokens = logprobs([0, 0], [log(0.25), log(0.5)], [log(0.25), log(0.5)], [log(0.5), log(0.5)])
    output = policy_loss(LossSettings(beta=0.1), batch([0.0], [2], [1]), tokens)
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
    whole = policy_loss(LossSettings(), shape, logprobs(sequence, policy, old)).loss
    parts = [
        policy_loss(LossSettings(), shape, logprobs(sequence[part], policy[part], old[part])).loss
        for part in (slice(0, 2), slice(2, 3), slice(3, 6))
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-12)


def test_an_empty_completion_counts_in_its_group_and_adds_nothing():
    tokens = logprobs([0], [-1.0], [-1.0])
    output = policy_loss(LossSettings(), batch([1.0, -1.0], [1, 0], [2, 2]), tokens)
    assert output.loss.item() == pytest.approx(-0.5)


def test_no_tokens_at_all_is_a_loss_of_zero():
    nothing = TokenLogprobs(torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0), None)
    assert policy_loss(LossSettings(), batch([1.0], [0], [1]), nothing).loss.item() == 0.0


@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_a_log_prob_that_is_no_number_is_never_masked_away(advantage):
    tokens = logprobs([0, 0], [-1.0, float("nan")], [-1.0, -1.0])
    assert policy_loss(LossSettings(), batch([advantage], [2], [1]), tokens).loss.isnan()


def test_beta_without_a_reference_is_refused():
    with pytest.raises(ValueError, match="reference"):
        policy_loss(LossSettings(beta=0.1), batch([1.0], [1], [1]), logprobs([0], [-1.0], [-1.0]))


def test_ratio_uses_nats():
    tokens = logprobs([0], [-1.0], [-1.1])
    output = policy_loss(LossSettings(), batch([1.0], [1], [1]), tokens)
    assert output.loss.item() == pytest.approx(-exp(0.1))
