"""The section [engine] of `run.toml`, with the table of speculative decoding within it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from igrpo_cli.config.sections import Dtype, Natural, Positive, PositiveInt, PublicUrl, Section


class SpeculativeConfig(Section):
    """Speculative decoding of vLLM, under its names: tokens are proposed, and the policy checks them in one step."""

    method: Literal["ngram"] = "ngram"
    """`ngram` proposes the tokens that followed the last ones where they stood before, in the prompt or completion."""
    num_speculative_tokens: Annotated[int, Field(ge=1, le=128)]
    """Tokens proposed in one step."""
    prompt_lookup_max: PositiveInt | None = None
    """Maximum number of last tokens that are looked for; unset means `prompt_lookup_min`, or 5 without either."""
    prompt_lookup_min: PositiveInt | None = None
    """Minimum number of last tokens that are looked for; unset means `prompt_lookup_max`, or 5 without either."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> SpeculativeConfig:
        least, most = self.prompt_lookup_min, self.prompt_lookup_max
        if least is not None and most is not None and least > most:
            raise ValueError(f"prompt_lookup_min = {least} is above prompt_lookup_max = {most}")
        return self


class EngineSection(Section):
    """The sampling engine, under vLLM's names."""

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset(
        {"gpu_memory_utilization", "kv_cache_memory_bytes", "endpoints", "max_retries", "timeout"}
    )

    name: Literal["auto", "transformers", "vllm", "server"] = "auto"
    """`auto` is vLLM if it is installed for the device, else transformers; `server` needs `endpoints`."""
    dtype: Dtype = "auto"
    """Dtype of weights and activations; `auto` is that of the checkpoint, or float32 on a CPU without fast bfloat16."""
    device: str = "auto"
    """`auto` is the first GPU, or the CPU if there is none; or a device of torch, for example `cpu`, `cuda:1`."""
    max_num_seqs: PositiveInt = 256
    """Maximum completions sampled at the same time."""
    max_model_len: PositiveInt | None = None
    """Maximum tokens of prompt and completion together; unset means the number of positions of the model."""
    groups_per_block: PositiveInt = 16
    """Groups per block. A block is the unit of resumption, and transformers decodes one at a time."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs that share one copy of the model."""
    data_parallel_size: PositiveInt = 1
    """Copies of the model in one process. vLLM in this process supports 1: run one task per copy, with `--shard`."""
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Fraction of a GPU's memory that vLLM uses for weights and KV cache."""
    kv_cache_memory_bytes: PositiveInt | None = None
    """Memory of vLLM's KV cache; unset means what `gpu_memory_utilization` leaves on a GPU, 4 GiB on a CPU."""
    enforce_eager: bool = False
    """Run vLLM without CUDA graphs."""
    kv_cache_dtype: str = "auto"
    """Dtype of vLLM's KV cache."""
    quantization: str | None = None
    """Quantisation of the weights in vLLM, for example `fp8`; unset means that of the checkpoint. Only with `name =
    "vllm"`."""
    speculative_config: SpeculativeConfig | None = None
    """Speculative decoding of vLLM: a table with `method` (`ngram`), `num_speculative_tokens`, `prompt_lookup_max` and
    `prompt_lookup_min`. Completions have the same distribution as without it and other random numbers. Unset and `{}`
    mean none. Only with `name = "vllm"`."""
    batch_invariant: bool = False
    """Use vLLM's batch-invariant kernels: results do not depend on the other requests. Slower."""
    endpoints: list[PublicUrl] = Field(default_factory=list)
    """Base URLs of running `vllm serve` processes, for `name = "server"`."""
    max_retries: Natural = 5
    """Retries of a failed request to a server."""
    timeout: Positive = 600.0
    """Seconds that a request to a server may take, or one decoding step of vLLM in this process."""

    @field_validator("speculative_config", "quantization", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return value or None  # TOML has no null, and `--set engine.speculative_config={}` is to switch it off.

    @model_validator(mode="after")
    def _only_vllm_has_it(self) -> EngineSection:
        for key in ("speculative_config", "quantization"):
            if getattr(self, key) is not None and self.name != "vllm":
                off = "{}" if key == "speculative_config" else "''"
                raise ValueError(
                    f'engine.{key} is a setting of vLLM in this process: set engine.name = "vllm", not '
                    f'"{self.name}", or engine.{key} = {off}'
                )
        return self
