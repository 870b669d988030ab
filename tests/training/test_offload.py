"""Training with the optimiser on the host gives the weights, the files and the errors of training without."""

from __future__ import annotations

import pytest
import torch

from igrpo_cli.config.update import UpdateSection
from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.training.checkpoint import load_master_weights, load_optimizer, save_optimizer, save_policy
from igrpo_cli.training.policy import CausalPolicy, load_policy
from igrpo_cli.training.step import PolicyTrainer

CPU = torch.device("cpu")
RATE = 1e-3
DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def trainer(policy, reference=None, **changes):
    return PolicyTrainer(policy, UpdateSection(**({"max_tokens_per_batch": 12} | changes)), reference)


def weights(of):
    return {name: value.detach().clone() for name, value in of.model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@DTYPES
@pytest.mark.parametrize("name", ["llama", "qwen3", "granite", "nemotron-h"])
def test_the_weights_are_those_of_training_without(make_model, groups, dtype, name):
    on_device, on_host = (
        trainer(CausalPolicy(make_model(name)), dtype=dtype, offload_optimizer=each) for each in (False, True)
    )
    before = weights(on_host)
    for _ in range(3):
        old_logprobs = [each.compute_old_logprobs(groups) for each in (on_device, on_host)]
        results = [each.step(groups, RATE, old) for each, old in zip((on_device, on_host), old_logprobs, strict=True)]
        assert results[0].metrics == results[1].metrics
    assert same(weights(on_device), weights(on_host))
    assert not any(torch.equal(before[name], each) for name, each in weights(on_host).items() if each.ndim > 1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_a_reference_and_recomputed_activations(make_model, groups, checkpointing):
    trainers = [
        trainer(
            CausalPolicy(make_model()),
            CausalPolicy(make_model()),
            dtype="bfloat16",
            beta=0.5,
            gradient_checkpointing=checkpointing,
            offload_optimizer=each,
        )
        for each in (False, True)
    ]
    for _ in range(2):
        results = [each.step(groups, RATE) for each in trainers]
        trainers[1].release_device()
        assert results[0].metrics == results[1].metrics
    assert same(*(weights(each) for each in trainers))


def test_the_device_holds_linear_layers_in_bfloat16_and_no_gradients(make_model, groups):
    on_host = trainer(CausalPolicy(make_model("qwen3")), dtype="bfloat16", offload_optimizer=True)
    on_host.step(groups, RATE)
    for name, parameter in on_host.policy.model.named_parameters():
        is_rounded = "_proj." in name
        assert parameter.dtype == (torch.bfloat16 if is_rounded else torch.float32), name
        assert parameter.grad is None, name
    assert all(each.dtype == each.grad.dtype == torch.float32 for each in on_host.model.parameters())


def test_a_released_device_holds_nothing_and_the_next_step_is_the_same(make_model, groups):
    kept, released = (trainer(CausalPolicy(make_model()), dtype="bfloat16", offload_optimizer=True) for _ in range(2))
    for _ in range(2):
        kept.step(groups, RATE)
        released.step(groups, RATE)
        released.release_device()
        assert sum(each.numel() for each in released.policy.model.parameters()) == 0
    assert same(weights(kept), weights(released))
    assert released.is_on_host


@DTYPES
@pytest.mark.parametrize("first", [False, True])
def test_a_state_written_with_or_without_is_read_by_the_other(make_model, groups, tmp_path, dtype, first):
    make_model().save_pretrained(tmp_path / "source")
    policy_dtype = getattr(torch, dtype)
    unbroken = trainer(CausalPolicy(make_model()), dtype=dtype)
    writer = trainer(CausalPolicy(make_model()), dtype=dtype, offload_optimizer=first)
    for _ in range(2):
        unbroken.step(groups, RATE)
        writer.step(groups, RATE)
    save_policy(writer.model, tmp_path / "source", tmp_path / "policy", policy_dtype)
    save_optimizer(tmp_path / "optimizer", writer.optimizer, writer.model, with_master_weights=True)
    reader = trainer(load_policy(tmp_path / "policy", CPU), dtype=dtype, offload_optimizer=not first)
    load_master_weights(tmp_path / "optimizer", reader.model, tmp_path / "policy", policy_dtype)
    load_optimizer(tmp_path / "optimizer", reader.optimizer, reader.model)
    for _ in range(2):
        unbroken.step(groups, RATE)
        reader.step(groups, RATE)
    assert same(weights(unbroken), weights(reader))


def test_the_files_have_the_same_bytes(make_model, groups, tmp_path):
    for each in (False, True):
        written = trainer(CausalPolicy(make_model()), dtype="bfloat16", offload_optimizer=each)
        written.step(groups, RATE)
        save_optimizer(tmp_path / str(each), written.optimizer, written.model, with_master_weights=True)
    for name in ("adam.safetensors", "master.safetensors"):
        assert (tmp_path / "True" / name).read_bytes() == (tmp_path / "False" / name).read_bytes()


def test_gradients_are_clipped_by_the_same_norm(make_model, groups):
    norm = trainer(CausalPolicy(make_model())).step(groups, 0.0).metrics["grad_norm"]
    clipped = trainer(CausalPolicy(make_model()), offload_optimizer=True, max_grad_norm=norm / 2)
    assert clipped.step(groups, 0.0).metrics["grad_norm"] == norm
    left = torch.cat([each.grad.flatten() for each in clipped.model.parameters()]).norm().item()
    assert left == pytest.approx(norm / 2, rel=1e-5)


def test_a_gradient_is_that_without_offloading(make_model, groups):
    found, expected = (
        trainer(CausalPolicy(make_model()), offload_optimizer=each).gradient(groups) for each in (True, False)
    )
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_step_that_fails_leaves_nothing_in_the_next_one(make_model, groups):
    tested, expected = (
        trainer(CausalPolicy(make_model()), dtype="float32", offload_optimizer=each) for each in (True, False)
    )
    layer = tested.policy.model.model.layers[1].mlp.down_proj
    broken = layer.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = weights(tested)
    with pytest.raises(IgrpoError, match=r"gradient norm is .* in model\.layers\.1\.mlp\.down_proj\.weight"):
        tested.step(groups, RATE)
    assert same(weights(tested), before)
    broken.remove()
    tested.step(groups, RATE)
    expected.step(groups, RATE)
    assert same(weights(tested), weights(expected))


def test_a_model_that_reads_its_weights_past_autocast_is_refused(make_model):
    model = make_model()
    layer = model.model.layers[0].mlp.down_proj
    layer.register_forward_hook(lambda module, _, output: output * module.weight.float().sum())
    with pytest.raises(UsageError, match="LlamaForCausalLM computes with weights that autocast does not round"):
        trainer(CausalPolicy(model), dtype="bfloat16", offload_optimizer=True)
