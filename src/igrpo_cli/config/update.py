"""The sections [policy] and [update] of `run.toml`: the policy, what is trained on, the objective, the optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field

from igrpo_cli.algo import Baseline, ImportanceMode, LossType, LrSchedulerType, ScaleRewards
from igrpo_cli.config.sections import Dtype, Natural, NonNegative, Positive, PositiveInt, Section, Share

Trained = Literal["drafts", "refinements"]


class LossConstants(NamedTuple):
    """Constants of an objective whose defaults depend on `update.loss_type`."""

    scale_rewards: ScaleRewards
    epsilon: float
    epsilon_high: float


PUBLISHED: dict[LossType, tuple[ScaleRewards, float, float | None]] = {
    "grpo": ("sample_std", 0.2, None),
    "dapo": ("sample_std", 0.2, 0.28),
    # Dr. GRPO's point is to divide by no deviation and by no length (arXiv 2503.20783).
    "dr_grpo": ("none", 0.2, None),
    "gspo": ("sample_std", 3e-4, 4e-4),
    # No clip below, since a ratio is never under 0. TRL writes the upper one as 5.0, the bound of the ratio itself.
    "cispo": ("sample_std", 1.0, 4.0),
}
"""The published `scale_rewards`, `epsilon` and `epsilon_high` of each objective; None equals `epsilon`."""


def _number_kept(value: Any) -> Any:
    """Return a value of `policy.keep`. At least 2, because an update reads the policy before the one it makes."""
    if value not in ("all", "deltas") and (isinstance(value, bool) or not isinstance(value, int) or value < 2):
        raise ValueError('must be "all", "deltas", or a number of at least 2')
    return value


class PolicySection(Section):
    """The initial policy, which is also the reference of the KL term."""

    model: str = "tiny"
    """`tiny` or `columns` (packaged), a Hugging Face model directory, or a Hub id."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    trust_remote_code: bool = False
    """Allow Python code that comes with the model to run."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of published policies. Training always keeps float32 weights with the optimiser state."""
    keep: Annotated[Literal["all", "deltas"] | int, BeforeValidator(_number_kept)] = "all"
    """Number of policies kept on disk, or `all`. The update removes older ones, except for the initial policy and those
    that `run.eval_every` still evaluates. Shards sampled from a removed policy stay, and cannot be made again.

    `deltas` keeps two, and of each older policy the compressed difference from the one before; `igrpo policy` restores
    it."""

    @property
    def num_kept(self) -> int | None:
        """Number of policies that stay complete; None for all."""
        return None if self.keep == "all" else 2 if self.keep == "deltas" else self.keep


