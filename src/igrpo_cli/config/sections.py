"""The sections of `run.toml`: every key with its default and meaning. Those of the reward are in `config_rewards`.

Learning settings carry TRL's names, engine settings vLLM's, eval settings lm-eval's. What the paper
leaves open is a named option here, never a silent choice.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from igrpo_cli.algo import AllZero, LossType, LrSchedulerType, ScaleRewards, Strategy, Ties
from igrpo_cli.http_client import WITHOUT_SECRETS, secret_in

PositiveInt = Annotated[int, Field(ge=1)]
Samples = Annotated[int, Field(ge=1, le=2**15 - 1)]
"""Completions of one problem: shards number them in 16 bits."""
Natural = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Dtype = Literal["auto", "float32", "bfloat16"]


class Section(BaseModel):
    """A section of `run.toml`; frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset()
    """Keys that change how fast or where a result is made, never the result: not part of a shard's identity."""

    def identity(self) -> dict[str, Any]:
        """The settings as they are in use, but for those without effect on results; None stands for unset keys."""
        return self.model_dump(mode="json", exclude=set(self.WITHOUT_EFFECT))


class RunSection(Section):
    """What holds for the whole run."""

    seed: Natural = 0
    """Of every random choice; the seed of a completion is made of it and of its place in the run."""
    method: Literal["igrpo", "grpo"] = "igrpo"
    """`grpo` is the plain baseline: the same loop without select and refine, trained on its drafts."""
    num_shards: PositiveInt = 1
    """Shards per stage; never changes results."""
    cpu_threads: Natural = 0
    """Threads of sampling and training on a CPU; 0 leaves it to torch. Rounding depends on it, so it is recorded."""
    num_iterations: PositiveInt | None = None
    """Iterations of the run; unset means `data.num_train_epochs` passes over the problems."""


class DataSection(Section):
    """Where the training problems come from. Read once, by `init`, which freezes them in the run directory."""

    train: str = "arithmetic"
    """A packaged set, a JSONL or Parquet file, a folder of such files, or a Hub id."""
    split: str | None = None
    """Of a folder or a Hub set; unset means that of a named set, `train` of a folder, or the only one there is."""
    config: str | None = None
    """Configuration of a Hub set, or a subfolder of a folder."""
    revision: str | None = None
    """Branch, tag or commit of a Hub set."""
    problem_column: str | None = None
    """Unset, like the next two: the column that goes by one of the usual names."""
    answer_column: str | None = None
    id_column: str | None = None
    choices_column: str | None = None
    """Column with the choices of each problem; `none` reads multiple-choice data as if it had none."""
    skip_bad_rows: bool = False
    """Count and skip rows that cannot be used (empty answer, duplicate, wrong type) instead of refusing the file."""
    problems_per_iteration: PositiveInt = 32
    """Problems that one iteration trains on."""
    spare_problems: Natural = 0
    """Problems sampled in every iteration beyond those, to train on where a group gives no gradient."""
    num_train_epochs: Positive = 1.0
    """Passes over the problems, where `run.num_iterations` is unset."""

    @property
    def problems_sampled(self) -> int:
        """Problems that one iteration samples completions of."""
        return self.problems_per_iteration + self.spare_problems


class PolicySection(Section):
    """The initial policy, which is also the reference of the KL term."""

    model: str = "tiny"
    """`tiny` (packaged), a Hugging Face model directory, or a Hub id."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may be run."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of published policies. Training keeps float32 master weights beside the optimiser state either way."""


class PromptsSection(Section):
    """How problems and drafts become prompts. Both stages share the system prompt, as in the paper."""

    system_prompt: str = ""
    """Empty means no system turn."""
    refine_template: str = "{problem}\n\n[draft]\n{draft}\n[/draft]"
    """User turn of a refinement; `{problem}` and `{draft}` stand exactly once each."""
    draft_view: Literal["full", "answer_only", "no_think"] = "full"
    """What of the draft is shown: all of it, its extracted answer, or what follows its thought."""
    max_draft_tokens: PositiveInt = 4096
    """A longer draft is cut to its first tokens; every cut is counted."""
    max_prompt_length: PositiveInt = 1024
    """Most tokens of a bare prompt; longer problems are refused (or skipped and counted) by `init`."""


