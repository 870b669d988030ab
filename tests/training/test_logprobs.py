"""Chunked log-probs equal those of all logits at once, and never compute all logits at once."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from igrpo_cli.training import logprobs
from igrpo_cli.training.logprobs import OutputHead, token_logprobs

K, H, V = 11, 6, 23


def inputs(*, bias=False, softcap=None, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(K, H, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(V, H, generator=generator, dtype=dtype).requires_grad_()
    bias_V = torch.randn(V, generator=generator, dtype=dtype).requires_grad_() if bias else None
    targets = torch.randint(0, V, (K,), generator=generator)
    temperatures = torch.rand(K, generator=generator, dtype=dtype) + 0.5
    return hidden, OutputHead(weight, bias_V, softcap, scale), targets, temperatures


def all_at_once(hidden, head, targets, temperatures):
    logits = hidden @ head.weight.T + (0 if head.bias is None else head.bias)
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    distribution = torch.distributions.Categorical(logits=logits / temperatures[:, None])
    return distribution.log_prob(targets), distribution.entropy()


@pytest.fixture(params=[1, 4 * V, 1000 * V])
def chunk(request, monkeypatch):
    monkeypatch.setattr(logprobs, "MAX_LOGITS_IN_CHUNK", request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_values_and_gradients_are_those_of_the_full_softmax(bias, softcap, scale):
    arguments = inputs(bias=bias, softcap=softcap, scale=scale)
    found, entropies = token_logprobs(*arguments)
    expected, expected_entropies = all_at_once(*arguments)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(entropies, expected_entropies)
    hidden, head, *_ = arguments
    wanted = [hidden, head.weight, *([] if head.bias is None else [head.bias])]
    upstream = torch.linspace(-1, 2, K, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(found, wanted, upstream), torch.autograd.grad(expected, wanted, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_uniform_distribution_has_the_entropy_of_its_size():
    hidden, head, targets, temperatures = inputs()
    found, entropies = token_logprobs(torch.zeros_like(hidden), head, targets, temperatures)
    torch.testing.assert_close(found, torch.full_like(found, -torch.log(torch.tensor(float(V))).item()))
    torch.testing.assert_close(entropies, -found)


def test_a_certain_token_has_log_prob_and_entropy_zero():
    head = OutputHead(torch.tensor([[1000.0], [0.0]]), None, None)
    found, entropies = token_logprobs(torch.ones(1, 1), head, torch.tensor([0]), torch.ones(1))
    assert found.tolist() == [0.0]
    assert entropies.tolist() == [0.0]


def test_the_temperature_divides_the_logits():
    head = OutputHead(torch.tensor([[2.0], [0.0]]), None, None)
    found, _ = token_logprobs(torch.ones(2, 1), head, torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
    expected = torch.tensor([2.0, 1.0]).sigmoid().log()
    torch.testing.assert_close(found, expected)


def test_the_entropy_carries_no_gradient():
    _, entropies = token_logprobs(*inputs())
    assert not entropies.requires_grad


def test_a_frozen_head_gets_no_gradient():
    hidden, head, targets, temperatures = inputs()
    frozen = OutputHead(head.weight.detach(), None, None)
    token_logprobs(hidden, frozen, targets, temperatures)[0].sum().backward()
    assert hidden.grad is not None


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements of a tensor that an operation creates."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def test_no_tensor_holds_the_logits_of_all_tokens(monkeypatch):
    monkeypatch.setattr(logprobs, "MAX_LOGITS_IN_CHUNK", 16 * V)
    hidden = torch.randn(500, H, requires_grad=True)
    head = OutputHead(torch.randn(V, H, requires_grad=True), None, 3.0)
    with LargestTensor() as seen:
        token_logprobs(hidden, head, torch.zeros(500, dtype=torch.int64), torch.ones(500))[0].sum().backward()
    assert seen.largest <= max(16 * V, 500 * H)


def test_under_autocast_the_product_is_bfloat16_and_the_rest_float32():
    hidden, head, targets, temperatures = inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, entropies = token_logprobs(hidden, head, targets, temperatures)
    expected, expected_entropies = all_at_once(
        hidden.bfloat16().float(), OutputHead(head.weight.bfloat16().float(), None, None), targets, temperatures
    )
    assert found.dtype == entropies.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.01)
    found.sum().backward()
    assert hidden.grad.dtype == head.weight.grad.dtype == torch.float32
    torch.testing.assert_close(entropies, expected_entropies, atol=0.05, rtol=0.01)


def test_the_gradient_of_weights_in_bfloat16_is_summed_over_chunks_in_float32(monkeypatch):
    hidden, head, targets, temperatures = inputs(dtype=torch.float32)
    hidden = hidden.detach().repeat(200, 1).bfloat16()
    weight = head.weight.detach().bfloat16().requires_grad_()
    arguments = (OutputHead(weight, None, None), targets.repeat(200), temperatures.detach().repeat(200))
    found = []
    for chunk in (V, 1000 * K * V):
        monkeypatch.setattr(logprobs, "MAX_LOGITS_IN_CHUNK", chunk)
        token_logprobs(hidden, *arguments)[0].sum().backward()
        found.append(weight.grad.float())
        weight.grad = None
    assert (found[0] - found[1]).norm() < 0.01 * found[1].norm()


def test_chunks_grow_with_the_memory_of_a_gpu():
    gigabytes = {16: 2**25, 24: 2**25, 80: 2**27, 141: 2**28}
    assert {each: logprobs.max_logits_in_chunk(each * 10**9) for each in gigabytes} == gigabytes
