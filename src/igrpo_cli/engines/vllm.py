"""Sampling with vLLM in this process: continuous batching over all submitted batches, a seed for every completion."""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import os
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from igrpo_cli.config.engine import EngineSection
from igrpo_cli.config.sections import SamplingSettings, temperature_of
from igrpo_cli.devices import describe_device, find_device
from igrpo_cli.engines.base import ignore_progress, require_room, resolve_dtype
from igrpo_cli.engines.batches import Batch, to_completion
from igrpo_cli.engines.hub import check_model_directory, read_text_config
from igrpo_cli.engines.tokenization import PolicyTokenizer
from igrpo_cli.errors import IgrpoError, Interrupted, UsageError
from igrpo_cli.extras import importing_extra
from igrpo_cli.records import Completion, SamplingGroup
from igrpo_cli.torchrun import without_torchrun

_CPU_KV_CACHE_BYTES = 4 * 2**30
_RECURRENT_SIGNS = ("mamba", "ssm", "linear_num_key_heads")
"""Parts of the names of settings that only models with recurrent states have."""
_COUNTS_PROPOSALS = "per_request_spec_decode_metrics"
"""Argument of vLLM, from 0.32 on, that counts the tokens proposed and accepted in each completion."""
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # The default is stdout, which is for data.
    "VLLM_NO_USAGE_STATS": "1",
    # Otherwise all tasks of a node would bind their threads to the same cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # n-gram proposals use numba, whose OpenMP layer changes the number of threads of torch, and so the rounding.
    "NUMBA_THREADING_LAYER": "workqueue",
}
"""Environment variables that vLLM and numba read when they are imported, unless the user has set them."""


