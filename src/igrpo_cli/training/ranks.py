"""The ranks of an update: one process, or those that torchrun started.

Several ranks shard the policy with FSDP2. Each holds its part of weights, gradients and Adam's moments, and gathers a
layer while it computes with it. Rows are distributed by cost. Every rank sees the whole batch, so the weights of the
loss are those of a single process, and the results of all ranks are summed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor

from igrpo_cli.devices import describe_device, find_device
from igrpo_cli.errors import Interrupted
from igrpo_cli.torchrun import rank_and_size

_T = TypeVar("_T")

MINUTES_TO_JOIN = timedelta(minutes=30)
"""Time that the ranks of an update wait for the last one to join."""


class Ranks:
    """One rank of an update, and its communication with the others. A single rank does not communicate."""

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank = rank
        self.size = size
        self.device = device or find_device("auto")

    def describe(self) -> str:
        """Return a description of the device for manifests."""
        ranks = f", {self.size} ranks" if self.size > 1 else ""
        return f"{describe_device(self.device)}{ranks}"

    @property
    def is_first(self) -> bool:
        """True for the rank that writes files that are not sharded."""
        return self.rank == 0

    def broadcast(self, value: _T) -> _T:
        """Return the value of the first rank on all ranks."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def mesh(self) -> DeviceMesh:
        """Return the mesh of all ranks."""
        return init_device_mesh(self.device.type, (self.size,))

    def barrier(self) -> None:
        """Wait until all ranks have called this."""
        if self.size > 1:
            dist.barrier()

    def sum(self, array: np.ndarray) -> np.ndarray:
        """Return the sum of the arrays of all ranks on all ranks. They have equal shapes."""
        if self.size == 1:
            return array
        tensor = torch.from_numpy(np.array(array, order="C")).to(self.device)
        dist.all_reduce(tensor)
        return tensor.cpu().numpy()

    def distribute(self, items: Sequence[_T], costs: Sequence[float]) -> list[tuple[_T, bool]]:
        """Return the items of this rank, each with True if it counts.

        The most expensive item goes to the rank with the lowest load so far. All ranks get the same number of items,
        because FSDP would wait forever otherwise: ranks with fewer get the cheapest item again, which does not count.
        """
        if self.size == 1 or not items:
            return [(item, True) for item in items]
        assigned: list[list[int]] = [[] for _ in range(self.size)]
        loads = [0.0] * self.size
        for index in sorted(range(len(items)), key=lambda index: (-costs[index], index)):
            rank = min(range(self.size), key=lambda rank: (loads[rank], rank))
            assigned[rank].append(index)
            loads[rank] += costs[index]
        own, largest = sorted(assigned[self.rank]), max(map(len, assigned))
        cheapest = min(range(len(items)), key=lambda index: (costs[index], index))
        return [(items[index], True) for index in own] + [(items[cheapest], False)] * (largest - len(own))

    def shard(
        self, module: torch.nn.Module, layers: Sequence[torch.nn.Module], dtype: torch.dtype, *, offload: bool = False
    ) -> None:
        """Shard `module` over the ranks, with each of `layers` as a unit. Gradients are summed over the ranks.

        The shards are float32. Layers are gathered in `dtype`, in which autocast would compute with them anyway. What
        lies outside of the layers is gathered in float32: embeddings, whose rows add up in the residual stream, and the
        output matrix, whose gradient is a sum over the chunks of a row and, if the two are tied, over both uses.

        With `offload` the shards, their gradients and Adam's moments are in host memory.
        """
        mesh = self.mesh()
        half = None if dtype == torch.float32 else dtype
        # Page-locked memory, which copies are fastest from, is of use to GPUs only.
        place = CPUOffloadPolicy(pin_memory=self.device.type == "cuda") if offload else OffloadPolicy()
        for part in (*layers, module):
            gathered = None if part is module else half
            policy = MixedPrecisionPolicy(gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)
            fully_shard(part, mesh=mesh, mp_policy=policy, offload_policy=place)
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)


def reshard(module: torch.nn.Module) -> None:
    """Free weights that a forward pass has gathered and no backward pass has freed."""
    if isinstance(module, FSDPModule):
        module.reshard()


def launch_store(name: str, timeout: timedelta) -> Store:
    """Return the part of torchrun's key-value store that is called `name`, empty when ranks are restarted.

    Raises torch.distributed.DistError if it does not answer within `timeout`.
    """
    store, _, _ = next(rendezvous("env://", timeout=timeout))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"{name}/{attempt}", store)


@contextmanager
def joined_ranks(name: str) -> Iterator[Ranks]:
    """Join the ranks that torchrun started. Yields a single rank if it did not start this process.

    `name` is what they join for. A launch joins for each name once, since the store keeps the addresses of the ranks.
    Raises Interrupted if another rank has ended.
    """
    rank, size = rank_and_size()
    if size == 1:
        yield Ranks()
        return
    device = find_device("auto")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    store = launch_store(name, MINUTES_TO_JOIN)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        try:
            yield Ranks(rank, size, device)
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:
        # gloo raises no class of its own.
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise Interrupted(
            f"rank {rank} has lost the others ({str(error).partition(chr(10))[0]})",
            hint="the rank that failed first says why; run the same command again to continue",
        ) from error


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be sharded. Every rank must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_shard(tensor: Tensor) -> Tensor:
    """Return the part of a tensor on this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a tensor that is equal on all ranks, sharded like `other`. Every rank must call this."""
    if not isinstance(other, DTensor):
        return tensor
    sharded: Tensor = distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
    return sharded


def is_sharded(model: torch.nn.Module) -> bool:
    """Return True if the weights of a model are sharded."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
