"""Sampling with transformers in this process, on the CPU or one GPU, with a seed for every completion."""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tokenizers
import torch
import transformers

from igrpo_cli.config.engine import EngineSection
from igrpo_cli.config.sections import SamplingSettings
from igrpo_cli.devices import describe_device, find_device, memory_for
from igrpo_cli.engines.architectures import require_length, supported_config
from igrpo_cli.engines.base import ignore_progress, logits_not_finite, require_room, resolve_dtype
from igrpo_cli.engines.decoding import Decoding, NonFiniteLogitsError, Part, find_batching
from igrpo_cli.engines.hub import find_tensor, load_causal_lm
from igrpo_cli.engines.tokenization import PolicyTokenizer
from igrpo_cli.errors import DamagedFileError, IgrpoError, UsageError
from igrpo_cli.records import Completion, SamplingGroup


class TransformersEngine:
    """The `Engine` that decodes with transformers, one batch at a time."""

    name = "transformers"
    step_timeout: float | None = None
    """None: a step is a whole batch, which may take hours."""

    def __init__(self, policy_directory: Path, config: EngineSection, trust_remote_code: bool = False) -> None:
        self.on_sampled: Callable[[int, int], None] = ignore_progress
        self._config = config
        self._trust_remote_code = trust_remote_code
        self._torch_device = find_device(config.device)
        self.device = describe_device(self._torch_device)
        self.versions = {module.__name__: module.__version__ for module in (torch, transformers, tokenizers)}
        self._model: Any = None
        self._batching: Literal["any", "equal"] | None = None
        """Result of `find_batching` for the first policy; the others have the same architecture."""
        self._queue: deque[tuple[Hashable, Sequence[SamplingGroup], SamplingSettings]] = deque()
        self.load_policy(policy_directory)

    def load_policy(self, directory: Path) -> None:
        """Replace the policy. The old one is freed first, so that memory never holds two."""
        self.close()
        self._policy = directory
        self.tokenizer = PolicyTokenizer(directory, self._trust_remote_code)
        config = supported_config(directory, trust_remote_code=self._trust_remote_code)
        require_length(config, directory, self._config.max_model_len)
        dtype = resolve_dtype(self._config.dtype, self._torch_device)
        model = load_causal_lm(directory, dtype, trust_remote_code=self._trust_remote_code)
        self._model = model.to(self._torch_device)
        self.vocab_size = len(self._model.get_input_embeddings().weight)
        _check_tokenizer(directory, self.tokenizer, self.vocab_size)
        self.dtype = str(self._model.dtype).removeprefix("torch.")
        self._max_model_len = _find_max_model_len(self._model.config, self._config.max_model_len)
        with memory_for(f"a test of the policy on {self.device}", "use a device with more memory"):
            self._batching = self._batching or find_batching(self._model)

    @property
    def num_unfinished(self) -> int:
        return len(self._queue)

    @property
    def has_room(self) -> bool:
        """True if no batch is waiting. One batch at a time decodes the same rows together in every run."""
        return not self._queue

    def submit(self, key: Hashable, groups: Sequence[SamplingGroup], settings: SamplingSettings) -> None:
        self._queue.append((key, groups, settings))

    def step(self) -> list[tuple[Hashable, list[list[Completion]]]]:
        """Decode the oldest batch and return it."""
        key, groups, settings = self._queue.popleft()
        completions: list[list[Completion]] = [[] for _ in groups]
        for index, drawn in self.sample(groups, settings):
            completions[index] = drawn
        return [(key, completions)]

    def sleep(self) -> None:
        """Free the weights on a GPU. On a CPU, memory is large enough for them and the optimiser step."""
        if self._torch_device.type == "cuda":
            self.close()

    def close(self) -> None:
        self._model = None
        gc.collect()
        if self._torch_device.type == "cuda":
            torch.cuda.empty_cache()

    def sample(
        self, groups: Sequence[SamplingGroup], settings: SamplingSettings
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (index in `groups`, completions of the group) when a group is complete, in any order.

        Groups are decoded in waves of at most `max_num_seqs` completions. The same call returns the same bits.
        """
        if self._model is None:
            raise IgrpoError("this engine is closed: it has no policy to sample from")
        for index, group in enumerate(groups):
            require_room(
                index, len(group.prompt_ids), settings.max_completion_length, self._max_model_len, self._policy
            )
        settings = self.tokenizer.with_all_stops(settings)
        yield from ((index, []) for index, group in enumerate(groups) if not group.seeds)
        collected: dict[int, list[Completion]] = {}
        for wave in plan_waves(groups, self._config.max_num_seqs, equal_lengths=self._batching == "equal"):
            for index, completions in self._sample_wave(wave, settings):
                so_far = collected.setdefault(index, [])
                so_far += completions
                if len(so_far) == len(groups[index].seeds):
                    yield index, collected.pop(index)

    def _sample_wave(self, wave: Sequence[Part], settings: SamplingSettings) -> Iterator[tuple[int, list[Completion]]]:
        rows = sum(len(part.seeds) for part in wave)
        try:
            with memory_for(f"{rows} completions at a time on {self.device}", "lower engine.max_num_seqs"):
                reaches_stop = partial(self.tokenizer.reaches_stop, strings=settings.stop) if settings.stop else None
                decoding = Decoding(self._model, wave, settings, reaches_stop)
                while not decoding.is_over:
                    before = decoding.num_unfinished
                    yield from decoding.step()
                    self.on_sampled(before - decoding.num_unfinished, before)
        except NonFiniteLogitsError as error:
            sampler = f"policy {self._policy} ({error}; {self.dtype}){self._non_finite_tensor()}"
            raise logits_not_finite(sampler) from error

    def _non_finite_tensor(self) -> str:
        """Return a clause that names a tensor with NaN or infinity and its file; empty if all tensors are finite."""
        for name, tensor in self._model.named_parameters():
            if not bool(torch.isfinite(tensor).all()):
                return f", whose tensor {name} in {find_tensor(self._policy, name)} holds NaN or infinity,"
        return ""


def plan_waves(groups: Sequence[SamplingGroup], max_num_seqs: int, *, equal_lengths: bool = False) -> list[list[Part]]:
    """Split the groups, in their order, into waves of at most `max_num_seqs` completions.

    A group is split only if it alone is larger. With `equal_lengths` all prompts of a wave have the same length.
    """
    waves: list[list[Part]] = []
    free = 0
    numbered = list(enumerate(groups))
    if equal_lengths:
        numbered.sort(key=lambda each: len(each[1].prompt_ids))
    for index, group in numbered:
        if equal_lengths and waves and len(waves[-1][0].prompt_ids) != len(group.prompt_ids):
            free = 0
        for start in range(0, len(group.seeds), max_num_seqs):
            rows = range(len(group.seeds))[start : start + max_num_seqs]
            seeds, sample_ids = [group.seeds[row] for row in rows], [group.sample_id(row) for row in rows]
            part = Part(index, group.prompt_ids, seeds, sample_ids)
            if len(part.seeds) > free:
                waves.append([])
                free = max_num_seqs
            waves[-1].append(part)
            free -= len(part.seeds)
    return waves


def _check_tokenizer(directory: Path, tokenizer: PolicyTokenizer, num_embeddings: int) -> None:
    """Raise DamagedFileError if the tokenizer has an id without an embedding, as that of another model may have."""
    if tokenizer.largest_id >= num_embeddings:
        raise DamagedFileError(
            f"{directory / 'tokenizer.json'} has the token id {tokenizer.largest_id}, but the weights have only "
            f"{num_embeddings} embeddings: one of them belongs to another model",
            hint="download or copy the model again",
        )


def _find_max_model_len(config: Any, requested: int | None) -> int:
    """Return the maximum tokens of prompt and completion: `requested`, or the positions of the model if it is None."""
    positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    limit = positions if requested is None else requested
    if limit is None:
        return sys.maxsize  # A recurrent state takes any number of tokens.
    if positions is not None and limit > positions:
        raise UsageError(f"max_model_len {limit} exceeds the model's {positions} positions", hint="lower it")
    return limit