class UpdateSection(Section):
    """The optimiser steps of an iteration."""

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset(
        {"keep_optimizer_states", "save_optimizer_every", "save_steps"}
    )

    train_on: Literal["refinements", "drafts", "both", "alternate"] = "refinements"
    """`refinements` as in the paper, `drafts` as in plain GRPO, or `both`, with two groups per problem.

    `alternate` (arXiv 2604.01591): iterations 0, 2, 4, … solve and the others refine. A solving iteration is one of
    plain GRPO: it samples `draft.num_generations` + `refine.num_generations` drafts of each problem and trains on them,
    without select and refine. A refining iteration trains on refinements.

    With `run.method = "grpo"` there are only drafts, and the value is `drafts` whatever a preset says."""
    baseline: Baseline = "group"
    """The rewards that the advantage of a refinement is measured against: it is (r - mean) / (std + 1e-4) over them.

    `group` are the refinements of its own group, `drafts` the drafts of its problem (arXiv 2602.02482), and `pooled`
    both together. A group of equal rewards then has a gradient where it differs from the drafts. If all rewards of the
    baseline are equal, the difference is not divided. Drafts that could not be graded do not count, and a problem
    without a graded draft has the baseline `group`. Drafts are always compared within their group."""
    loss_weights: dict[Trained, NonNegative] = Field(default={"drafts": 1.0, "refinements": 1.0})
    """Weights of the losses of draft groups and of refinement groups under `train_on = "both"`; unset is 1.

    The objective of a completion, KL term included, is multiplied by the weight of its stage and not divided by the sum
    of the weights."""
    refinement_prompt: Literal["with_draft", "without_draft"] = "with_draft"
    """Prompt under which refinements are trained: the one that they were sampled from, or the problem alone.

    `without_draft` is off-policy: what the model finds with a draft it learns to say without one (Critique-GRPO, arXiv
    2506.03106, where drafts and refinements are one group: see `baseline = "pooled"`)."""
    shaping_gamma: NonNegative = 0.1
    """Under `refinement_prompt = "without_draft"`, the objective of a token of probability p is A p / (p + gamma), with
    its steepest slope at unlikely tokens; 0 uses the clipped ratio as for other completions."""
    scores: str | None = None
    """Use the rewards of this set of scores (`igrpo grade`); unset means the rewards recorded with the completions."""
    loss_type: LossType = "grpo"
    """The objective. With one step per iteration and equal lengths, all have the same gradient as `grpo`."""
    scale_rewards: ScaleRewards | None = None
    """Divisor of the advantages; unset means the published value of `loss_type`, as for the next two."""
    epsilon: Positive | None = None
    """The probability ratio is clipped below at 1 - epsilon."""
    epsilon_high: Positive | None = None
    """The probability ratio is clipped above at 1 + epsilon_high."""
    importance_sampling_correction: bool = False
    """Weight the objective by the ratio of the probability under the trainer and under the sampler. On by default with
    `run.staleness = 1`."""
    importance_sampling_mode: ImportanceMode = "token_truncate"
    """The ratio of each token, or that of the whole completion, which is the product of its tokens'. A ratio above
    `importance_sampling_clip_max` is replaced by it (`truncate`) or by 0 (`mask`). TRL's default is `sequence_mask`."""
    importance_sampling_clip_max: Positive = 2.0
    """Upper bound of these ratios."""
    mask_truncated_completions: bool = False
    """Exclude completions that were cut off at `max_completion_length` from the objective."""
    dynamic_sampling: bool = False
    """Train only on groups with correct and wrong completions; those of `data.spare_problems` replace the others."""
    beta: NonNegative = 0.0
    """Weight of the KL term to the initial policy; 0 loads no reference model."""
    learning_rate: NonNegative = 1e-6
    """Peak learning rate of AdamW."""
    lr_scheduler_type: LrSchedulerType = "cosine_with_min_lr"
    """Learning rate schedule over the optimiser steps of the whole run, as in transformers."""
    lr_scheduler_iterations: PositiveInt | None = None
    """Iterations that the schedule takes; unset means those of the run. Later iterations keep its last rate."""
    warmup_ratio: Share = 0.1
    """Fraction of the optimiser steps of the run over which the learning rate rises from 0."""
    min_lr_rate: Share = 0.1
    """Final learning rate of `cosine_with_min_lr`, as a fraction of `learning_rate`."""
    adam_beta1: Share = 0.9
    """First moment decay of AdamW."""
    adam_beta2: Share = 0.999
    """Second moment decay of AdamW."""
    adam_epsilon: Positive = 1e-8
    """Term added to the denominator of AdamW."""
    weight_decay: NonNegative = 0.0
    """Weight decay of AdamW, for matrices only, not for biases and norms."""
    max_grad_norm: Positive = 1.0
    """The gradient norm is clipped to this."""
    num_minibatches: PositiveInt = 1
    """Optimiser steps in one pass over the iteration's groups."""
    num_epochs: PositiveInt = 1
    """Passes over the iteration's groups (TRL's `num_iterations`)."""
    dtype: Dtype = "auto"
    """Dtype of the forward and backward pass (autocast); weights, gradients and Adam moments are float32.

    `auto` is bfloat16 where it is fast, which is on GPUs and on CPUs with AVX-512, else float32."""
    lora_r: Natural = 0
    """Rank of the LoRA adapters; 0 trains all weights instead."""
    lora_alpha: Positive = 32.0
    """The adapter is scaled by alpha / r."""
    lora_target_modules: list[str] = Field(default_factory=list)
    """Names of the layers with adapters; empty means all linear layers except the output layer."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them."""
    offload_optimizer: bool = False
    """Keep float32 weights, gradients and Adam moments in host memory, 16 bytes per weight, and take the steps there.

    The device holds the weights to compute with: in bfloat16, 2 bytes for each weight of a linear layer and 4 for each
    of embeddings and norms. It is for training of all weights, and does not go with LoRA."""
    max_tokens_per_batch: PositiveInt = 4096
    """Maximum tokens of a packed row. Lower it to save memory; it does not change the objective."""
    optimizer_state: Literal["carry", "fresh", "from_policy"] = "carry"
    """`carry` continues with the state of the previous iteration, `fresh` starts every iteration without moments.

    Both take the float32 weights of the previous iteration. `from_policy` needs nothing of it: the weights are those of
    the published policy, rounded to `policy.dtype`. It does not go with LoRA."""
    keep_optimizer_states: Natural = 2
    """Number of optimiser states kept on disk; 0 keeps all. Only the newest is needed to continue."""
    save_optimizer_every: PositiveInt = 1
    """Every how many iterations `igrpo run` writes the optimiser state, and always that of its last iteration. A run
    that was stopped in between computes the updates since the newest state again from their rollouts, and compares the
    hashes of their policies. Only a process that keeps the trainer in memory leaves states out: `igrpo update` writes
    each of them, and so do runs under torchrun, and on a GPU without `offload_optimizer`."""
    save_steps: Natural = 1
    """Optimiser steps between two checkpoints within an update; 0 writes none. A complete update removes them."""

    def identity(self) -> dict[str, Any]:
        """Return the settings that results depend on, with the published constants filled in."""
        return {**super().identity(), **self.constants()._asdict()}

    def with_recorded(self, values: Mapping[str, Any]) -> Self:
        """Return the section with recorded settings. A published constant stays unset and follows `loss_type`."""
        names = [name for name in LossConstants._fields if name in values]
        found = super().with_recorded({**values, **dict.fromkeys(names)})
        for name in names:
            if values[name] != getattr(found.constants(), name):
                found = found.model_copy(update={name: values[name]})
        return found

    def constants(self) -> LossConstants:
        """Return the constants in use: those that are set, the others as `loss_type` was published."""
        scale_rewards, low, high = PUBLISHED[self.loss_type]
        low = low if self.epsilon is None else self.epsilon
        high = high if self.epsilon_high is None else self.epsilon_high
        return LossConstants(self.scale_rewards or scale_rewards, low, low if high is None else high)

    def loss_weight(self, stage: str) -> float:
        """Return the weight of the loss of the groups of a stage, `draft` or `refine`."""
        return self.loss_weights.get("drafts" if stage == "draft" else "refinements", 1.0)
