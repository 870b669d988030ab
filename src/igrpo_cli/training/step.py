"""One optimiser step of GRPO over whole groups.

The batch is split into rows to save memory. The weights of the loss come from the whole batch, so the objective does
not depend on the rows.

Shapes: T tokens of a row, K completion tokens that it predicts, S completions and N tokens of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from igrpo_cli.algo.losses import Objective, SequenceBatch, TokenLogprobs, policy_loss
from igrpo_cli.config.sections import Dtype
from igrpo_cli.config.update import UpdateSection
from igrpo_cli.devices import has_fast_bfloat16, memory_for
from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.records import TrainingGroup
from igrpo_cli.training.metrics import CompletionAudit, TokenMetrics, audit_completions, batch_metrics
from igrpo_cli.training.offload import HostWeights, round_linear_layers
from igrpo_cli.training.optimizer import apply_gradients, make_optimizer, trainable_parameters
from igrpo_cli.training.packing import FloatArray, PackedRow, RowLimits, TrainingBatch, flatten_groups, pack_rows
from igrpo_cli.training.policy import AGREEMENT, HALF_AGREEMENT, CausalPolicy
from igrpo_cli.training.ranks import Ranks, reshard

JOINED_TOKENS_ON_CPU = 512
"""Maximum tokens of a row with several groups on a CPU. Three times as many save 10 % of the time, at more memory."""

LOWER_LEARNING_RATE = "lower update.learning_rate, or set update.dtype = float32"
LESS_MEMORY = "lower update.max_tokens_per_batch, or set update.gradient_checkpointing = true"


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of one optimiser step."""

    metrics: dict[str, float]
    audit: CompletionAudit
    """Audit of the completions, in the order of the groups."""


@dataclass(frozen=True, slots=True)
class PlannedRows:
    """The rows of a batch, those with a gradient and those without, which need no backward pass."""

    with_gradient: list[PackedRow]
    without_gradient: list[PackedRow]


@dataclass(frozen=True, slots=True)
class _Work:
    """The state of a step while it goes through the rows."""

    batch: TrainingBatch
    sequences: SequenceBatch
    old_logprobs: FloatArray | None
    """[N]"""
    metrics: TokenMetrics
    """Filled row by row."""
    on_tokens: Callable[[int], None]
    """Called with the number of completion tokens of each row that is done."""


class PolicyTrainer:
    """A policy with its optimiser, and the frozen reference policy of the KL term if beta is not 0."""

    def __init__(
        self,
        policy: CausalPolicy,
        config: UpdateSection,
        reference: CausalPolicy | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Shard the policy if there are several ranks. Raises UsageError if beta is not 0 and there is no reference."""
        if config.beta != 0.0 and reference is None:
            raise UsageError(f"beta {config.beta} needs a reference policy")
        self.policy = policy
        self.config = config
        self.reference = reference if config.beta != 0.0 else None
        self.ranks = ranks or Ranks()
        self.dtype = compute_dtype(config.dtype, policy.device if self.ranks.size == 1 else self.ranks.device)
        """Dtype of the forward and backward pass; weights, gradients and Adam's moments are float32."""
        self._objective = objective_of(config)
        self._limits = row_limits(policy, config.max_tokens_per_batch, policy.device.type)
        self._longest_tested = 0
        """Number of tokens of the longest row in which sharing the prompt was tested."""
        self._host = self._offload() if config.offload_optimizer and self.ranks.size == 1 else None
        if config.gradient_checkpointing:
            policy.checkpoint_layers()
        if self.ranks.size > 1:
            for each in filter(None, (policy, self.reference)):
                self.ranks.shard(
                    each.logprobs, each.layers, getattr(torch, self.dtype), offload=config.offload_optimizer
                )
                each.device = self.ranks.device
        self.optimizer = make_optimizer(self.model, config)

    @property
    def model(self) -> Any:
        """The model that is trained and saved, in float32: that of the policy, or with offloading one on the host."""
        return self.policy.model if self._host is None else self._host.model

    @property
    def is_on_host(self) -> bool:
        """True if all that the next update continues from is in host memory."""
        return self._host is not None or self.policy.device.type == "cpu"

    def release_device(self) -> None:
        """Free the memory of the device until the next pass, if the weights are also on the host."""
        if self._host is not None:
            self._host.release()
            if self.reference is not None:
                self.reference.model.to("cpu")

    @property
    def num_trainable_parameters(self) -> int:
        """Number of trainable weights."""
        return sum(parameter.numel() for parameter in trainable_parameters(self.model).values())

    @memory_for("the log-probs before the first step", LESS_MEMORY)
    def compute_old_logprobs(self, groups: Sequence[TrainingGroup]) -> FloatArray:
        """Return the log-probs [N] under the current policy, for `step` with the same groups.

        They are only needed if the policy takes several steps on its samples. The rows are those of the step, so the
        ratio of an unchanged policy is exactly 1. Raises IgrpoError for log-probs that are not finite.
        """
        self._prepare_device()
        batch = flatten_groups(groups, self.policy.vocab_size)
        rows = self._plan(batch)
        logprobs_N = np.zeros(len(batch.token_ids), dtype=np.float32)
        with torch.no_grad(), self._autocast():
            for row, counts in (*self._of_this_rank(rows.with_gradient), *self._of_this_rank(rows.without_gradient)):
                found_K = _row_logprobs(self.policy, batch, row)[0]
                _refuse_non_finite(batch, row, old=found_K)
                if counts:
                    logprobs_N[row.token] = found_K.cpu().numpy()
        reshard(self.policy.logprobs)
        return self.ranks.sum(logprobs_N)

    @memory_for("the gradient step", LESS_MEMORY)
    def step(
        self,
        groups: Sequence[TrainingGroup],
        learning_rate: float,
        old_logprobs: FloatArray | None = None,
        on_tokens: Callable[[int], None] = lambda num_tokens: None,
    ) -> StepResult:
        """Take one AdamW step on the objective of `groups`, the whole optimiser batch.

        Without `old_logprobs` the detached log-probs of the policy are the old ones, so every ratio is exactly 1 and no
        extra forward pass is needed. `on_tokens` is called with the number of completion tokens of each row of this
        rank.

        Raises IgrpoError for groups that cannot be trained on (see `flatten_groups`), and for log-probs, a loss or
        gradients that are not finite; weights and optimiser state are then unchanged. Raises IgrpoError also if memory
        runs out, and then weights and optimiser state may be incomplete.
        """
        batch, metrics, loss = self._backward(groups, old_logprobs, on_tokens)
        grad_norm = apply_gradients(self.optimizer, self.model, learning_rate, self.config.max_grad_norm)
        update = {"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate}
        return StepResult({**update, **batch_metrics(batch, metrics)}, audit_completions(batch, metrics))

    @memory_for("the gradient", LESS_MEMORY)
    def gradient(self, groups: Sequence[TrainingGroup]) -> list[Tensor]:
        """Return the gradient of the loss of `groups`, a tensor for each trainable parameter, and take no step.

        It is that of the first step: the log-probs of the policy are the old ones. Raises as `step`.
        """
        self._backward(groups, None, lambda num_tokens: None)
        parameters = trainable_parameters(self.model).values()
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        self.optimizer.zero_grad(set_to_none=True)
        return gradients

    def _backward(
        self, groups: Sequence[TrainingGroup], old_logprobs: FloatArray | None, on_tokens: Callable[[int], None]
    ) -> tuple[TrainingBatch, TokenMetrics, float]:
        """Accumulate the gradient of the objective of `groups`; return the batch, its token metrics and its loss."""
        self._prepare_device()
        batch = flatten_groups(groups, self.policy.vocab_size)
        if old_logprobs is not None and len(old_logprobs) != len(batch.token_ids):
            raise IgrpoError(f"{len(old_logprobs)} old log-probs for {len(batch.token_ids)} completion tokens")
        rows = self._plan(batch)
        metrics = TokenMetrics.empty(len(batch.token_ids))
        work = _Work(batch, self._sequences(batch), old_logprobs, metrics, on_tokens)
        self.optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        # One autocast region for all rows, because it keeps the bfloat16 copy of each weight until it ends.
        with self._autocast():
            for row, counts in self._of_this_rank(rows.with_gradient):
                row_loss = self._forward(work, row, counts=counts)
                with self._autocast(enabled=False):
                    torch.autograd.backward(row_loss)
                loss += row_loss.item()
        with self._autocast(), torch.no_grad():
            for row, counts in self._of_this_rank(rows.without_gradient):
                loss += self._forward(work, row, counts=counts).item()
        reshard(self.policy.logprobs)
        if self._host is not None:
            self._host.finish()
        metrics.sum_over_ranks(self.ranks.sum)
        return batch, metrics, self.ranks.sum(np.array(loss)).item()

    def _offload(self) -> HostWeights:
        dtype = getattr(torch, self.dtype)
        if self.reference is not None:
            round_linear_layers(self.reference, dtype)
        return HostWeights(self.policy, dtype)

    def _prepare_device(self) -> None:
        """Copy the weights to the device, if they are trained on the host."""
        if self._host is not None:
            self._host.finish()
            self._host.refresh()
            if self.reference is not None:
                self.reference.model.to(self.reference.device)

    def _plan(self, batch: TrainingBatch) -> PlannedRows:
        """Return the rows of a batch. A group has a gradient if a completion of it has an advantage or a KL term."""
        has_gradient_S = ~batch.is_masked & (batch.loss_weights != 0)
        if self.reference is None:
            has_gradient_S &= batch.advantages != 0
        is_trained = np.bincount(batch.group, has_gradient_S, minlength=len(batch.groups)) > 0
        rows = self._pack(batch, is_trained)
        if self._can_share(max((*rows.with_gradient, *rows.without_gradient), key=lambda row: len(row.input_ids))):
            return rows
        self.policy.stop_sharing()
        self._limits = row_limits(self.policy, self.config.max_tokens_per_batch, self.policy.device.type)
        return self._pack(batch, is_trained)

    def _pack(self, batch: TrainingBatch, is_trained: np.ndarray) -> PlannedRows:
        return PlannedRows(
            with_gradient=pack_rows(batch, np.flatnonzero(is_trained).tolist(), self._limits),
            without_gradient=pack_rows(batch, np.flatnonzero(~is_trained).tolist(), self._limits),
        )

    def _can_share(self, longest: PackedRow) -> bool:
        """Return False if sharing prompts is not exact in the longest row so far.

        Ranks that shard the policy rely on the test of a short row when it was loaded.
        """
        if self.ranks.size > 1 or len(longest.input_ids) <= self._longest_tested:
            return True
        self._longest_tested = len(longest.input_ids)
        with self._autocast():
            return self.policy.can_share(longest, AGREEMENT if self.dtype == "float32" else HALF_AGREEMENT)

    def _of_this_rank(self, rows: list[PackedRow]) -> list[tuple[PackedRow, bool]]:
        """Return the rows of this rank, each with True if it counts. Attention costs by pairs, all else by tokens."""
        hidden_size = self.policy.model.get_input_embeddings().weight.shape[1]
        return self.ranks.distribute(rows, [len(row.input_ids) + row.num_pairs / (3 * hidden_size) for row in rows])

    def _forward(self, work: _Work, row: PackedRow, *, counts: bool) -> Tensor:
        """Return the loss of one row, or 0 if it does not count, and store its token metrics in `work.metrics`."""
        batch = work.batch
        policy_K, entropy_K = _row_logprobs(self.policy, batch, row)
        old_K = policy_K.detach()
        if work.old_logprobs is not None:
            old_K = self._to_device(work.old_logprobs[row.token])
        reference_K = None
        if self.reference is not None:
            with torch.no_grad():
                reference_K, _ = _row_logprobs(self.reference, batch, row)
        _refuse_non_finite(batch, row, policy=policy_K, old=old_K, reference=reference_K)
        sampling_K = self._to_device(batch.sampling_logprobs[row.token])
        tokens = TokenLogprobs(self._to_device(batch.sequence[row.token]), policy_K, old_K, sampling_K, reference_K)
        output = policy_loss(self._objective, work.sequences, tokens)
        if not torch.isfinite(output.loss):
            first = batch.describe(int(batch.sequence[row.token[0]]))
            raise IgrpoError(
                f"loss is {output.loss.item()} in the row that starts with {first}", hint=LOWER_LEARNING_RATE
            )
        token_metrics = {
            "policy_logprobs": policy_K,
            "old_logprobs": old_K,
            "entropy": entropy_K,
            "ratio": output.ratio,
            "clipped": output.clipped,
            "importance_weight": _or_default(output.importance_weights, torch.ones_like(entropy_K)),
            "kl": _or_default(output.kl, torch.zeros_like(entropy_K)),
        }
        if not counts:
            return output.loss * 0.0
        for name, values_K in token_metrics.items():
            getattr(work.metrics, name)[row.token] = values_K.detach().cpu().numpy()
        work.on_tokens(len(row.token))
        return output.loss

    def _sequences(self, batch: TrainingBatch) -> SequenceBatch:
        return SequenceBatch(
            advantages=self._to_device(batch.advantages),
            num_tokens=self._to_device(batch.num_tokens),
            group_sizes=self._to_device(batch.group_sizes),
            max_lengths=self._to_device(batch.max_lengths),
            loss_weights=self._to_device(batch.loss_weights),
            shaping_gammas=self._to_device(batch.shaping_gammas),
            is_masked=self._to_device(batch.is_masked),
            num_groups=len(batch.groups),
        )

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.policy.device)

    def _autocast(self, *, enabled: bool = True) -> torch.autocast:
        enabled = enabled and self.dtype == "bfloat16"
        return torch.autocast(self.policy.device.type, dtype=torch.bfloat16, enabled=enabled)


def objective_of(config: UpdateSection) -> Objective:
    """Return the objective of the settings, with every constant filled in."""
    constants, is_corrected = config.constants(), config.importance_sampling_correction
    return Objective(
        loss_type=config.loss_type,
        epsilon=constants.epsilon,
        epsilon_high=constants.epsilon_high,
        beta=config.beta,
        max_importance_weight=config.importance_sampling_clip_max if is_corrected else None,
        importance_mode=config.importance_sampling_mode,
    )


def cosine(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the cosine of two gradients, each a tensor per parameter; NaN where one is 0, and exactly 1 for itself."""

    def product(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
        return sum((a.double() * b.double()).sum().item() for a, b in zip(left, right, strict=True))

    norms = math.sqrt(product(one, one) * product(other, other))
    return math.nan if norms == 0 else max(-1.0, min(1.0, product(one, other) / norms))


def compute_dtype(dtype: Dtype, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Return the dtype of the forward and backward pass that `update.dtype` means on a device."""
    if dtype == "auto":
        return "bfloat16" if has_fast_bfloat16(device) else "float32"
    return dtype


def row_limits(policy: CausalPolicy, max_tokens_per_batch: int, device_type: str) -> RowLimits:
    """Return the limits of the rows of a policy on a device of this type."""
    if not policy.shares_prompts:
        return RowLimits(group_tokens=0, joined_tokens=0)
    joined = JOINED_TOKENS_ON_CPU if device_type == "cpu" else max_tokens_per_batch
    return RowLimits(group_tokens=max_tokens_per_batch, joined_tokens=min(joined, max_tokens_per_batch))


def _row_logprobs(policy: CausalPolicy, batch: TrainingBatch, row: PackedRow) -> tuple[Tensor, Tensor]:
    """Return log-probs [K] and entropies [K] of the completion tokens of a row."""
    device = policy.device
    row = policy.prepare(row)
    input_ids_T = torch.from_numpy(row.input_ids).to(device)
    found: tuple[Tensor, Tensor] = policy.logprobs(
        input_ids_T,
        *policy.layout(row),
        torch.from_numpy(row.predictor).to(device),
        torch.from_numpy(batch.token_ids[row.token]).to(device),
        torch.from_numpy(batch.temperatures[row.token]).to(device),
    )
    return found


def _or_default(measured_K: Tensor | None, default_K: Tensor) -> Tensor:
    return default_K if measured_K is None else measured_K


def _refuse_non_finite(batch: TrainingBatch, row: PackedRow, **logprobs: Tensor | None) -> None:
    """Raise IgrpoError with the name of the first completion with a log-prob that is not finite."""
    for whose, values_K in logprobs.items():
        if values_K is not None and not torch.isfinite(values_K).all():
            first = int((~torch.isfinite(values_K)).nonzero()[0])
            token = int(row.token[first])
            sequence = int(batch.sequence[token])
            position = token - batch.first_token[sequence]
            where = f"token {position} of {batch.describe(sequence)}"
            raise IgrpoError(
                f"{whose} log-prob of {where} is {values_K[first].item()}",
                hint=LOWER_LEARNING_RATE,
            )
