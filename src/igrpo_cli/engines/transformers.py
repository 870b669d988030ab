"""Sampling with transformers in this process, on CPU or on one GPU, with a seed for every completion."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM

from igrpo_cli.engines.base import EngineSettings
from igrpo_cli.engines.decoding import Decoding, NonFiniteLogitsError, Part
from igrpo_cli.engines.hub import check_model_directory
from igrpo_cli.engines.tokenization import PolicyTokenizer
from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.records import Completion, SamplingGroup, SamplingSettings


class TransformersEngine:
    """An `Engine`: see there."""

    name = "transformers"

    def __init__(self, policy_directory: Path, settings: EngineSettings) -> None:
        self._settings = settings
        self._torch_device = _find_device(settings.device)
        self.device = _describe_device(self._torch_device)
        self.versions = {module.__name__: module.__version__ for module in (torch, transformers, tokenizers)}
        self._model: Any = None
        # What goes to stderr is for the console to say.
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self.load_policy(policy_directory)

    def load_policy(self, directory: Path) -> None:
        """Replace the policy. The old one goes first, so that memory never holds two."""
        self.close()
        self._policy = directory
        self.tokenizer = PolicyTokenizer(directory, self._settings.trust_remote_code)
        self._model = _load_model(directory, self._settings, self._torch_device)
        self.dtype = str(self._model.dtype).removeprefix("torch.")
        self._max_model_len = _find_max_model_len(self._model.config, self._settings.max_model_len)

    def close(self) -> None:
        self._model = None
        gc.collect()
        if self._torch_device.type == "cuda":
            torch.cuda.empty_cache()

    def sample(
        self, groups: Sequence[SamplingGroup], settings: SamplingSettings
    ) -> Iterator[tuple[int, list[Completion]]]:
        """See `Engine.sample`. Waves of at most `max_num_seqs` completions follow each other, whole groups in each."""
        if self._model is None:
            raise IgrpoError("this engine is closed: it has no policy to sample from")
        for index, group in enumerate(groups):
            self._check_length(index, len(group.prompt_ids), settings.max_completion_length)
        yield from ((index, []) for index, group in enumerate(groups) if not group.seeds)
        collected: dict[int, list[Completion]] = {}
        for wave in plan_waves(groups, self._settings.max_num_seqs):
            for index, completions in self._sample_wave(wave, settings):
                so_far = collected.setdefault(index, [])
                so_far += completions
                if len(so_far) == len(groups[index].seeds):
                    yield index, collected.pop(index)

    def _check_length(self, index: int, prompt_length: int, max_completion_length: int) -> None:
        total, limit = prompt_length + max_completion_length, self._max_model_len
        if prompt_length == 0:
            raise IgrpoError(f"the prompt of group {index} has no tokens")
        if total > limit:
            fits = f"lower max_completion_length to {limit - prompt_length}"
            raise IgrpoError(
                f"the prompt of group {index} has {prompt_length} tokens; with max_completion_length "
                f"{max_completion_length} that makes {total}, and {self._policy} takes {limit} (max_model_len)",
                hint=fits if prompt_length < limit else "lower max_draft_tokens, or leave long problems out",
            )

    def _sample_wave(self, wave: Sequence[Part], settings: SamplingSettings) -> Iterator[tuple[int, list[Completion]]]:
        try:
            decoding = Decoding(self._model, wave, settings, self.tokenizer.eos_token_ids)
            while not decoding.is_over:
                yield from decoding.step()
        except NonFiniteLogitsError as error:
            raise IgrpoError(
                f"policy {self._policy} gives logits that are not finite ({error}; {self.dtype})",
                hint="its weights are damaged or its training diverged: go back to an earlier policy",
            ) from error
        except torch.OutOfMemoryError as error:
            rows = sum(len(part.seeds) for part in wave)
            raise IgrpoError(
                f"{self.device} has no memory for {rows} completions at a time", hint="lower max_num_seqs"
            ) from error


def plan_waves(groups: Sequence[SamplingGroup], max_num_seqs: int) -> list[list[Part]]:
    """Cut the groups, in their order, into waves of at most `max_num_seqs` completions.

    A group stays in one wave, unless it alone is larger.
    """
    waves: list[list[Part]] = []
    free = 0
    for index, group in enumerate(groups):
        for start in range(0, len(group.seeds), max_num_seqs):
            part = Part(index, group.prompt_ids, group.seeds[start : start + max_num_seqs])
            if len(part.seeds) > free:
                waves.append([])
                free = max_num_seqs
            waves[-1].append(part)
            free -= len(part.seeds)
    return waves


def _find_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"torch knows no device {name!r}", hint="use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"there is no {name} here: torch sees {torch.cuda.device_count()} GPUs", hint="use auto")
    return device


def _describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


def _load_model(directory: Path, settings: EngineSettings, device: torch.device) -> Any:
    check_model_directory(directory)
    dtype = settings.dtype
    if dtype == "auto" and device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "DEFAULT"):
        dtype = "float32"  # without AVX-512, bfloat16 is emulated and several times slower
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=settings.trust_remote_code,
            local_files_only=True,
        )
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise IgrpoError(f"{directory} cannot be loaded as a language model: {error}") from error
    return model.to(device).eval()


def _find_max_model_len(config: Any, asked: int | None) -> int:
    """Most tokens of prompt and completion: what is asked for, within the positions that the model was made for."""
    positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    limit = positions if asked is None else asked
    if limit is None:
        raise UsageError("the model's config does not say how many positions it has", hint="set max_model_len")
    if positions is not None and limit > positions:
        raise UsageError(f"max_model_len {limit} exceeds the model's {positions} positions", hint="lower it")
    return limit
