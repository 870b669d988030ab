"""Gradients of shared rows are those of training on one sequence at a time with all logits in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from igrpo_cli.config.update import UpdateSection
from igrpo_cli.training.policy import CausalPolicy
from igrpo_cli.training.step import PolicyTrainer

LEARNING_NOTHING = 0.0


def settings(**changes):
    return UpdateSection(**({"dtype": "float32", "max_grad_norm": 1e9} | changes))


def gradients(policy):
    return {name: parameter.grad.clone() for name, parameter in policy.model.named_parameters()}


def packed_gradients(model, groups, reference=None, **changes):
    """Return the gradients of the trainer. With learning rate 0 the weights do not change."""
    policy = CausalPolicy(model)
    trainer = PolicyTrainer(policy, settings(**changes), reference)
    result = trainer.step(groups, LEARNING_NOTHING)
    return gradients(policy), result


def one_sequence_at_a_time(model, groups, beta=0.0, reference=None):
    """The objective without packing: one forward pass per completion."""
    model = model.eval()
    total = torch.zeros(())
    for group in groups:
        rows = zip(group.completion_ids, group.advantages, group.temperatures, strict=True)
        for ids, advantage, temperature in rows:
            if not ids:
                continue
            prompt = len(group.prompt_ids)
            row = torch.tensor([[*group.prompt_ids, *ids]])

            def score(scored, row=row, prompt=prompt, ids=ids, temperature=temperature):
                logits = scored(input_ids=row, use_cache=False).logits[0, prompt - 1 : -1] / temperature
                return logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]

            policy = score(model)
            surrogate = torch.exp(policy - policy.detach()) * advantage
            if beta:
                log_ratio = score(reference).detach() - policy
                surrogate = surrogate - beta * (log_ratio.exp() - log_ratio - 1)
            total = total + surrogate.mean() / len(group.completion_ids) / len(groups)
    model.zero_grad()
    (-total).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}, -total.item()


def relative_error(found, expected):
    difference = sum((found[name] - expected[name]).square().sum() for name in expected).sqrt()
    return (difference / sum(value.square().sum() for value in expected.values()).sqrt()).item()


@pytest.mark.parametrize("limit", [1, 12, 1000])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_shared_rows_equal_one_sequence_at_a_time(make_model, groups, name, limit):
    found, result = packed_gradients(make_model(name), groups, max_tokens_per_batch=limit)
    expected, loss = one_sequence_at_a_time(make_model(name), groups)
    assert relative_error(found, expected) < 1e-5
    assert result.metrics["loss"] == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("name", ["mistral", "mamba", "nemotron-h"])
def test_architectures_that_cannot_share_a_prompt_are_exact_too(make_model, groups, name):
    assert not CausalPolicy(make_model(name)).shares_prompts
    found, _ = packed_gradients(make_model(name), groups)
    expected, _ = one_sequence_at_a_time(make_model(name), groups)
    assert relative_error(found, expected) < 1e-5


def test_the_kl_term_reaches_the_gradient_of_groups_without_advantage_too(make_model, groups):
    groups[3] = replace(groups[3], advantages=[0.0, 0.0])
    reference = make_model()
    for parameter in reference.parameters():
        parameter.data.mul_(0.9)
    found, result = packed_gradients(make_model(), groups, CausalPolicy(reference), beta=0.5)
    expected, loss = one_sequence_at_a_time(make_model(), groups, 0.5, reference)
    assert relative_error(found, expected) < 1e-5
    assert result.metrics["loss"] == pytest.approx(loss, abs=1e-6)
    without, _ = packed_gradients(make_model(), groups)
    assert relative_error(without, expected) > 0.1


def test_recomputed_layers_give_the_same_gradient(make_model, groups):
    found, _ = packed_gradients(make_model("qwen3"), groups, gradient_checkpointing=True)
    expected, _ = packed_gradients(make_model("qwen3"), groups)
    assert relative_error(found, expected) < 1e-6


def test_only_the_positions_that_predict_completion_tokens_carry_gradient(make_model, make_group):
    policy = CausalPolicy(make_model())
    captured = []

    def capture(_module, _arguments, output):
        captured.append(output.last_hidden_state)
        captured[-1].retain_grad()

    policy.model.base_model.register_forward_hook(capture)
    PolicyTrainer(policy, settings()).step([make_group([3, 1], prompt=6)], LEARNING_NOTHING)
    # Row: six prompt tokens, then the first two of completion 0. The end of the prompt and those two predict.
    (hidden,) = captured
    assert (hidden.grad[0].abs().sum(-1) > 0).tolist() == [False] * 5 + [True] * 3


def test_a_completion_without_advantage_counts_in_the_average_only(make_model, make_group):
    with_it = make_group([4, 6], advantages=[1.0, 0.0])
    found, _ = packed_gradients(make_model(), [with_it])
    alone = make_group([4], advantages=[1.0])
    assert alone.prompt_ids == with_it.prompt_ids
    expected, _ = packed_gradients(make_model(), [alone])
    halved = {name: value / 2 for name, value in expected.items()}
    assert relative_error(found, halved) < 1e-5


def test_groups_without_advantage_are_measured_and_have_no_gradient(make_model, make_group):
    trained = make_group([4, 6], seed=1, advantages=[1.0, -1.0])
    uniform = make_group([5, 2], seed=2, advantages=[0.0, 0.0], stage="draft")
    found, result = packed_gradients(make_model(), [trained, uniform])
    expected, alone = packed_gradients(make_model(), [trained])
    assert relative_error(found, {name: value / 2 for name, value in expected.items()}) < 1e-6
    assert result.metrics["num_tokens"] == 17
    assert result.metrics["entropy/refine"] == pytest.approx(alone.metrics["entropy"])
    assert result.metrics["entropy/draft"] > 0
    assert result.metrics["groups_with_gradient"] == 0.5


def test_bfloat16_compute_gives_every_parameter_a_float32_gradient_close_to_the_exact_one(make_model, groups):
    found, _ = packed_gradients(make_model(), groups, dtype="bfloat16", max_tokens_per_batch=12)
    expected, _ = packed_gradients(make_model(), groups)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert relative_error(found, expected) < 0.05
