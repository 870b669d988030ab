"""The memory that a computation on fake tensors would take: bytes of live storages by part, and their peak.

Fake tensors (torch.subclasses.fake_tensor) have shapes, dtypes and storages, but no values. A step on them runs the
code of a real step, allocates what it allocates and frees it when it does, in seconds and without the memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Part = str
"""What memory is used for, one of `PARTS`."""
PARTS = (
    "weights",
    "reference",
    "gradients",
    "optimizer",
    "weight_copies",
    "gathered",
    "activations",
    "head",
    "published",
)
"""Weights and gradients in float32, moments of the optimiser, copies of weights in the dtype of autocast, layers that
are gathered from all ranks with their gradients, activations and masks, chunks of logits, the weights to publish."""

_FLAT = 2**20
"""Elements above which a vector is a buffer of FSDP, and not a value for each token."""
_LOGSUMEXP = torch.ops.aten.logsumexp.default
_WAIT = torch.ops._c10d_functional.wait_tensor.default


class UnknownValues(TorchFunctionMode):
    """Answers code that reads a value of a fake tensor: every number is 0 and every condition holds.

    The update reads values to refuse those that are not finite, and for metrics.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, or return its answer for a fake tensor."""
        if args and isinstance(args[0], FakeTensor):
            if func is Tensor.numpy:
                return np.zeros(tuple(args[0].shape), np.float32)
            if func in (Tensor.item, Tensor.__float__):
                return 0.0
            if func is Tensor.__bool__:
                return True
        return func(*args, **(kwargs or {}))


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of live storages by part, from the results of all operations, and remembers their peak.

    A storage is counted once, however many tensors share it, until it is freed or resized. What a kernel allocates
    within itself is not seen, except for logsumexp, whose copy of its input is known.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parts: dict[Part, int] = dict.fromkeys(PARTS, 0)
        self.peak: dict[Part, int] = dict(self.parts)
        """Bytes by part at the moment of the highest total."""
        self.elsewhere: frozenset[Part] = frozenset()
        """Parts that are in other memory, and count in no total."""
        self._highest = 0
        self._storages: dict[int, tuple[int, Part, Any]] = {}
        self._weights: set[int] = set()
        self._shapes: set[tuple[int, ...]] = set()
        self._vocab_size = -1
        self._part: Part | None = None
        self._of_weight_shape: Part = "gradients"
        self._is_paused = False

    def start_peak(self) -> None:
        """Forget the peak so far."""
        self._highest, self.peak = self._total(), self._counted()

    def add_weights(self, parameters: Sequence[Tensor], part: Part, *, vocab_size: int, is_sharded: bool) -> None:
        """Count parameters as `part`, and recognise their copies and gradients, and logits of `vocab_size`."""
        for parameter in parameters:
            self.assign(parameter, part)
            self._weights.add(_local(parameter).untyped_storage()._cdata)
            shape = tuple(parameter.shape)
            if len(shape) > 1:
                self._shapes |= {shape, (*shape[:-2], shape[-1], shape[-2])}
        self._vocab_size = vocab_size
        # Between layers, ranks hold shards: what has the shape of a whole weight is gathered, or its gradient.
        self._of_weight_shape = "gathered" if is_sharded else "gradients"

    def assign(self, tensor: Tensor | None, part: Part) -> None:
        """Count the storage of a tensor as `part` from now on."""
        if tensor is None:
            return
        storage = _local(tensor).untyped_storage()
        self._add(storage, part)
        size, before, reference = self._storages[storage._cdata]
        self.parts[before] -= size
        self.parts[part] += size
        self._storages[storage._cdata] = (size, part, reference)

    @contextmanager
    def counting_as(self, part: Part) -> Iterator[None]:
        """Count all that is allocated within the context as `part`."""
        before, self._part = self._part, part
        try:
            yield
        finally:
            self._part = before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing that is allocated within the context."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` and count the storages of its results."""
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # It calls operations on the shards, which are counted.
        if func is _LOGSUMEXP:
            size = args[0].numel() * args[0].element_size()
            self._change("head", size)
            self._change("head", -size)
        if func is _WAIT:
            return args[0]  # Its implementation for fake tensors makes a new tensor; the real one waits.
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and not self._is_paused:
                self._add(each.untyped_storage(), self._part or self._part_of(func, args, each))
        return result

    def _part_of(self, func: Any, args: Any, result: Tensor) -> Part:
        """Return the part of a new storage."""
        is_flat = self._of_weight_shape == "gathered" and result.ndim == 1 and result.numel() > _FLAT
        if is_flat or func.namespace in ("fsdp", "c10d", "_c10d_functional"):
            return "gathered"
        is_copy = func is torch.ops.aten._to_copy.default
        if is_copy and args[0].untyped_storage()._cdata in self._weights:
            return "weight_copies"
        shape = tuple(result.shape)
        if shape in self._shapes:
            return self._of_weight_shape
        return "head" if len(shape) == 2 and shape[1] == self._vocab_size else "activations"

    def _add(self, storage: Any, part: Part) -> None:
        key = storage._cdata
        if key in self._storages:
            return
        size = storage.nbytes()
        self._storages[key] = (size, part, weakref.ref(storage, lambda _: self._drop(key)))
        self._change(part, size)

    def _drop(self, key: int) -> None:
        size, part, _ = self._storages.pop(key)
        self._weights.discard(key)
        self._change(part, -size)

    def _change(self, part: Part, size: int) -> None:
        self.parts[part] += size
        if (total := self._total()) > self._highest:
            self._highest, self.peak = total, self._counted()

    def _total(self) -> int:
        return sum(self._counted().values())

    def _counted(self) -> dict[Part, int]:
        return {part: 0 if part in self.elsewhere else size for part, size in self.parts.items()}

    def resized(self, storage: Any) -> None:
        """Count a storage that FSDP has freed or allocated again: that of a gathered layer."""
        key = storage._cdata
        if key in self._storages:
            before, part, reference = self._storages[key]
            self._change(part, -before)
            size = storage.nbytes()
            self._storages[key] = (size, "gathered", reference)
            self._change("gathered", size)


@contextmanager
def fake_memory() -> Iterator[LiveMemory]:
    """Run the context on fake tensors, without values, and yield the count of their memory."""
    memory, resize = LiveMemory(), torch.UntypedStorage.resize_
    propagate = ShardingPropagator._propagate_tensor_meta_non_cached

    def resize_and_count(storage: Any, size: int) -> Any:
        result = resize(storage, size)
        memory.resized(storage)
        return result

    def propagate_without_count(*args: Any) -> Any:
        with memory.paused():
            return propagate(*args)

    with (
        # No dispatch mode sees this method.
        patch.object(torch.UntypedStorage, "resize_", resize_and_count),
        # It infers the shapes of sharded results with fake tensors of its own, which a real step has too.
        patch.object(ShardingPropagator, "_propagate_tensor_meta_non_cached", propagate_without_count),
        # Batches are made with numpy, and become fake tensors with their first use.
        FakeTensorMode(allow_non_fake_inputs=True),
        UnknownValues(),
        memory,
    ):
        yield memory


def _local(tensor: Tensor) -> Tensor:
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor
