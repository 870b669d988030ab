"""One optimiser step of GRPO over whole groups.

The batch is cut into rows for the sake of memory only: the weights of the loss come from the whole
batch, so the number of rows is no part of the objective.

Shapes: T tokens of a row, K completion tokens that it predicts, S completions and N tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from igrpo_cli.algo.losses import Objective, SequenceBatch, TokenLogprobs, policy_loss
from igrpo_cli.config.sections import Dtype, UpdateSection
from igrpo_cli.devices import has_fast_bfloat16, memory_for
from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.records import TrainingGroup
from igrpo_cli.training.metrics import CompletionAudit, TokenMeasures, audit_completions, batch_metrics
from igrpo_cli.training.optimizer import apply_gradients, make_optimizer, trainable_parameters
from igrpo_cli.training.packing import FloatArray, PackedRow, RowLimits, TrainingBatch, flatten_groups, pack_rows
from igrpo_cli.training.policy import CausalPolicy
from igrpo_cli.training.ranks import Ranks, reshard

JOINED_TOKENS_ON_CPU = 512
"""Row length from which on joining gains little: 10 % of the time at three times the tokens and their memory."""

LESS_EXTREME = "lower update.learning_rate, or set update.dtype = float32"
LESS_MEMORY = "lower update.max_tokens_per_batch, or set update.gradient_checkpointing = true"


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimiser step did."""

    metrics: dict[str, float]
    audit: CompletionAudit
    """Completions in the order of the groups given."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a batch. The measured ones have no gradient, so they are not run backward."""

    trained: list[PackedRow]
    measured: list[PackedRow]


@dataclass(frozen=True, slots=True)
class _Work:
    """One step on its way through the rows."""

    batch: TrainingBatch
    sequences: SequenceBatch
    old_logprobs: FloatArray | None
    """[N]"""
    measures: TokenMeasures
    """Filled row by row."""
    on_tokens: Callable[[int], None]
    """Told of the completion tokens of each row that is through."""


class PolicyTrainer:
    """A policy with its optimiser, and the frozen reference of the KL term where beta is not 0."""

    def __init__(
        self,
        policy: CausalPolicy,
        config: UpdateSection,
        reference: CausalPolicy | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Shards the policy where there are several ranks. Raises UsageError for a beta without a reference."""
        if config.beta != 0.0 and reference is None:
            raise UsageError(f"beta {config.beta} needs a reference policy")
        self.policy = policy
        self.config = config
        self.reference = reference if config.beta != 0.0 else None
        self.ranks = ranks or Ranks()
        self.dtype = _compute_dtype(config.dtype, policy.device if self.ranks.size == 1 else self.ranks.device)
        """Dtype of the forward and backward pass; weights, gradients and Adam's moments are float32."""
        self._objective = objective_of(config)
        self._limits = _row_limits(policy, config.max_tokens_per_batch)
        if config.gradient_checkpointing:
            policy.checkpoint_layers()
        if self.ranks.size > 1:
            for each in filter(None, (policy, self.reference)):
                self.ranks.shard(each.logprobs, each.layers, getattr(torch, self.dtype))
                each.device = self.ranks.device
        self.optimizer = make_optimizer(policy.model, config)

    @property
    def num_trainable_parameters(self) -> int:
        """Single weights that a step moves."""
        return sum(parameter.numel() for parameter in trainable_parameters(self.policy.model).values())

    @memory_for("the log-probs before the first step", LESS_MEMORY)
    def compute_old_logprobs(self, groups: Sequence[TrainingGroup]) -> FloatArray:
        """Log-probs [N] under the policy as it is now, to be given to `step` with the same groups.

        Needed only where the policy takes several steps on its samples. The rows are those of the
        step, so on an unchanged policy the ratio is exactly 1. Raises as `step` does for what is not finite.
        """
        batch = flatten_groups(groups, self.policy.vocab_size)
        rows = self._plan(batch)
        logprobs_N = np.zeros(len(batch.token_ids), dtype=np.float32)
        with torch.no_grad(), self._autocast():
            for row, counts in (*self._deal(rows.trained), *self._deal(rows.measured)):
                found_K = _row_logprobs(self.policy, batch, row)[0]
                _refuse_non_finite(batch, row, old=found_K)
                if counts:
                    logprobs_N[row.token] = found_K.cpu().numpy()
        reshard(self.policy.logprobs)
        return self.ranks.add_up(logprobs_N)

    @memory_for("the gradient step", LESS_MEMORY)
    def step(
        self,
        groups: Sequence[TrainingGroup],
        learning_rate: float,
        old_logprobs: FloatArray | None = None,
        on_tokens: Callable[[int], None] = lambda num_tokens: None,
    ) -> StepResult:
        """One AdamW step on the objective of `groups`, which are the whole optimiser batch.

        Without `old_logprobs` the ratio is taken against the policy itself, detached: exactly 1, and
        no extra forward pass. `on_tokens` is told of the completion tokens of each row of this rank.

        Raises IgrpoError, with weights and optimiser as they were, for groups that cannot be trained on
        (see `flatten_groups`) and for log-probs, a loss or gradients that are not finite. Where memory runs out
        the IgrpoError says which setting to lower, and optimiser and weights may be half way.
        """
        batch = flatten_groups(groups, self.policy.vocab_size)
        if old_logprobs is not None and len(old_logprobs) != len(batch.token_ids):
            raise IgrpoError(f"{len(old_logprobs)} old log-probs for {len(batch.token_ids)} completion tokens")
        rows = self._plan(batch)
        measures = TokenMeasures.empty(len(batch.token_ids))
        work = _Work(batch, self._sequences(batch), old_logprobs, measures, on_tokens)
        self.optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        # One autocast region for all rows: it keeps the bfloat16 copy of each weight until it ends.
        with self._autocast():
            for row, counts in self._deal(rows.trained):
                row_loss = self._forward(work, row, counts=counts)
                with self._autocast(enabled=False):
                    torch.autograd.backward(row_loss)
                loss += row_loss.item()
        with self._autocast(), torch.no_grad():
            for row, counts in self._deal(rows.measured):
                loss += self._forward(work, row, counts=counts).item()
        reshard(self.policy.logprobs)
        loss = self.ranks.add_up(np.array(loss)).item()
        measures.add_up(self.ranks.add_up)
        grad_norm = apply_gradients(self.optimizer, self.policy.model, learning_rate, self.config.max_grad_norm)
        update = {"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate}
        return StepResult({**update, **batch_metrics(batch, measures)}, audit_completions(batch, measures))

    def _plan(self, batch: TrainingBatch) -> _Rows:
        """A group has a gradient where one of its completions has: by its advantage, or by the KL term."""
        has_gradient_S = ~batch.is_masked
        if self.reference is None:
            has_gradient_S &= batch.advantages != 0
        trained = np.bincount(batch.group, has_gradient_S, minlength=len(batch.groups)) > 0
        return _Rows(
            trained=pack_rows(batch, np.flatnonzero(trained).tolist(), self._limits),
            measured=pack_rows(batch, np.flatnonzero(~trained).tolist(), self._limits),
        )

    def _deal(self, rows: list[PackedRow]) -> list[tuple[PackedRow, bool]]:
        """The rows of this rank, and whether each counts. Attention sees pairs of tokens, all else single ones."""
        hidden_size = self.policy.model.get_input_embeddings().weight.shape[1]
        return self.ranks.deal(rows, [len(row.input_ids) + row.num_pairs / (3 * hidden_size) for row in rows])

    def _forward(self, work: _Work, row: PackedRow, *, counts: bool) -> Tensor:
        """The loss of one row, 0 where it does not count; what metrics need of it goes into `work.measures`."""
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
            raise IgrpoError(f"loss is {output.loss.item()} in the row that starts with {first}", hint=LESS_EXTREME)
        found = {
            "policy_logprobs": policy_K,
            "old_logprobs": old_K,
            "entropy": entropy_K,
            "ratio": output.ratio,
            "clipped": output.clipped,
            "importance_weight": _or_else(output.importance_weights, torch.ones_like(entropy_K)),
            "kl": _or_else(output.kl, torch.zeros_like(entropy_K)),
        }
        if not counts:
            return output.loss * 0.0
        for name, values_K in found.items():
            getattr(work.measures, name)[row.token] = values_K.detach().cpu().numpy()
        work.on_tokens(len(row.token))
        return output.loss

    def _sequences(self, batch: TrainingBatch) -> SequenceBatch:
        return SequenceBatch(
            advantages=self._to_device(batch.advantages),
            num_tokens=self._to_device(batch.num_tokens),
            group_sizes=self._to_device(batch.group_sizes),
            max_lengths=self._to_device(batch.max_lengths),
            is_masked=self._to_device(batch.is_masked),
            num_groups=len(batch.groups),
        )

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.policy.device)

    def _autocast(self, *, enabled: bool = True) -> torch.autocast:
        # Sharded weights are gathered in the dtype that is computed with.
        enabled = enabled and self.dtype == "bfloat16" and self.ranks.size == 1
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
    )


def _compute_dtype(dtype: Dtype, device: torch.device) -> Literal["float32", "bfloat16"]:
    if dtype == "auto":
        return "bfloat16" if has_fast_bfloat16(device) else "float32"
    return dtype


def _row_limits(policy: CausalPolicy, max_tokens_per_batch: int) -> RowLimits:
    if not policy.shares_prompts:
        return RowLimits(group_tokens=0, joined_tokens=0)
    joined = JOINED_TOKENS_ON_CPU if policy.device.type == "cpu" else max_tokens_per_batch
    return RowLimits(group_tokens=max_tokens_per_batch, joined_tokens=min(joined, max_tokens_per_batch))


def _row_logprobs(policy: CausalPolicy, batch: TrainingBatch, row: PackedRow) -> tuple[Tensor, Tensor]:
    """Log-probs [K] and entropies [K] of the completion tokens of a row."""
    device = policy.device
    input_ids_T = torch.from_numpy(row.input_ids).to(device)
    found: tuple[Tensor, Tensor] = policy.logprobs(
        input_ids_T,
        *policy.layout(row),
        torch.from_numpy(row.predictor).to(device),
        torch.from_numpy(batch.token_ids[row.token]).to(device),
        torch.from_numpy(batch.temperatures[row.token]).to(device),
    )
    return found


def _or_else(measured_K: Tensor | None, otherwise_K: Tensor) -> Tensor:
    return otherwise_K if measured_K is None else measured_K


def _refuse_non_finite(batch: TrainingBatch, row: PackedRow, **logprobs: Tensor | None) -> None:
    """Raise IgrpoError naming the completion whose log-prob is not a number that one can train on."""
    for whose, values_K in logprobs.items():
        if values_K is not None and not torch.isfinite(values_K).all():
            first = int((~torch.isfinite(values_K)).nonzero()[0])
            token = int(row.token[first])
            sequence = int(batch.sequence[token])
            position = token - batch.first_token[sequence]
            where = f"token {position} of {batch.describe(sequence)}"
            raise IgrpoError(
                f"{whose} log-prob of {where} is {values_K[first].item()}",
                hint=LESS_EXTREME,
            )
