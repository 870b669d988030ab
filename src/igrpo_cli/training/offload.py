"""Training whose float32 weights, gradients and Adam's moments are in host memory (`update.offload_optimizer`).

The device holds the weights that the passes compute with. In bfloat16 these are 2 bytes for each weight of a linear
layer of the body. Embeddings, norms and the output matrix stay in float32, as under autocast. So the passes give the
bits that they give without offloading.

A gradient leaves the device when the backward pass has computed it, and is added to those of earlier rows in float32,
while the backward pass goes on. The norm that gradients are clipped by needs all of them. So the order of a step is:
weights to the device, all rows, the global norm, clipping, AdamW on the host.
"""

from __future__ import annotations

import copy
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Semaphore
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Parameter

from igrpo_cli.errors import UsageError
from igrpo_cli.training.policy import CausalPolicy, hidden_states, probe_ids

GRADIENTS_IN_FLIGHT = 4
"""Maximum number of gradients that are on their way from the device to their sums; each has a page-locked copy."""

NOISE_FACTOR = 10
"""Maximum difference of two passes before and after rounding, in multiples of that of two equal passes."""


class HostWeights:
    """The weights of a policy in host memory, which are trained, and their copies on the device, which compute."""

    def __init__(self, policy: CausalPolicy, dtype: torch.dtype) -> None:
        """Move the weights of `policy` to the host. Its gradients go to the weights there from now on.

        Raises as `round_linear_layers`.
        """
        self.model = _copy_to_host(policy.model)
        """The model in float32, with gradients and, in the optimiser, Adam's moments."""
        self._device = policy.device
        round_linear_layers(policy, dtype)
        on_device, on_host = list(policy.model.parameters()), list(self.model.parameters())
        self._pairs = list(zip(on_device, on_host, strict=True))
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._worker = ThreadPoolExecutor(1)
        self._sums: list[Future[None]] = []
        self._in_flight = Semaphore(GRADIENTS_IN_FLIGHT)
        for computed, trained in self._pairs:
            if computed.requires_grad:
                computed.register_post_accumulate_grad_hook(partial(self._take_gradient, trained))

    def refresh(self) -> None:
        """Copy the weights to the device."""
        for computed, trained in self._pairs:
            if computed.shape != trained.shape:
                computed.data = torch.empty(trained.shape, dtype=computed.dtype, device=self._device)
            # Rounded on the host, so that fewer bytes are copied.
            computed.data.copy_(trained.detach().to(computed.dtype))

    def release(self) -> None:
        """Free the weights on the device until `refresh`."""
        for computed, _ in self._pairs:
            computed.data = torch.empty(0, dtype=computed.dtype, device=self._device)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def finish(self) -> None:
        """Wait until all gradients of the backward passes so far are in the sums."""
        sums, self._sums = self._sums, []
        for each in sums:
            each.result()

    def _take_gradient(self, trained: Parameter, computed: Tensor) -> None:
        gradient, computed.grad = computed.grad, None
        assert gradient is not None
        self._in_flight.acquire()
        copied = None
        if self._stream is not None:
            # The copy waits for the gradient, and the kernels of the backward pass do not wait for the copy.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            gradient.record_stream(self._stream)
            with torch.cuda.stream(self._stream):
                on_host = torch.empty(gradient.shape, dtype=gradient.dtype, pin_memory=True)
                gradient = on_host.copy_(gradient, non_blocking=True)
                copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                copied.record(self._stream)
        # One worker, so that the order of a sum is that of the rows.
        self._sums.append(self._worker.submit(self._add, trained, gradient, copied))

    def _add(self, trained: Parameter, gradient: Tensor, copied: torch.cuda.Event | None) -> None:
        try:
            if copied is not None:
                copied.synchronize()
            if trained.grad is None:
                # Without a copy the sum would be written into page-locked memory.
                trained.grad = gradient.to(torch.float32, copy=copied is not None)
            else:
                trained.grad.add_(gradient)
        finally:
            self._in_flight.release()


@torch.no_grad()
def round_linear_layers(policy: CausalPolicy, dtype: torch.dtype) -> None:
    """Keep the weights of linear layers in `dtype`, in which autocast computes with them anyway.

    Only layers that a pass calls count, and whose weights no other module has. Raises UsageError if the model computes
    something else afterwards, because it also reads these weights in another way.
    """
    if dtype == torch.float32:
        return
    before, called = _pass(policy, dtype)
    # Sums over experts may have another order each time on a GPU. Otherwise this is 0, and all bits have to agree.
    noise = (_pass(policy, dtype)[0] - before).norm()
    uses = Counter(id(parameter) for _, parameter in policy.model.named_parameters(remove_duplicate=False))
    for layer in called:
        for parameter in layer.parameters():
            if uses[id(parameter)] == 1:
                parameter.data = parameter.data.to(dtype)
    if (_pass(policy, dtype)[0] - before).norm() > NOISE_FACTOR * noise:
        raise UsageError(
            f"{type(policy.model).__name__} computes with weights that autocast does not round",
            hint="set update.offload_optimizer = false, or update.dtype = float32",
        )


def _pass(policy: CausalPolicy, dtype: torch.dtype) -> tuple[Tensor, list[Linear]]:
    """Return the hidden states of a short row under autocast, and the linear layers that are called."""
    layers = [
        module
        for module in policy.model.modules()
        if isinstance(module, Linear) and type(module).forward is Linear.forward and "forward" not in vars(module)
    ]
    called: dict[int, Linear] = {}

    def note(layer: Linear, _inputs: Any) -> None:
        called[id(layer)] = layer

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        with torch.autocast(policy.device.type, dtype=dtype):
            hidden_TH = hidden_states(policy.model, probe_ids(policy, 8))
    finally:
        for hook in hooks:
            hook.remove()
    return hidden_TH, list(called.values())


def _copy_to_host(model: Any) -> Any:
    """Return a copy of a model in host memory, without a second copy on the device on the way."""
    tensors: dict[int, Tensor] = {id(each): each.detach().to("cpu", copy=True) for each in model.buffers()}
    for each in model.parameters():
        tensors[id(each)] = Parameter(each.detach().to("cpu", copy=True), requires_grad=each.requires_grad)
    return copy.deepcopy(model, tensors)
