"""Optimiser steps: ratios, determinism, errors that leave the policy unchanged, and metrics."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from igrpo_cli.config.update import UpdateSection
from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.training.optimizer import apply_gradients, make_optimizer
from igrpo_cli.training.policy import CausalPolicy
from igrpo_cli.training.step import PolicyTrainer, cosine

RATE = 1e-3


def trainer(model, reference=None, **changes):
    return PolicyTrainer(CausalPolicy(model), UpdateSection(**({"dtype": "float32"} | changes)), reference)


def weights(of):
    return torch.cat([parameter.detach().flatten() for parameter in of.policy.model.parameters()])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_old_log_probs_the_ratio_is_exactly_one(make_model, groups, dtype):
    result = trainer(make_model(), dtype=dtype).step(groups, RATE)
    assert result.metrics["ratio_max_deviation"] == 0.0
    assert result.metrics["clip_fraction"] == 0.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("limit", [1, 12, 1000])
def test_recomputed_old_log_probs_give_ratio_exactly_one_on_the_same_policy(
    make_model, groups, dtype, checkpointing, limit
):
    tested = trainer(make_model(), dtype=dtype, gradient_checkpointing=checkpointing, max_tokens_per_batch=limit)
    old_logprobs = tested.compute_old_logprobs(groups)
    first = tested.step(groups, RATE, old_logprobs)
    assert first.metrics["ratio_max_deviation"] == 0.0
    second = tested.step(groups, RATE, old_logprobs)
    assert second.metrics["ratio_max_deviation"] > 0.0


def test_later_steps_are_clipped_against_the_old_policy(make_model, groups):
    tested = trainer(make_model())
    old_logprobs = tested.compute_old_logprobs(groups)
    fractions = [tested.step(groups, 0.02, old_logprobs).metrics["clip_fraction"] for _ in range(4)]
    assert fractions[0] == 0.0
    assert fractions[-1] > 0.0


def test_the_step_raises_the_log_prob_of_what_was_better_than_its_group(make_model, make_group):
    group = make_group([4, 4], advantages=[1.0, -1.0])
    tested = trainer(make_model())
    before = tested.step([group], RATE).audit.policy_logprob
    after = tested.step([group], RATE).audit.policy_logprob
    assert after[0] > before[0]
    assert after[1] < before[1]


@pytest.mark.parametrize("limit", [1, 12, 25])
def test_the_number_of_rows_does_not_change_the_weights(make_model, groups, limit):
    whole, parts = trainer(make_model()), trainer(make_model(), max_tokens_per_batch=limit)
    before = weights(whole).clone()
    for _ in range(3):
        whole.step(groups, 1e-5)
        parts.step(groups, 1e-5)
    assert (weights(whole) - before).abs().max() >= 2e-5
    assert (weights(whole) - weights(parts)).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_inputs_give_the_same_bytes(make_model, groups, dtype):
    runs = [trainer(make_model(), dtype=dtype) for _ in range(2)]
    results = [[run.step(groups, RATE) for _ in range(2)] for run in runs]
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert results[0][1].metrics == results[1][1].metrics


def test_training_takes_place_without_dropout(make_model, groups):
    model = make_model()
    model.train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    plain = trainer(make_model())
    tested = trainer(model, gradient_checkpointing=True)
    assert tested.step(groups, RATE).metrics["loss"] == plain.step(groups, RATE).metrics["loss"]
    torch.testing.assert_close(weights(tested), weights(plain), rtol=0, atol=1e-7)


def test_the_gradient_is_clipped_by_its_global_norm_and_reported_before(make_model, groups):
    norm = trainer(make_model()).step(groups, 0.0).metrics["grad_norm"]
    tested = trainer(make_model(), max_grad_norm=norm / 2)
    assert tested.step(groups, 0.0).metrics["grad_norm"] == pytest.approx(norm, rel=1e-6)
    left = torch.cat([p.grad.flatten() for p in tested.policy.model.parameters()]).norm().item()
    assert left == pytest.approx(norm / 2, rel=1e-5)


def test_a_gradient_is_that_of_the_step_and_takes_none(make_model, groups):
    tested = trainer(make_model())
    before = weights(tested)
    gradient = tested.gradient(groups)
    assert torch.equal(weights(tested), before)
    norm = torch.cat([each.flatten() for each in gradient]).norm().item()
    assert tested.step(groups, 0.0).metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_cosines_by_hand():
    one, other = [torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])], [torch.tensor([[0.0, 7.0]]), torch.tensor([2.0])]
    assert cosine(one, other) == pytest.approx(8 / (5 * 53**0.5))
    assert cosine(one, one) == 1.0
    assert cosine(one, [-each for each in one]) == -1.0
    assert math.isnan(cosine(one, [torch.zeros_like(each) for each in one]))


def test_adamw_by_hand():
    model = torch.nn.Linear(1, 1)
    model.weight.data.fill_(2.0)
    model.bias.data.fill_(2.0)
    optimizer = make_optimizer(model, UpdateSection(weight_decay=0.1, max_grad_norm=100.0))
    model.weight.grad, model.bias.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
    assert apply_gradients(optimizer, model, 0.5, 100.0) == 5.0
    # The first step of Adam is the sign of the gradient times the rate; the matrix decays by rate * 0.1 as well.
    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.05) - 0.5)
    assert model.bias.item() == pytest.approx(2.0 - 0.5)


def test_momentum_goes_on_when_no_group_has_a_gradient(make_model, make_group):
    group = make_group([4, 4], advantages=[1.0, -1.0])
    tested = trainer(make_model())
    tested.step([group], RATE)
    before = weights(tested).clone()
    result = tested.step([replace(group, advantages=[0.0, 0.0])], RATE)
    assert result.metrics["grad_norm"] == 0.0
    assert not torch.equal(weights(tested), before)


def test_a_reference_equal_to_the_policy_has_kl_zero_and_any_other_above(make_model, groups):
    same = trainer(make_model(), CausalPolicy(make_model()), beta=0.1)
    assert same.step(groups, RATE).metrics["kl"] == 0.0
    assert same.step(groups, RATE).metrics["kl"] > 0.0


def test_the_reference_never_moves(make_model, groups):
    reference = CausalPolicy(make_model())
    before = {name: value.clone() for name, value in reference.model.state_dict().items()}
    trainer(make_model(), reference, beta=0.1).step(groups, RATE)
    assert all(torch.equal(value, before[name]) for name, value in reference.model.state_dict().items())
    assert all(parameter.grad is None for parameter in reference.model.parameters())


def test_beta_without_a_reference_is_refused(make_model):
    with pytest.raises(UsageError, match="reference"):
        trainer(make_model(), beta=0.1)


class TestRefusals:
    """Weights and optimiser state are unchanged, byte for byte."""

    @pytest.fixture
    def tested(self, make_model, groups):
        tested = trainer(make_model())
        tested.step(groups, RATE)
        return tested

    @staticmethod
    def state(tested):
        moments = [value for state in tested.optimizer.state.values() for value in state.values()]
        return [value.clone() for value in (*tested.policy.model.state_dict().values(), *moments)]

    def refuse(self, tested, match, *arguments):
        before = self.state(tested)
        with pytest.raises(IgrpoError, match=match):
            tested.step(*arguments)
        assert all(torch.equal(now, then) for now, then in zip(self.state(tested), before, strict=True))

    def test_a_log_prob_that_is_no_number(self, tested, groups, monkeypatch):
        from igrpo_cli.training import policy

        def broken(hidden, head, targets, temperatures, real=policy.token_logprobs):
            logprobs, entropies = real(hidden, head, targets, temperatures)
            return torch.where(torch.arange(len(targets)) == 7, torch.nan, logprobs), entropies

        monkeypatch.setattr(policy, "token_logprobs", broken)
        self.refuse(tested, r"policy log-prob of token 1 of completion 3 of refine group 0 .* is nan", groups, RATE)

    def test_old_log_probs_that_are_no_numbers(self, tested, groups):
        old_logprobs = tested.compute_old_logprobs(groups)
        old_logprobs[15] = -np.inf
        self.refuse(tested, "old log-prob of token 0 of completion 0 of draft group 1", groups, RATE, old_logprobs)

    def test_a_loss_that_overflows(self, tested, groups):
        old_logprobs = tested.compute_old_logprobs(groups)
        old_logprobs[:] = -1e4
        negative = [replace(group, advantages=[-1.0] * len(group.advantages)) for group in groups]
        self.refuse(tested, "loss is inf in the row that starts with completion 0", negative, RATE, old_logprobs)

    def test_a_gradient_that_overflows(self, tested, groups):
        layer = tested.policy.model.model.layers[1].mlp.down_proj
        layer.weight.register_hook(lambda gradient: gradient * float("inf"))
        self.refuse(tested, r"gradient norm is .* in model\.layers\.1\.mlp\.down_proj\.weight", groups, RATE)

    def test_old_log_probs_of_other_groups(self, tested, groups):
        self.refuse(tested, "old log-probs", groups, RATE, tested.compute_old_logprobs(groups[:2]))


def test_what_a_step_reports(make_model, groups):
    tested = trainer(make_model())
    logprobs = tested.compute_old_logprobs(groups)
    # The sampler disagrees by exactly 0.25 on drafts and by 0.5 on refinements.
    shifted, start = [], 0
    for group in groups:
        shift = 0.25 if group.stage == "draft" else 0.5
        rows = []
        for ids in group.completion_ids:
            rows.append((logprobs[start : start + len(ids)] - shift).tolist())
            start += len(ids)
        shifted.append(replace(group, sampling_logprobs=rows))
    result = tested.step(shifted, RATE)
    metrics = result.metrics
    assert metrics["num_tokens"] == 35
    assert metrics["num_groups"] == 4
    assert metrics["learning_rate"] == RATE
    assert metrics["ratio_mean"] == metrics["ratio_max"] == 1.0
    assert metrics["sampler_mismatch_mean/draft"] == pytest.approx(0.25, abs=1e-5)
    assert metrics["sampler_mismatch_max/refine"] == pytest.approx(0.5, abs=1e-5)
    assert metrics["sampler_mismatch_max"] == pytest.approx(0.5, abs=1e-5)
    assert metrics["sampler_mismatch_mean"] == pytest.approx((7 * 0.25 + 28 * 0.5) / 35, abs=1e-5)
    assert metrics["entropy"] == pytest.approx((7 * metrics["entropy/draft"] + 28 * metrics["entropy/refine"]) / 35)
    all_advantages = [abs(value) for group in groups for value in group.advantages]
    assert metrics["advantage_abs_mean"] == pytest.approx(np.mean(all_advantages), rel=1e-6)
    assert all(np.isfinite(value) for value in metrics.values())
    audit = result.audit
    assert audit.num_tokens.tolist() == [5, 1, 0, 9, 1, 4, 7, 2, 3, 3]
    assert audit.policy_logprob[0] == pytest.approx(logprobs[:5].mean(), abs=1e-6)
    assert audit.entropy[2] == audit.ratio[2] == 0.0
    assert audit.sampler_mismatch[[3, 4]] == pytest.approx([0.5, 0.25], abs=1e-5)


@pytest.mark.parametrize(("weight", "factor"), [(0.0, 0.0), (1.0, 1.0), (0.25, 0.25)])
def test_the_loss_weight_of_a_group_is_a_factor_of_its_gradient(make_model, make_group, weight, factor):
    group = make_group([4, 4], advantages=[1.0, -1.0])
    whole = trainer(make_model()).step([group], RATE)
    part = trainer(make_model()).step([replace(group, loss_weight=weight)], RATE)
    assert part.metrics["grad_norm"] == pytest.approx(factor * whole.metrics["grad_norm"], rel=1e-5)
