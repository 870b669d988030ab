"""Predict the memory of an update: run its step and its publication on fake tensors, from the model's config alone.

The rows are the longest ones that the update has, and the step is a later one: Adam's moments exist, and the gradients
of earlier rows too if a rank has several. A GPU is predicted with tensors of the CPU, whatever torch is installed:
under the row limits, the dtype and the attention of a GPU.

Several ranks are predicted by the code of one of them, sharded with FSDP2 in a process group that communicates with
nobody (`fake` of torch).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from igrpo_cli.config.update import PolicySection, UpdateSection
from igrpo_cli.devices import has_fast_bfloat16
from igrpo_cli.engines.hub import unloaded_causal_lm
from igrpo_cli.errors import IgrpoError
from igrpo_cli.records import TrainingGroup
from igrpo_cli.training import logprobs
from igrpo_cli.training.adapters import add_adapters
from igrpo_cli.training.attention import DENSE_MASK, FLEX_ATTENTION, SEGMENT_ATTENTION, RowAttention
from igrpo_cli.training.checkpoint import gather_weights
from igrpo_cli.training.live_memory import LiveMemory, Part, fake_memory
from igrpo_cli.training.logprobs import chunks
from igrpo_cli.training.offload import GRADIENTS_IN_FLIGHT
from igrpo_cli.training.optimizer import apply_gradients, trainable_parameters
from igrpo_cli.training.packing import PackedRow, TrainingBatch, flatten_groups
from igrpo_cli.training.policy import CausalPolicy, may_share_prompts
from igrpo_cli.training.ranks import Ranks
from igrpo_cli.training.step import PlannedRows, PolicyTrainer, row_limits

MIN_FLEX_HEAD = 16
"""Smallest head size of FlexAttention on a GPU."""
GPU_ATTENTION = "igrpo_gpu_attention"
"""Name of `gpu_attention` in transformers."""


ON_HOST: frozenset[Part] = frozenset({"weights", "reference", "gradients", "optimizer", "weight_copies"})
"""Parts that are in host memory with `update.offload_optimizer`, or are computed with in another form."""


class UnpredictableError(IgrpoError):
    """The memory of a model cannot be predicted."""


@dataclass(frozen=True, slots=True)
class MemoryPrediction:
    """The predicted memory of an update, in bytes of one rank."""

    step: Mapping[Part, int]
    """Parts at the peak of the optimiser step."""
    publication: Mapping[Part, int]
    """Parts at the peak of the publication, when the new weights are gathered for `policies/`."""
    state: int
    """Weights, gradients and moments: what no setting of the rows changes."""
    num_trainable: int
    """Trained parameters of the whole model."""
    num_parameters: int
    """All parameters of the whole model, without adapters."""
    published: int
    """Bytes of the published policy."""
    row_tokens: int
    """Tokens of the longest row."""
    row_completion_tokens: int
    """Completion tokens that it predicts."""
    attention: str
    """Attention of packed rows: `flex`, `segments`, `mask`, or `causal` for one completion per row."""
    dtype: str
    """Dtype of the forward and backward pass."""

    @property
    def account(self) -> Mapping[Part, int]:
        """Parts at the peak of the update."""
        return max(self.step, self.publication, key=lambda parts: sum(parts.values()))

    @property
    def peak(self) -> int:
        """Peak memory of the update on one device."""
        return sum(self.account.values())


def predict_memory(
    directory: Path,
    config: UpdateSection,
    policy_config: PolicySection,
    minibatches: Sequence[Sequence[TrainingGroup]],
    *,
    device_type: str,
    num_ranks: int = 1,
    total_groups: int | None = None,
) -> MemoryPrediction:
    """Return the memory that an update takes on a device of `device_type`, `cuda` or `cpu`.

    `directory` holds the configuration of the model; weights are not read. `minibatches` are the groups of the
    optimiser steps. `total_groups` is the number of groups of a step where `minibatches` hold only some of them.

    Raises UnpredictableError for a model that does not run on fake tensors, for example because its shapes depend on
    values, as those of a router of experts do.
    """
    try:
        return _predict(directory, config, policy_config, minibatches, device_type, num_ranks, total_groups)
    except IgrpoError:
        raise
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise UnpredictableError(
            f"the model in {directory} does not run without values: {type(error).__name__}: {first}"
        ) from error


def memory_of_gpu() -> int | None:
    """Return the bytes of the first GPU of this machine; None without a GPU."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def _predict(
    directory: Path,
    config: UpdateSection,
    policy_config: PolicySection,
    minibatches: Sequence[Sequence[TrainingGroup]],
    device_type: str,
    num_ranks: int,
    total_groups: int | None,
) -> MemoryPrediction:
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device_type != "cpu" or has_fast_bfloat16(torch.device("cpu")) else "float32"
    # The loss is a function of a number per token. Those of dapo and cispo count tokens, for which they need values.
    # Offloading changes where the weights are, which is counted here, and not what is computed.
    changed = {"dtype": dtype, "loss_type": "grpo", "offload_optimizer": False}
    offloads = config.offload_optimizer and device_type != "cpu"
    section = config.model_copy(update=changed)
    trust = policy_config.trust_remote_code
    with (
        _pretended_ranks(num_ranks) as ranks,
        # All chunks of logits take the same memory.
        patch.object(logprobs, "chunks", lambda *of: islice(chunks(*of), 2)),
        fake_memory() as memory,
    ):
        with memory.counting_as("weights"):
            policy = _UnloadedPolicy(unloaded_causal_lm(directory, trust_remote_code=trust), device_type)
            num_parameters = sum(each.numel() for each in policy.model.parameters())
            if config.lora_r:
                # Modules of fake tensors cannot be moved, and peft moves adapters to where they are already.
                with patch.object(torch.nn.Module, "to", lambda module, *_args, **_options: module):
                    add_adapters(policy.model, section, seed=0)
        reference = None
        if config.beta:
            with memory.counting_as("reference"):
                reference = _UnloadedPolicy(unloaded_causal_lm(directory, trust_remote_code=trust), device_type)
        trainer = _LongestRowTrainer(policy, section, reference, ranks, memory, device_type)
        if offloads:
            memory.elsewhere = ON_HOST if num_ranks == 1 else ON_HOST - {"weight_copies"}
        trainer.take_step(minibatches, total_groups)
        left = _left_on_device(policy, reference, getattr(torch, dtype)) if offloads and num_ranks == 1 else {}
        step = {**memory.peak, **left}
        kept = ("weights", "reference", "gradients", "optimizer")
        state = sum(left.get(part, 0) if offloads else memory.parts[part] for part in kept)
        memory.start_peak()
        with memory.counting_as("published"):
            published = gather_weights(policy.model, directory, getattr(torch, policy_config.dtype))
        unique = {id(each): each.numel() * each.element_size() for each in published.values()}
        return MemoryPrediction(
            step=step,
            publication=left if offloads else memory.peak,
            state=state,
            num_trainable=trainer.num_trainable_parameters,
            num_parameters=num_parameters,
            published=sum(unique.values()),
            row_tokens=len(trainer.longest.input_ids),
            row_completion_tokens=len(trainer.longest.token),
            attention=policy.attention_name,
            dtype=dtype,
        )


