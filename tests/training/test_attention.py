"""Each implementation of attention over shared prompts is exact, and a policy uses the first that works."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from transformers import AttentionInterface, AutoModelForCausalLM

from igrpo_cli.config.update import UpdateSection
from igrpo_cli.training import policy as policy_module
from igrpo_cli.training.attention import (
    DENSE_MASK,
    FLEX_ATTENTION,
    SEGMENT_ATTENTION,
    RowAttention,
    attention_implementations,
    segment_attention,
)
from igrpo_cli.training.policy import CausalPolicy
from igrpo_cli.training.step import PolicyTrainer

FLOAT32 = UpdateSection(dtype="float32", max_grad_norm=1e9)
NONE = RowAttention("sdpa", lambda row, device: {})
"""Gives the model no mask, so that completions see each other."""


@pytest.fixture
def policy_that_attends(make_model, monkeypatch):
    def make(*ways, name="llama", device="cpu"):
        monkeypatch.setattr(policy_module, "attention_implementations", lambda _: ways)
        return CausalPolicy(make_model(name).to(device))

    return make


def gradients(policy, groups):
    result = PolicyTrainer(policy, FLOAT32).step(groups, learning_rate=0.0)
    return torch.cat([parameter.grad.flatten() for parameter in policy.model.parameters()]), result.metrics["loss"]


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("way", [SEGMENT_ATTENTION, DENSE_MASK], ids=["segments", "dense mask"])
def test_gradients_are_those_of_rows_of_their_own(policy_that_attends, groups, name, way):
    shared, apart = policy_that_attends(way, name=name), policy_that_attends(name=name)
    assert shared.shares_prompts
    assert not apart.shares_prompts
    (found, loss), (expected, expected_loss) = gradients(shared, groups), gradients(apart, groups)
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert loss == pytest.approx(expected_loss, abs=1e-6)


@pytest.mark.filterwarnings("ignore:flex_attention called without", "ignore:_compile flag")
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_log_probs_under_a_block_mask_are_those_of_rows_of_their_own(policy_that_attends, groups, name, monkeypatch):
    """On a CPU FlexAttention has no backward pass, which a policy would test."""
    monkeypatch.setattr(policy_module, "_sharing_is_exact", lambda *_: True)
    with torch.compiler.set_stance("force_eager"):
        shared, apart = policy_that_attends(FLEX_ATTENTION, name=name), policy_that_attends(name=name)
        assert shared.shares_prompts
        found, expected = (PolicyTrainer(each, FLOAT32).compute_old_logprobs(groups) for each in (shared, apart))
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gradients_under_a_compiled_block_mask(policy_that_attends, make_group):
    groups = [make_group([200, 1, 0, 90], seed=1, prompt=150), make_group([64, 64], seed=2, prompt=300)]
    shared = policy_that_attends(FLEX_ATTENTION, name="llama with heads of 16", device="cuda")
    apart = policy_that_attends(name="llama with heads of 16", device="cuda")
    assert shared.shares_prompts
    (found, loss), (expected, expected_loss) = gradients(shared, groups), gradients(apart, groups)
    assert (found - expected).norm() < 1e-3 * expected.norm()
    assert loss == pytest.approx(expected_loss, abs=1e-4)


@pytest.mark.parametrize("way", [SEGMENT_ATTENTION, DENSE_MASK], ids=["segments", "dense mask"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_padding_of_rows_changes_no_result(policy_that_attends, groups, name, way):
    lengths = set()

    def records(row, device):
        lengths.add(len(row.input_ids))
        return way.arguments(row, device)

    padded = policy_that_attends(replace(way, arguments=records, is_compiled=True), name=name)
    plain = policy_that_attends(way, name=name)
    (found, loss), (expected, expected_loss) = gradients(padded, groups), gradients(plain, groups)
    assert lengths == {128}
    assert (found - expected).abs().max() < 1e-6
    assert loss == pytest.approx(expected_loss, abs=1e-6)
    results = [PolicyTrainer(each, FLOAT32).step(groups, 0.0) for each in (padded, plain)]
    assert results[0].audit.policy_logprob == pytest.approx(results[1].audit.policy_logprob, abs=1e-6)


@pytest.mark.filterwarnings("ignore:flex_attention called without", "ignore:_compile flag")
def test_flex_attention_takes_the_dtypes_of_autocast(policy_that_attends, groups, monkeypatch):
    """Rotary embeddings leave queries and keys in float32, beside values in bfloat16."""
    monkeypatch.setattr(policy_module, "_sharing_is_exact", lambda *_: True)
    seen = []

    def eager(query, key, value, **options):
        seen.append((query.dtype, key.dtype, value.dtype))
        return flex_attention(query, key, value, block_mask=options["block_mask"], enable_gqa=True)

    monkeypatch.setattr("transformers.integrations.flex_attention.compile_friendly_flex_attention", eager)
    with torch.compiler.set_stance("force_eager"):
        trainers = [
            PolicyTrainer(policy_that_attends(way), UpdateSection(dtype="bfloat16"))
            for way in (FLEX_ATTENTION, SEGMENT_ATTENTION)
        ]
        found, expected = (trainer.compute_old_logprobs(groups) for trainer in trainers)
    assert set(seen) == {(torch.bfloat16,) * 3}
    assert found == pytest.approx(expected, abs=0.1)


def test_what_fails_backward_in_the_dtype_of_training_is_not_used(make_model, monkeypatch):
    """The compiler of FlexAttention can support a size in float32 and not in bfloat16."""

    class FailsBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, hidden):
            return hidden.clone()

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("out of resource: shared memory\nRequired: 262144")

    def fails_in_half(module, query, key, value, attention_mask, **options):
        output, _ = segment_attention(module, query, key, value, attention_mask, **options)
        return (FailsBackward.apply(output) if output.dtype == torch.bfloat16 else output), None

    AttentionInterface.register("fails_in_half", fails_in_half)
    way = replace(SEGMENT_ATTENTION, implementation="fails_in_half", is_compiled=True)
    monkeypatch.setattr(policy_module, "attention_implementations", lambda _: (way, DENSE_MASK))
    in_float, in_half = CausalPolicy(make_model()), CausalPolicy(make_model(), torch.bfloat16)
    assert in_float.attention_failure is None
    assert in_float.model.config._attn_implementation == "fails_in_half"
    assert in_half.attention_failure == "out of resource: shared memory"
    assert in_half.shares_prompts
    assert in_half.model.config._attn_implementation == "sdpa"


def test_a_way_that_is_not_exact_is_passed_over(policy_that_attends, groups):
    policy = policy_that_attends(NONE, DENSE_MASK)
    assert policy.shares_prompts
    found, _ = gradients(policy, groups)
    expected, _ = gradients(policy_that_attends(), groups)
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert not policy_that_attends(NONE).shares_prompts


def test_a_way_that_the_architecture_does_not_have_is_passed_over(policy_that_attends):
    policy = policy_that_attends(RowAttention("no_such_attention", lambda row, device: {}), SEGMENT_ATTENTION)
    assert policy.model.config._attn_implementation == SEGMENT_ATTENTION.implementation


def test_a_way_that_cannot_be_compiled_is_passed_over(policy_that_attends):
    def fails(row, device):
        raise NotImplementedError("embedding dimension must be at least 16")

    policy = policy_that_attends(RowAttention("sdpa", fails), SEGMENT_ATTENTION)
    assert policy.model.config._attn_implementation == SEGMENT_ATTENTION.implementation


def test_masked_blocks_are_skipped_on_a_gpu_and_segments_multiplied_on_a_cpu():
    assert attention_implementations(torch.device("cpu")) == (SEGMENT_ATTENTION, DENSE_MASK)
    assert attention_implementations(torch.device("cuda")) == (FLEX_ATTENTION, DENSE_MASK)


def test_a_model_that_keeps_its_arguments_from_its_layers_shares_prompts_under_a_dense_mask(make_model):
    model = make_model()
    for layer in model.model.layers:
        forward = layer.self_attn.forward

        def without_segments(*arguments, forward=forward, **options):
            options.pop("segments", None)
            return forward(*arguments, **options)

        layer.self_attn.forward = without_segments
    policy = CausalPolicy(model)
    assert policy.shares_prompts
    assert policy.model.config._attn_implementation == "sdpa"


def test_a_long_row_in_which_sharing_is_not_exact_ends_it(policy_that_attends, make_group):
    """The model is exact in rows of up to 24 tokens, which is longer than the test at loading."""
    policy = policy_that_attends(SEGMENT_ATTENTION)
    layer = policy.model.model.layers[0]
    layer.register_forward_hook(lambda _, __, hidden: hidden * (1 + (hidden.shape[1] > 24)))
    trainer = PolicyTrainer(policy, FLOAT32)
    trainer.step([make_group([3, 4], seed=1)], learning_rate=0.0)
    assert policy.shares_prompts
    long = [make_group([8, 9, 7], seed=2)]
    trainer.step(long, learning_rate=0.0)
    assert not policy.shares_prompts
    found = torch.cat([parameter.grad.flatten() for parameter in policy.model.parameters()])
    expected, _ = gradients(policy_that_attends(), long)
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_a_wrong_backward_pass_is_found_out(make_model):
    """The gradient of the packed row of the test, 12 tokens, passes the residual stream only in part."""
    model = make_model()
    model.model.layers[1].register_forward_hook(
        lambda _, __, hidden: hidden.lerp(hidden.detach(), 0.5) if hidden.shape[1] == 12 else hidden
    )
    assert not CausalPolicy(model).shares_prompts


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_positions_that_depend_on_the_length_keep_prompts_apart(make_model, kind):
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4} if kind == "longrope" else {}
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64, **factors}
    config = copy.deepcopy(make_model().config)
    config.rope_parameters = rope
    assert not CausalPolicy(AutoModelForCausalLM.from_config(config)).shares_prompts