class GenerationSection(Section):
    """How the completions of one stage are sampled."""

    num_generations: Samples = 4
    """Completions of a problem, at most 32,767: the N of drafts, the G of refinements."""
    temperature: NonNegative = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    top_k: Natural = 0
    """0 keeps all tokens."""
    max_completion_length: PositiveInt = 256
    """Most tokens of a completion, EOS included."""


class SelectSection(Section):
    """Which draft conditions the refinements of a problem."""

    strategy: Strategy = "best"
    """`shuffled` takes another problem's best draft, `none` refines bare: controls for what the draft contributes."""
    ties: Ties = "first"
    """Which of equally good drafts; `random` is seeded."""
    all_zero: AllZero = "keep"
    """What to do when every draft scores zero: `keep` is the literal algorithm, a wrong draft still conditions."""
    scores: str | None = None
    """Select by the rewards of this set of scores (`igrpo grade`) instead of those recorded with the drafts."""


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


class UpdateSection(Section):
    """The gradient step."""

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset({"keep_optimizer_states", "save_steps"})

    train_on: Literal["refinements", "drafts", "both"] = "refinements"
    """`refinements` is the paper, `drafts` plain GRPO, `both` two groups a problem from the same samples.

    With `run.method = "grpo"` there is nothing but drafts, and this is `drafts` whatever a preset says."""
    scores: str | None = None
    """Train on the rewards of this set of scores (`igrpo grade`), of drafts and refinements, not the recorded ones."""
    loss_type: LossType = "grpo"
    """All but `grpo` differ from it only where ratios leave 1 (more than one step), or lengths differ."""
    scale_rewards: ScaleRewards | None = None
    """What advantages are divided by; unset, like the next two: as `loss_type` was published."""
    epsilon: Positive | None = None
    """The ratio is clipped below at 1 - epsilon."""
    epsilon_high: Positive | None = None
    """The ratio is clipped above at 1 + epsilon_high."""
    old_logprobs: Literal["policy", "sampler"] = "policy"
    """`sampler` corrects for what the sampler computes differently: each token gets a truncated importance weight."""
    importance_cap: Positive = 2.0
    """Most that such a weight may be."""
    mask_truncated_completions: bool = False
    """Whether completions that were cut off at `max_completion_length` are left out of the objective."""
    groups_without_gradient: Literal["keep", "drop"] = "keep"
    """`drop` trains on groups with different rewards alone, taking spare ones in their place."""
    beta: NonNegative = 0.0
    """Weight of the KL term to the initial policy; 0 loads no reference model."""
    learning_rate: NonNegative = 1e-6
    lr_scheduler_type: LrSchedulerType = "cosine_with_min_lr"
    warmup_ratio: Share = 0.1
    """Share of the optimiser steps of the run over which the learning rate rises from 0."""
    min_lr_rate: Share = 0.1
    """Share of `learning_rate` at which `cosine_with_min_lr` ends."""
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.999
    adam_epsilon: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    """Of AdamW."""
    max_grad_norm: Positive = 1.0
    """A longer gradient is cut to this length."""
    num_minibatches: PositiveInt = 1
    """Optimiser steps in one pass over the iteration's groups."""
    num_epochs: PositiveInt = 1
    """Passes over the iteration's groups (TRL's `num_iterations`)."""
    dtype: Dtype = "auto"
    """Dtype of the forward and backward pass (autocast); weights, gradients and Adam moments are float32.

    `auto` is bfloat16 on a GPU, float32 on a CPU without fast bfloat16."""
    lora_r: Natural = 0
    """Rank of LoRA adapters, trained in place of all weights; 0 trains all weights."""
    lora_alpha: Positive = 32.0
    """The adapter counts alpha / r."""
    lora_target_modules: list[str] = Field(default_factory=list)
    """Names of the layers with adapters; empty means all linear ones but the output matrix."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again in the backward pass in place of being kept."""
    max_tokens_per_batch: PositiveInt = 4096
    """Tokens of one packed row: the memory knob. Does not change the objective."""
    optimizer_state: Literal["carry", "fresh"] = "carry"
    """`fresh` begins every iteration with an empty one."""
    keep_optimizer_states: Natural = 0
    """Optimiser states kept on disk, newest first; 0 keeps all. Only the newest is needed to go on."""
    save_steps: Natural = 1
    """Steps between the checkpoints of an update of several steps; 0 keeps none. Gone once the update is published."""

    def identity(self) -> dict[str, Any]:
        """As in every section, with the published constants filled in."""
        return {**super().identity(), **self.constants()._asdict()}

    def constants(self) -> LossConstants:
        """Return the constants in use: those that are set, the others as `loss_type` was published."""
        scale_rewards, low, high = PUBLISHED[self.loss_type]
        low = low if self.epsilon is None else self.epsilon
        high = high if self.epsilon_high is None else self.epsilon_high
        return LossConstants(self.scale_rewards or scale_rewards, low, low if high is None else high)