def _left_on_device(policy: CausalPolicy, reference: CausalPolicy | None, dtype: torch.dtype) -> dict[Part, int]:
    """Return what a device holds of weights and gradients with `update.offload_optimizer` (`offload.HostWeights`).

    Weights of linear layers of the body are in `dtype`, the others in float32. The largest gradients may be on their
    way at the same time.
    """
    head = policy.model.get_output_embeddings()
    uses = Counter(id(each) for _, each in policy.model.named_parameters(remove_duplicate=False))
    in_dtype = {
        id(parameter)
        for module in policy.model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
        for parameter in module.parameters()
        if uses[id(parameter)] == 1
    }
    half = dtype.itemsize
    sizes = [each.numel() * (half if id(each) in in_dtype else 4) for each in policy.model.parameters()]
    copies = head.weight.numel() * half if dtype != torch.float32 else 0
    return {
        "weights": sum(sizes),
        "reference": 0 if reference is None else sum(sizes),
        "gradients": sum(sorted(sizes)[-GRADIENTS_IN_FLIGHT:]),
        "weight_copies": copies,
    }


class _UnloadedPolicy(CausalPolicy):
    """A policy without weights, with the attention that a loaded one would find on a device."""

    def __init__(self, model: Any, device_type: str) -> None:
        self._device_type = device_type
        self.attention_name = "causal"
        super().__init__(model)

    def _probe(self, dtype: torch.dtype) -> None:
        if not may_share_prompts(self.model):
            return
        head_size = _head_size(self.model.config.get_text_config())
        fastest = FLEX_ATTENTION if self._device_type == "cuda" else SEGMENT_ATTENTION
        try:
            if fastest is FLEX_ATTENTION and head_size < MIN_FLEX_HEAD:
                raise ValueError("FlexAttention has no kernel for this head size")
            self.model.set_attn_implementation(fastest.implementation)
        except (ValueError, ImportError):
            self.model.set_attn_implementation(DENSE_MASK.implementation)
            self.attention_name, self._attention = "mask", DENSE_MASK
            return
        self.attention_name, self._attention = "segments", fastest
        if fastest is FLEX_ATTENTION:
            self.model.set_attn_implementation(GPU_ATTENTION)
            # A block mask has a few bytes for 128 x 128 pairs of tokens.
            self.attention_name, self._attention = "flex", RowAttention(GPU_ATTENTION, lambda _row, _device: {})

    def can_share(self, row: PackedRow, tolerance: float) -> bool:
        """Return True: the test of the longest row takes less memory than the step on it."""
        return True