def set_environment(batch_invariant: bool) -> None:
    """Set the environment variables of vLLM. Must be called before vLLM is imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # The engine calls functions of its worker, so the worker must be in this process. Then there is also no second
    # process to end when this one dies. The interpreter is not a bottleneck, since nothing is detokenised.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if batch_invariant:
        os.environ["VLLM_BATCH_INVARIANT"] = "1"
    # Until vLLM has set up its logger, Python would print its warnings on stderr.
    logging.getLogger("vllm").addHandler(logging.NullHandler())


class VllmEngine:
    """The `Engine` that samples with vLLM. Completions of the same step affect each other only by rounding."""

    name = "vllm"

    def __init__(self, policy_directory: Path, config: EngineSection, trust_remote_code: bool = False) -> None:
        if config.data_parallel_size > 1:
            raise UsageError(
                "vLLM in this process runs one copy of the model (engine.data_parallel_size = "
                f"{config.data_parallel_size})",
                hint='run one task per copy, each with its --shard; or use `vllm serve` and engine.name = "server"',
            )
        self.on_sampled: Callable[[int, int], None] = ignore_progress
        self._config = config
        self._trust_remote_code = trust_remote_code
        self.step_timeout: float | None = config.timeout
        self._torch_device = find_device(config.device)
        self._on_cpu = self._torch_device.type == "cpu"
        self.device = describe_device(self._torch_device)
        self._policy = policy_directory
        self.tokenizer = PolicyTokenizer(policy_directory, trust_remote_code)
        self._batches: dict[int, Batch] = {}
        self._num_batches = 0
        self._requests: dict[str, tuple[int, int, int]] = {}
        """Batch, group and index in the group of each request that is not complete."""
        self._is_asleep = False
        self._llm: Any = self._start(policy_directory)
        model_config = self._llm.model_config
        self.dtype = str(model_config.dtype).removeprefix("torch.")
        self._max_model_len: int = model_config.max_model_len
        self.vocab_size = int(model_config.get_vocab_size())
        names = ("vllm", "torch", "transformers")
        self.versions = {name: _version(name) for name in names}
        if config.batch_invariant:
            self.versions["vllm_batch_invariant"] = "1"

    @property
    def num_unfinished(self) -> int:
        return len(self._batches)

    @property
    def has_room(self) -> bool:
        """True while fewer completions are in progress than `max_num_seqs`."""
        return sum(batch.num_missing for batch in self._batches.values()) < self._config.max_num_seqs

    def submit(self, key: Hashable, groups: Sequence[SamplingGroup], settings: SamplingSettings) -> None:
        if self._llm is None:
            raise IgrpoError("this engine is closed: it has no policy to sample from")
        for index, group in enumerate(groups):
            length = len(group.prompt_ids)
            require_room(index, length, settings.max_completion_length, self._max_model_len, self._policy)
        settings = self.tokenizer.with_all_stops(settings)
        number, self._num_batches = self._num_batches, self._num_batches + 1
        batch = self._batches[number] = Batch(key, groups, settings)
        for index, sample in batch.rows:
            group = groups[index]
            self._requests[request_id := f"{number}/{index}/{sample}"] = (number, index, sample)
            self._add(request_id, group.prompt_ids, group.seeds[sample], batch.settings_of(index, sample))

    def step(self) -> list[tuple[Hashable, list[list[Completion]]]]:
        """Take one decoding step for all completions in progress."""
        if any(batch.num_missing for batch in self._batches.values()):
            for output in self._decode():
                if self._has_ended(output):
                    self._collect(output)
        # If vLLM has no requests left, missing completions never arrive. The batch is returned without them.
        is_idle = bool(self._batches) and not self._llm.has_unfinished_requests()
        done = [number for number, batch in self._batches.items() if is_idle or not batch.num_missing]
        return [self._batches.pop(number).result() for number in done]

    def _decode(self) -> list[Any]:
        """Call vLLM's step. After a failure the engine cannot be used any more."""
        try:
            outputs: list[Any] = self._llm.step()
        except torch.OutOfMemoryError as error:
            what = f"vLLM has no memory for {self._config.max_num_seqs} completions at a time on {self.device}"
            raise IgrpoError(what, hint="lower engine.max_num_seqs or engine.gpu_memory_utilization") from error
        except IgrpoError:
            raise  # raised by a signal handler
        except Exception as error:
            raise Interrupted(
                f"vLLM failed ({type(error).__name__}: {error}); complete blocks are kept",
                hint="run the same command again to continue",
            ) from error
        return outputs

    def load_policy(self, directory: Path) -> None:
        """Load the weights of another policy into the running engine, and empty its prefix cache."""
        check_model_directory(directory)
        if not self._on_cpu:
            gc.collect()
            torch.cuda.empty_cache()  # memory of the update, which the engine needs
        if self._is_asleep:
            self._llm.wake_up(tags=["weights"])
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(directory)})
        if self._on_cpu:
            self._llm.collective_rpc(_repack_heads)
        if self._is_asleep:
            self._llm.wake_up(tags=["kv_cache"])
        self._is_asleep = False
        if not self._llm.reset_prefix_cache():
            raise IgrpoError("vLLM keeps the prefix cache of the old policy", hint="run the same command again")
        self._policy = directory
        self.tokenizer = PolicyTokenizer(directory, self._trust_remote_code)

    def sleep(self) -> None:
        """Free weights and cache on a GPU. The next policy is loaded from disk."""
        if not self._on_cpu and not self._is_asleep:
            self._llm.sleep(level=2)
            self._is_asleep = True

    def close(self) -> None:
        if self._llm is not None:
            self._llm.engine_core.shutdown()
        self._llm = None
        self._batches, self._requests = {}, {}
        gc.collect()
        if not self._on_cpu:
            torch.cuda.empty_cache()

    def _start(self, directory: Path) -> Any:
        check_model_directory(directory)
        set_environment(self._config.batch_invariant)
        try:
            with importing_extra("vllm", "engine.name = vllm"):
                from vllm import EngineArgs
                from vllm.v1.engine.llm_engine import LLMEngine
        except RuntimeError as error:
            raise IgrpoError(
                f"vLLM cannot be imported: {error}",
                hint="torchvision and torchaudio must be built for the same torch, and are not needed: "
                "pip uninstall torchvision torchaudio torchcodec",
            ) from error
        if self._config.speculative_config is not None and not hasattr(EngineArgs, _COUNTS_PROPOSALS):
            raise UsageError(
                f"vLLM {_version('vllm')} does not count the proposals of a completion (engine.speculative_config)",
                hint="install vLLM 0.32 or later, or set engine.speculative_config = {}",
            )
        arguments = EngineArgs(**self._engine_arguments(directory))
        try:
            # Each rank of torchrun has an engine of its own.
            with warnings.catch_warnings(), without_torchrun():
                warnings.simplefilter("ignore")  # They are about vLLM's own code.
                llm = LLMEngine.from_engine_args(arguments)
            if self._on_cpu and self._config.speculative_config is not None:
                llm.collective_rpc(_correct_rejection_sampler)
            return llm
        except (ValueError, RuntimeError, OSError, torch.OutOfMemoryError) as error:
            raise IgrpoError(
                f"vLLM cannot start with {directory}: {error}",
                hint="lower engine.gpu_memory_utilization or engine.max_model_len, or use --engine transformers"
                if self._config.quantization is None
                else f'does vLLM have engine.quantization = "{self._config.quantization}" for this model and device?',
            ) from error

    def _engine_arguments(self, directory: Path) -> dict[str, Any]:
        config = self._config
        arguments: dict[str, Any] = {
            "model": str(directory),
            "skip_tokenizer_init": True,
            "trust_remote_code": self._trust_remote_code,
            "dtype": resolve_dtype(config.dtype, self._torch_device),
            "max_model_len": config.max_model_len,
            "max_num_seqs": config.max_num_seqs,
            "tensor_parallel_size": config.tensor_parallel_size,
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "kv_cache_memory_bytes": config.kv_cache_memory_bytes,
            "enforce_eager": config.enforce_eager,
            "kv_cache_dtype": config.kv_cache_dtype,
            "quantization": config.quantization,
            "enable_prefix_caching": True,
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",
            "seed": 0,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
        }
        speculation = config.speculative_config
        if speculation is not None:
            arguments["speculative_config"] = speculation.model_dump(exclude_none=True)
            arguments[_COUNTS_PROPOSALS] = "summary"
        if not self._on_cpu:
            return {**arguments, "enable_sleep_mode": True}
        if config.kv_cache_memory_bytes is None and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            arguments["kv_cache_memory_bytes"] = _CPU_KV_CACHE_BYTES
        # On a CPU the generator of a seeded row cannot be reset, so a prompt must be computed in one step.
        text_config = read_text_config(directory, self._trust_remote_code)
        positions = config.max_model_len or int(getattr(text_config, "max_position_embeddings", None) or 0)
        # Proposals beyond the limit of a step would be dropped. They would then depend on the other rows.
        of_rows = config.max_num_seqs * (1 + speculation.num_speculative_tokens) if speculation is not None else 0
        batched = {"enable_chunked_prefill": False, "max_num_batched_tokens": max(positions, 4096, of_rows)}
        # vLLM caches prefixes of recurrent states only where it computes prompts in pieces.
        caches_prefixes = not any(sign in key for key in text_config.to_dict() for sign in _RECURRENT_SIGNS)
        return {**arguments, **batched, "enable_prefix_caching": caches_prefixes, "enforce_eager": True}

    def sampling_parameters(self, seed: int, settings: SamplingSettings) -> Any:
        """Return the sampling parameters of one completion, whose `settings` have one temperature."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=temperature_of(settings.temperature, 0),
            top_p=settings.top_p,
            top_k=settings.top_k or -1,
            min_p=settings.min_p or 0.0,
            max_tokens=settings.max_completion_length,
            seed=seed,
            stop_token_ids=list(settings.stop_token_ids),
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            # vLLM has no tokenizer here, so stop strings are looked for in `step`.
            output_kind=RequestOutputKind.CUMULATIVE if settings.stop else RequestOutputKind.FINAL_ONLY,
        )

    def _add(self, request_id: str, prompt_ids: Sequence[int], seed: int, settings: SamplingSettings) -> None:
        from vllm import TokensPrompt

        (rendered,) = self._llm.renderer.render_cmpl([TokensPrompt(prompt_token_ids=list(prompt_ids))])
        self._llm.add_request(request_id, rendered, self.sampling_parameters(seed, settings))

    def _has_ended(self, output: Any) -> bool:
        """Return True for a request that is complete. One whose last token completes a stop string is ended here."""
        location = self._requests.get(output.request_id)
        strings = [] if location is None else self._batches[location[0]].settings.stop
        if strings and len(output.outputs) == 1:
            (drawn,) = output.outputs
            for length in self._new_lengths(len(drawn.token_ids)):
                if self.tokenizer.reaches_stop(drawn.token_ids[:length], strings):
                    self._end_at(output, length)
                    return True
        return bool(output.finished)

    def _new_lengths(self, length: int) -> range:
        """Return the lengths that a completion may have had since the last step. Accepted proposals come together."""
        speculation = self._config.speculative_config
        most_new = 1 if speculation is None else speculation.num_speculative_tokens + 1
        return range(max(length - most_new, 0) + 1, length + 1)

    def _end_at(self, output: Any, length: int) -> None:
        (drawn,) = output.outputs
        if not output.finished:
            # vLLM reports the proposals of a completion when it ends, and not of one that is aborted.
            drawn.spec_decode_metrics = self._proposals_in_progress(output.request_id)
            self._llm.abort_request([output.request_id])
        drawn.token_ids, drawn.logprobs = drawn.token_ids[:length], drawn.logprobs[:length]
        drawn.finish_reason = "stop"

    def _proposals_in_progress(self, request_id: str) -> Any:
        if self._config.speculative_config is None:
            return None
        (internal,) = self._llm.output_processor.external_req_ids[request_id]
        request = self._llm.engine_core.engine_core.scheduler.requests.get(internal)
        return None if request is None else request.spec_decode_metrics

    def _collect(self, output: Any) -> None:
        """Store a completion in its batch. Ignore one that was not requested, or that has another prompt."""
        if (location := self._requests.pop(output.request_id, None)) is None:
            return
        number, index, sample = location
        batch = self._batches[number]
        group = batch.groups[index]
        if len(output.outputs) != 1 or list(output.prompt_token_ids) != list(group.prompt_ids):
            return
        (drawn,) = output.outputs
        sampler = f"policy {self._policy} (group {index}; {self.dtype})"
        completion = to_completion(
            drawn.token_ids,
            drawn.logprobs.logprobs,
            drawn.finish_reason,
            group.seeds[sample],
            batch.settings_of(index, sample),
            sampler,
        )
        if (proposals := getattr(drawn, "spec_decode_metrics", None)) is not None:
            num_accepted = sum(number * steps for number, steps in enumerate(proposals.histogram))
            completion = replace(completion, num_proposed=proposals.num_draft_tokens, num_accepted=num_accepted)
        batch.put(index, sample, completion)
        self.on_sampled(1, len(completion.completion_ids))


def _repack_heads(worker: Any) -> None:
    """Update the packed copy of a tied output matrix, which vLLM on a CPU does not do when weights are reloaded."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in worker.get_model().modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