def checked_endpoint(endpoint: str) -> str:
    """`endpoint` if it holds no secret, else ValueError: settings are written to files."""
    if secret := secret_in(endpoint):
        raise ValueError(f"{secret}: {WITHOUT_SECRETS}; an API key is read from the environment")
    return endpoint


PublicUrl = Annotated[str, AfterValidator(checked_endpoint)]


class EngineSection(Section):
    """The sampling engine, under vLLM's names."""

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset(
        {"gpu_memory_utilization", "kv_cache_memory_bytes", "endpoints", "max_retries", "timeout"}
    )

    name: Literal["auto", "transformers", "vllm", "server"] = "auto"
    """`auto` is vLLM where it is installed for the device at hand, else transformers; `server` needs `endpoints`."""
    dtype: Dtype = "auto"
    device: str = "auto"
    """`auto` is a GPU where there is one; or `cpu`, `cuda`, `cuda:1`."""
    max_num_seqs: PositiveInt = 256
    """Most completions sampled at a time."""
    max_model_len: PositiveInt | None = None
    """Most tokens of prompt and completion together; unset means as many as the model has positions for."""
    groups_per_block: PositiveInt = 16
    """Groups of one batch: the unit of resumption. transformers decodes a batch at a time, for the same bits always."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs that share one model."""
    data_parallel_size: PositiveInt = 1
    """Replicas in one process; for vLLM it is 1: replicas are shards, one task each."""
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Share of a GPU that vLLM takes for weights and KV cache."""
    kv_cache_memory_bytes: PositiveInt | None = None
    """Memory of the KV cache; unset means what `gpu_memory_utilization` leaves on a GPU, 4 GiB on a CPU."""
    enforce_eager: bool = False
    """Whether vLLM does without CUDA graphs."""
    kv_cache_dtype: str = "auto"
    batch_invariant: bool = False
    """vLLM's batch-invariant kernels: the same bits whatever else is being sampled; slower."""
    endpoints: list[PublicUrl] = Field(default_factory=list)
    """Base URLs of running `vllm serve` processes, for `name = "server"`."""
    max_retries: Natural = 5
    """Times that a failed request to a server is tried again."""
    timeout: Positive = 600.0
    """Seconds that a request to a server may take, or a step of vLLM in this process, which are many a completion."""


class EvalSection(Section):
    """Evaluation: bare problems, `repeats` samples each (lm-eval's names)."""

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset({"selection"})
    """On bare problems; a conditioned evaluation reads it besides (see `config.STAGE_READS`)."""

    repeats: Samples | None = None
    """Samples per problem, at most 32,767; unset means the benchmark's own number (64 for AIME, else 8)."""
    temperature: NonNegative = 0.6
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    top_k: Natural = 0
    max_gen_toks: PositiveInt = 4096
    """Most tokens of a completion."""
    limit: PositiveInt | None = None
    """Evaluate only the first problems of the benchmark."""
    seed: Natural = 1234
    """Of sampling, in place of `run.seed`: all policies are evaluated with the same random numbers."""
    selection: Literal["each", "majority", "best"] = "each"
    """The draft of a conditioned evaluation: every bare sample is the draft of one refinement (`each`), or all
    refinements of a problem see the first sample with its most frequent answer (`majority`), or the one with the
    highest reward (`best`), which takes the reference answer to find: an oracle, as in training."""