class _LongestRowTrainer(PolicyTrainer):
    """A trainer on fake tensors whose step goes through the longest row only."""

    longest: PackedRow

    def __init__(
        self,
        policy: _UnloadedPolicy,
        config: UpdateSection,
        reference: CausalPolicy | None,
        ranks: Ranks,
        memory: LiveMemory,
        device_type: str,
    ) -> None:
        with memory.counting_as("weights"):
            super().__init__(policy, config, reference, ranks)
        self._limits = row_limits(policy, config.max_tokens_per_batch, device_type)
        self._memory = memory
        self._accumulates = False
        vocab_size, is_sharded = policy.vocab_size, ranks.size > 1
        for part, each in (("reference", self.reference), ("weights", policy)):
            if each is not None:
                parameters = list(each.model.parameters())
                memory.add_weights(parameters, part, vocab_size=vocab_size, is_sharded=is_sharded)

    def take_step(self, minibatches: Sequence[Sequence[TrainingGroup]], total_groups: int | None) -> None:
        """Take the step of the minibatch with the longest row, with moments and gradients of earlier steps and rows."""
        memory, parameters = self._memory, trainable_parameters(self.policy.model).values()
        with memory.counting_as("optimizer"):
            # The first step makes the moments; its gradients are of no interest.
            apply_gradients(self.optimizer, self.policy.model, 0.0, 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        found = [self._longest_of(groups, total_groups) for groups in minibatches]
        index = max(range(len(found)), key=lambda number: _length(found[number][0]))
        self.longest, num_rows = found[index]
        self._accumulates = num_rows > self.ranks.size
        count = self._count_gradient
        hooks = [each.register_post_accumulate_grad_hook(count) for each in parameters]  # type: ignore[no-untyped-call]
        memory.start_peak()
        self.step(minibatches[index], 0.0)
        for hook in hooks:
            hook.remove()

    def _count_gradient(self, parameter: Tensor) -> None:
        self._memory.assign(parameter.grad, "gradients")

    def _longest_of(self, groups: Sequence[TrainingGroup], total_groups: int | None) -> tuple[PackedRow, float]:
        """Return the longest row of a batch and the number of its rows."""
        rows = super()._plan(flatten_groups(groups, self.policy.vocab_size))
        trained = rows.with_gradient or rows.without_gradient
        return max(trained, key=_length), len(trained) * (total_groups or len(groups)) / len(groups)

    def _plan(self, batch: TrainingBatch) -> PlannedRows:
        return PlannedRows(with_gradient=[self.longest], without_gradient=[])

    def _of_this_rank(self, rows: list[PackedRow]) -> list[tuple[PackedRow, bool]]:
        if rows and self._accumulates:
            with self._memory.counting_as("gradients"):
                for parameter in trainable_parameters(self.policy.model).values():
                    parameter.grad = torch.zeros_like(parameter)
        return [(row, True) for row in rows]


class _PretendedRanks(Ranks):
    """One of several ranks, in a process group that communicates with nobody."""

    def __init__(self, size: int) -> None:
        super().__init__(0, size, torch.device("cpu"))
        # It computes with numbers of ranks, which must be real tensors.
        self._mesh = init_device_mesh("cpu", (size,)) if size > 1 else None

    def mesh(self) -> DeviceMesh:
        """Return the mesh of all ranks."""
        assert self._mesh is not None
        return self._mesh


@contextmanager
def _pretended_ranks(size: int) -> Iterator[Ranks]:
    if size == 1:
        yield _PretendedRanks(1)
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        yield _PretendedRanks(size)
    finally:
        dist.destroy_process_group()


def gpu_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Allocate what FlexAttention allocates on a GPU, and compute nothing.

    `query` is [1, A, T, D]; `key` and `value` may have fewer heads. Returns [1, T, A, D].
    """
    heads = query.shape[1]
    if heads & (heads - 1):
        # As transformers does: its kernel shares keys among a power of 2 of heads only.
        key, value = (repeat_kv(each, heads // each.shape[1]) for each in (key, value))
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (each.to(torch.get_autocast_dtype("cpu")) for each in (query, key, value))
    output: Tensor = _FlexMemory.apply(query, key, value)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2).contiguous(), None


class _FlexMemory(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, _one_per_token(query))
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        _delta = _one_per_token(query)
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _one_per_token(query: Tensor) -> Tensor:
    """Return a float32 number for each head and token: the log of the denominator, or a sum of the backward pass."""
    return query.new_empty(query.shape[:3], dtype=torch.float32)


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _length(row: PackedRow) -> tuple[int, int]:
    return len(row.input_ids), len(row.token)


AttentionInterface.register(GPU_ATTENTION, gpu_attention)
