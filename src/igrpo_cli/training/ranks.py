"""The processes that take one update together: one alone, or those that torchrun started.

Several shard the policy with FSDP2: each holds its part of weights, gradients and Adam's moments, and gathers a layer
for as long as it computes with it. Rows are dealt out by cost. Every rank sees the whole batch, so that the weights of
the loss are those of one process; what the ranks found is added up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from igrpo_cli.devices import describe_device, find_device
from igrpo_cli.torchrun import rank_and_size

_T = TypeVar("_T")


class Ranks:
    """One process of an update, and what it needs of the others; alone it needs nothing."""

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank = rank
        self.size = size
        self.device = device or find_device("auto")

    def describe(self) -> str:
        """The device in words, for manifests."""
        ranks = f", {self.size} ranks" if self.size > 1 else ""
        return f"{describe_device(self.device)}{ranks}"

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes what is not sharded."""
        return self.rank == 0

    def share(self, value: _T) -> _T:
        """The value of the first rank, on all of them."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Until all ranks have come here."""
        if self.size > 1:
            dist.barrier()

    def add_up(self, array: np.ndarray) -> np.ndarray:
        """The sum of every rank's array of this shape, on all of them."""
        if self.size == 1:
            return array
        tensor = torch.from_numpy(np.array(array, order="C")).to(self.device)
        dist.all_reduce(tensor)
        return tensor.cpu().numpy()

    def deal(self, items: Sequence[_T], costs: Sequence[float]) -> list[tuple[_T, bool]]:
        """The items of this rank, and whether each counts: all ranks get as many, so that none waits for ever.

        The dearest goes to the rank with the least so far. A rank that would have fewer gets an item over again that
        does not count.
        """
        if self.size == 1 or not items:
            return [(item, True) for item in items]
        dealt: list[list[int]] = [[] for _ in range(self.size)]
        loads = [0.0] * self.size
        for index in sorted(range(len(items)), key=lambda index: (-costs[index], index)):
            rank = min(range(self.size), key=lambda rank: (loads[rank], rank))
            dealt[rank].append(index)
            loads[rank] += costs[index]
        own, most = sorted(dealt[self.rank]), max(map(len, dealt))
        cheapest = min(range(len(items)), key=lambda index: (costs[index], index))
        return [(items[index], True) for index in own] + [(items[cheapest], False)] * (most - len(own))

    def shard(self, module: torch.nn.Module, layers: Sequence[torch.nn.Module], dtype: torch.dtype) -> None:
        """Shard `module` over the ranks, each of `layers` by itself; gradients are sums over the ranks.

        In another `dtype` than float32 that is what is gathered and computed with; the shards stay float32.
        """
        mesh = init_device_mesh(self.device.type, (self.size,))
        half = None if dtype == torch.float32 else dtype
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for part in (*layers, module):
            fully_shard(part, mesh=mesh, mp_policy=policy)
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)


def reshard(module: torch.nn.Module) -> None:
    """Let go of weights that a forward pass has gathered and no backward pass has let go of."""
    if isinstance(module, FSDPModule):
        module.reshard()


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The ranks that torchrun started, this process among them; one alone where it did not."""
    rank, size = rank_and_size()
    if size == 1:
        yield Ranks()
        return
    device = find_device("auto")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(rank, size, device)
    finally:
        dist.destroy_process_group()


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, all of it; every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, the same on every rank, sharded as `other` is; every rank must ask."""
    if not isinstance(other, DTensor):
        return tensor
    sharded: Tensor = distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
    return sharded


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether the weights of a model are spread over ranks."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