def _correct_rejection_sampler(worker: Any) -> None:
    """Replace two functions of vLLM's rejection sampler that do not work on a CPU (vLLM 0.32).

    One repeats the settings of each row for the tokens that are proposed in it, and returns uninitialised memory.
    The other fails with top-k in a step in which nothing is proposed.
    """
    from vllm.platforms import current_platform
    from vllm.v1.sample import rejection_sampler

    constrain = rejection_sampler.apply_sampling_constraints
    if constrain.__module__ != rejection_sampler.__name__:
        return  # An earlier engine of this process has replaced them.

    # The names of the parameters are vLLM's: x [batch], cu_num_tokens [batch] are the ends of the rows.
    def expand_batch_to_tokens(
        x: torch.Tensor, cu_num_tokens: torch.Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
    ) -> torch.Tensor:
        replaced_B = torch.where(x == replace_from, replace_to, x).to(x.dtype)
        lengths_B = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1)).long()
        return replaced_B.repeat_interleave(lengths_B, output_size=num_tokens)

    def apply_sampling_constraints(
        logits: torch.Tensor, cu_num_draft_tokens: torch.Tensor, sampling_metadata: Any
    ) -> torch.Tensor:
        return constrain(logits, cu_num_draft_tokens, sampling_metadata) if len(logits) else logits

    # Once is enough for a process. A second time fails, because proposals load numba, which vLLM then stumbles over.
    vars(current_platform)["register_triton_kernel_overrides"] = lambda: None
    rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens
    rejection_sampler.apply_sampling_constraints = apply_sampling_constraints


def _version(name: str) -> str:
    for distribution in (name, f"{name}-cpu"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
