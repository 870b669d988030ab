"""The settings of a run: one model per section of `run.toml`, every key with its default and meaning.

Learning settings carry TRL's names, engine settings vLLM's, eval settings lm-eval's. What the paper
leaves open is a named option here, never a silent choice.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Dtype = Literal["auto", "float32", "bfloat16"]

REWARD_PARTS = ("accuracy", "format")
"""The parts that a reward is made of, by name."""


class Section(BaseModel):
    """A section of `run.toml`; frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset()
    """Keys that change how fast or where a result is made, never the result: not part of a shard's identity."""


class RunSection(Section):
    """What holds for the whole run."""

    seed: Natural = 0
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
    config: str | None = None
    revision: str | None = None
    problem_column: str | None = None
    answer_column: str | None = None
    id_column: str | None = None
    skip_bad_rows: bool = False
    """Count and skip rows that cannot be used (empty answer, duplicate, wrong type) instead of refusing the file."""
    problems_per_iteration: PositiveInt = 32
    num_train_epochs: Positive = 1.0


class PolicySection(Section):
    """The initial policy, which is also the reference of the KL term."""

    model: str = "tiny"
    """`tiny` (packaged), a Hugging Face model directory, or a Hub id."""
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of published policies. Training keeps float32 master weights beside the optimiser state either way."""


class PromptsSection(Section):
    """How problems and drafts become prompts. Both stages share the system prompt, as in the paper."""

    system_prompt: str = ""
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

    num_generations: PositiveInt = 4
    temperature: NonNegative = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    top_k: Natural = 0
    max_completion_length: PositiveInt = 256


class SelectSection(Section):
    """Which draft conditions the refinements of a problem."""

    strategy: Literal["best", "random", "worst", "shuffled", "none"] = "best"
    """`shuffled` takes another problem's best draft, `none` refines bare: controls for what the draft contributes."""
    ties: Literal["first", "random", "shortest"] = "first"
    all_zero: Literal["keep", "bare", "drop"] = "keep"
    """What to do when every draft scores zero: `keep` is the literal algorithm, a wrong draft still conditions."""


class RewardSection(Section):
    """The scalar reward: a weighted sum of named parts, used for selection and for the update alike."""

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset({"num_workers", "max_ungraded_share"})

    weights: dict[str, float] = Field(default_factory=lambda: dict.fromkeys(REWARD_PARTS, 1.0))
    cpu_seconds: Positive = 5.0
    """CPU time that the grader may spend on one completion; more is recorded as `ungraded`."""
    memory_mb: PositiveInt = 2048
    max_ungraded_share: Share = 0.02
    """A stage whose share of ungraded completions is higher fails."""
    num_workers: PositiveInt = 2


class UpdateSection(Section):
    """The gradient step."""

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset({"keep_optimizer_states"})

    train_on: Literal["refinements", "drafts", "both"] = "refinements"
    """`refinements` is the paper, `drafts` plain GRPO, `both` two groups a problem from the same samples.

    With `run.method = "grpo"` there is nothing but drafts, and this is `drafts` whatever a preset says."""
    loss_type: Literal["grpo"] = "grpo"
    scale_rewards: Literal["sample_std", "population_std", "none"] = "sample_std"
    epsilon: Positive = 0.2
    epsilon_high: Positive | None = None
    """Upper clip range; unset means `epsilon`."""
    beta: NonNegative = 0.0
    """Weight of the KL term to the initial policy; 0 loads no reference model."""
    learning_rate: NonNegative = 1e-6
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_min_lr"] = (
        "cosine_with_min_lr"
    )
    warmup_ratio: Share = 0.1
    min_lr_rate: Share = 0.1
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.999
    adam_epsilon: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive = 1.0
    num_minibatches: PositiveInt = 1
    """Optimiser steps in one pass over the iteration's groups."""
    num_epochs: PositiveInt = 1
    """Passes over the iteration's groups (TRL's `num_iterations`)."""
    dtype: Dtype = "auto"
    """Dtype of the forward and backward pass (autocast); weights, gradients and Adam moments are float32.

    `auto` is bfloat16 on a GPU, float32 on a CPU without fast bfloat16."""
    gradient_checkpointing: bool = False
    max_tokens_per_batch: PositiveInt = 4096
    """Tokens of one packed row: the memory knob. Does not change the objective."""
    optimizer_state: Literal["carry", "fresh"] = "carry"
    keep_optimizer_states: Natural = 0
    """Optimiser states kept on disk, newest first; 0 keeps all. Only the newest is needed to go on."""


