"""The interface of all engines. Importing this module loads nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from igrpo_cli.config.sections import Dtype, SamplingSettings
from igrpo_cli.errors import IgrpoError
from igrpo_cli.records import Completion, SamplingGroup

if TYPE_CHECKING:
    import torch

    from igrpo_cli.engines.tokenization import PolicyTokenizer


_ROUNDING = 1e-3
"""By how much rounding may raise a log-prob above 0 (nats)."""


class Engine(Protocol):
    """A policy to sample from: `submit` batches while it `has_room`, and `step` until all of them are done.

    `submit` and `step` raise IgrpoError if prompt and completion exceed the context, if the policy gives logits that
    are not finite, and if memory runs out.
    """

    name: str
    device: str
    """Description for the manifest, for example `cpu (2 threads)` or the name of the GPU."""
    dtype: str
    """Dtype in use, never `auto`."""
    versions: dict[str, str]
    """Versions of the libraries that results depend on, by package name."""
    tokenizer: PolicyTokenizer
    vocab_size: int
    """Number of token ids that the policy has an embedding for."""
    step_timeout: float | None
    """Seconds after which a `step` counts as hung; None means no limit."""
    on_sampled: Callable[[int, int], None]
    """Called during `step` with the numbers of completions that ended and of tokens that were sampled."""

    @property
    def num_unfinished(self) -> int:
        """Number of batches that were submitted and are not done."""
        ...

    @property
    def has_room(self) -> bool:
        """True if another batch should be submitted now to keep the engine busy."""
        ...

    def submit(self, key: Hashable, groups: Sequence[SamplingGroup], settings: SamplingSettings) -> None:
        """Add a batch of groups; `step` returns its completions under `key`."""
        ...

    def step(self) -> list[tuple[Hashable, list[list[Completion]]]]:
        """Sample for a while and return the batches that are done: (key, for each group one completion per seed).

        Each completion names its seed. If the engine lost completions of a batch, they are missing in the result.
        Apart from rounding, results depend on the groups of the batch alone. An engine that decodes one batch at a time
        returns the same bits whatever was submitted before.
        """
        ...

    def load_policy(self, directory: Path) -> None:
        """Load the weights of another policy of the same architecture into the running engine."""
        ...

    def sleep(self) -> None:
        """Free the memory of the accelerator until `load_policy` wakes the engine."""
        ...

    def close(self) -> None:
        """Free all memory. The engine cannot be used afterwards."""
        ...


def ignore_progress(completions: int, tokens: int) -> None:
    """Do nothing: the `Engine.on_sampled` of an engine that nobody watches."""


def resolve_dtype(dtype: Dtype, device: torch.device) -> Dtype:
    """Return float32 for `auto` on a device where bfloat16 is slow, else `dtype`. `auto` is the checkpoint's dtype."""
    from igrpo_cli.devices import has_fast_bfloat16

    return "float32" if dtype == "auto" and not has_fast_bfloat16(device) else dtype


def require_room(
    group: int, prompt_length: int, max_completion_length: int, max_model_len: int, policy: Path | str
) -> None:
    """Raise IgrpoError if a prompt is empty, or if prompt and completion may exceed `max_model_len` tokens."""
    total = prompt_length + max_completion_length
    if prompt_length == 0:
        raise IgrpoError(f"the prompt of group {group} has no tokens")
    if total > max_model_len:
        fits = f"lower max_completion_length (in eval: max_gen_toks) to {max_model_len - prompt_length}"
        raise IgrpoError(
            f"the prompt of group {group} has {prompt_length} tokens; with max_completion_length "
            f"{max_completion_length} that makes {total}, and {policy} takes {max_model_len} (max_model_len)",
            hint=fits if prompt_length < max_model_len else "lower max_draft_tokens, or exclude long problems",
        )


def logits_not_finite(sampler: str) -> IgrpoError:
    """Return the error for a policy whose logits are NaN or infinite."""
    return IgrpoError(
        f"{sampler} gives logits that are not finite",
        hint="its weights are damaged or its training diverged: return to an earlier policy",
    )


def fault_of_completion(completion: Completion, seed: int, vocab_size: int) -> str | None:
    """Return why a completion cannot have been drawn with a seed; None where it can."""
    ids, logprobs = completion.completion_ids, completion.sampling_logprobs
    if completion.seed != seed:
        return "the completion of another seed"
    if len(logprobs) != len(ids):
        return f"{len(ids)} tokens with {len(logprobs)} log-probs"
    if invalid := [token for token in (min(ids, default=0), max(ids, default=0)) if not 0 <= token < vocab_size]:
        return f"token id {invalid[0]}, where the vocabulary has {vocab_size},"
    # A finite sum has finite terms; a few thousand finite log-probs do not overflow.
    if not math.isfinite(sum(logprobs)) or max(logprobs, default=0.0) > _ROUNDING:
        impossible = next(each for each in logprobs if not -math.inf < each <= _ROUNDING)
        return f"a log-prob of {impossible}"
    return None
