"""What every engine is to the commands. Light: nothing heavy is imported until it is needed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from igrpo_cli.config.sections import Dtype, SamplingSettings
from igrpo_cli.errors import IgrpoError
from igrpo_cli.records import Completion, SamplingGroup

if TYPE_CHECKING:
    import torch

    from igrpo_cli.engines.tokenization import PolicyTokenizer


class Engine(Protocol):
    """A policy ready to be sampled from. Its life: `submit` batches while it `has_room`, `step` until they are back.

    Errors of `submit` and `step`: `IgrpoError` where prompt and completion exceed the context, where the policy
    yields logits that are not finite, and where memory runs out.
    """

    name: str
    device: str
    """In words, for the manifest: `cpu (2 threads)`, or the name of the GPU."""
    dtype: str
    """The one in use, never `auto`."""
    versions: dict[str, str]
    """Versions of the libraries that decide what is sampled, by package name."""
    tokenizer: PolicyTokenizer
    vocab_size: int
    """Token ids that the policy may draw: it has an embedding of each below this one."""
    step_timeout: float | None
    """Seconds after which a `step` that has not come back never will; None where it may take as long as it likes."""

    @property
    def num_unfinished(self) -> int:
        """Batches that were submitted and have not come back."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether it should be given another batch now, to have no idle moment."""
        ...

    def submit(self, key: Hashable, groups: Sequence[SamplingGroup], settings: SamplingSettings) -> None:
        """Take on a batch of groups, called `key` when it comes back."""
        ...

    def step(self) -> list[tuple[Hashable, list[list[Completion]]]]:
        """Work for a while; the batches that this finished: (key, for each group a completion for each of its seeds).

        Each completion says which seed it was drawn for. A batch that the engine lost completions of comes back
        without them. What comes out depends on the groups of the batch alone, but for rounding; an engine that
        decodes a batch at a time gives the same bits whatever was submitted before.
        """
        ...

    def load_policy(self, directory: Path) -> None:
        """Put the weights of another policy of the same kind into the running engine."""
        ...

    def sleep(self) -> None:
        """Give the accelerator's memory to somebody else; `load_policy` ends the rest."""
        ...

    def close(self) -> None:
        """Give all memory back; the engine is of no use afterwards."""
        ...


def resolve_dtype(dtype: Dtype, device: torch.device) -> Dtype:
    """`auto` is float32 where bfloat16 is slow, else still `auto`, which is the checkpoint's own."""
    from igrpo_cli.devices import has_fast_bfloat16

    return "float32" if dtype == "auto" and not has_fast_bfloat16(device) else dtype


def require_room(
    group: int, prompt_length: int, max_completion_length: int, max_model_len: int, policy: Path | str
) -> None:
    """Raise IgrpoError for a prompt without tokens, or one that leaves no room for its completion."""
    total = prompt_length + max_completion_length
    if prompt_length == 0:
        raise IgrpoError(f"the prompt of group {group} has no tokens")
    if total > max_model_len:
        fits = f"lower max_completion_length to {max_model_len - prompt_length}"
        raise IgrpoError(
            f"the prompt of group {group} has {prompt_length} tokens; with max_completion_length "
            f"{max_completion_length} that makes {total}, and {policy} takes {max_model_len} (max_model_len)",
            hint=fits if prompt_length < max_model_len else "lower max_draft_tokens, or leave long problems out",
        )


def logits_not_finite(sampler: str) -> IgrpoError:
    """What to raise of a policy whose logits are no numbers."""
    return IgrpoError(
        f"{sampler} gives logits that are not finite",
        hint="its weights are damaged or its training diverged: go back to an earlier policy",
    )