class EngineSection(Section):
    """The sampling engine, under vLLM's names."""

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset(
        {"gpu_memory_utilization", "kv_cache_memory_bytes", "endpoints", "max_retries", "timeout"}
    )

    name: Literal["auto", "transformers", "vllm", "server"] = "auto"
    """`auto` is vLLM where it is installed for the device at hand, else transformers; `server` needs `endpoints`."""
    dtype: Dtype = "auto"
    device: str = "auto"
    max_num_seqs: PositiveInt = 256
    """Most completions sampled at a time."""
    max_model_len: PositiveInt | None = None
    """Most tokens of prompt and completion together; unset means as many as the model has positions for."""
    groups_per_block: PositiveInt = 16
    """Groups of one batch: the unit of resumption. transformers decodes a batch at a time, for the same bits always."""
    tensor_parallel_size: PositiveInt = 1
    data_parallel_size: PositiveInt = 1
    """Replicas in one process; for vLLM it is 1: replicas are shards, one task each."""
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    kv_cache_memory_bytes: PositiveInt | None = None
    enforce_eager: bool = False
    kv_cache_dtype: str = "auto"
    batch_invariant: bool = False
    """vLLM's batch-invariant kernels: the same bits whatever else is being sampled; slower."""
    endpoints: list[str] = Field(default_factory=list)
    """Base URLs of running `vllm serve` processes, for `name = "server"`."""
    max_retries: Natural = 5
    timeout: Positive = 600.0
    """Seconds that one request to a server may take."""


class EvalSection(Section):
    """Evaluation: bare problems, `repeats` samples each (lm-eval's names)."""

    repeats: PositiveInt | None = None
    """Samples per problem; unset means the benchmark's own number (64 for AIME, else 8)."""
    temperature: NonNegative = 0.6
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    top_k: Natural = 0
    max_gen_toks: PositiveInt = 4096
    limit: PositiveInt | None = None
    """Evaluate only the first problems of the benchmark."""
    seed: Natural = 1234


class RunConfig(Section):
    """All of `run.toml`."""

    run: RunSection = RunSection()
    data: DataSection = DataSection()
    policy: PolicySection = PolicySection()
    prompts: PromptsSection = PromptsSection()
    draft: GenerationSection = GenerationSection()
    select: SelectSection = SelectSection()
    refine: GenerationSection = GenerationSection()
    reward: RewardSection = RewardSection()
    update: UpdateSection = UpdateSection()
    engine: EngineSection = EngineSection()
    eval: EvalSection = EvalSection()

    @model_validator(mode="before")
    @classmethod
    def _plain_grpo_trains_on_drafts(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("run", {}).get("method") != "grpo":
            return values
        return {**values, "update": {**values.get("update", {}), "train_on": "drafts"}}

    @model_validator(mode="after")
    def _check_combinations(self) -> RunConfig:
        unknown = sorted(self.reward.weights.keys() - set(REWARD_PARTS))
        if unknown:
            raise ValueError(f"reward.weights has no part {unknown[0]!r}: there are {', '.join(REWARD_PARTS)}")
        template = self.prompts.refine_template
        if template.count("{problem}") != 1 or template.count("{draft}") != 1:
            raise ValueError("prompts.refine_template must hold {problem} and {draft} exactly once each")
        return self

    def stages(self) -> tuple[str, ...]:
        """Stages of one iteration, in order."""
        if self.run.method == "grpo":
            return ("draft", "update")
        return ("draft", "select", "refine", "update")


STAGE_READS: dict[str, tuple[str, ...]] = {
    "draft": ("run.seed", "run.cpu_threads", "data.problems_per_iteration", "prompts", "draft", "reward", "engine"),
    "select": ("run.seed", "select"),
    "refine": ("run.seed", "run.cpu_threads", "prompts", "refine", "reward", "engine"),
    "update": ("run.seed", "run.cpu_threads", "run.method", "run.num_iterations", "policy.dtype", "update"),
    "eval": ("run.cpu_threads", "prompts", "eval", "reward", "engine"),
}
"""The sections, or single keys, that decide what a stage makes. A finished shard made with others is a conflict."""


def stage_identity(config: RunConfig, stage: str) -> dict[str, dict[str, Any]]:
    """The settings that `stage` reads, as {section: {key: value}}; None stands for unset keys."""
    identity: dict[str, dict[str, Any]] = {}
    for name in STAGE_READS[stage]:
        section_name, _, key = name.partition(".")
        section: Section = getattr(config, section_name)
        values = section.model_dump(mode="json", exclude=set(section.WITHOUT_EFFECT))
        identity.setdefault(section_name, {}).update({key: values[key]} if key else values)
    return identity
