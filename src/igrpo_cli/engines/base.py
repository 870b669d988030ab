"""What every engine is to the commands, and how one is made. Light: nothing heavy is imported until it is needed."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from igrpo_cli.errors import UsageError
from igrpo_cli.records import Completion, SamplingGroup, SamplingSettings

if TYPE_CHECKING:
    from igrpo_cli.engines.tokenization import PolicyTokenizer

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How an engine runs, under vLLM's names. None of this may change what is sampled, but for rounding."""

    dtype: Dtype = "auto"
    """Of weights and activations; `auto`: the checkpoint's own, but float32 on a CPU that has no fast bfloat16."""
    device: str = "auto"
    """`auto`: the first GPU if there is one, else the CPU; or a name that torch knows, for example `cuda:1`."""
    max_num_seqs: int = 256
    """Most completions decoded at the same time."""
    max_model_len: int | None = None
    """Most tokens of prompt and completion together; None: as many as the model has positions for."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""


class Engine(Protocol):
    """A policy ready to be sampled from.

    Errors of `sample`: `IgrpoError` where prompt and completion exceed the context, where the policy yields
    logits that are not finite, and where memory runs out.
    """

    name: str
    device: str
    """In words, for the manifest: `cpu (2 threads)`, or the name of the GPU."""
    dtype: str
    """The one in use, never `auto`."""
    versions: dict[str, str]
    """Versions of the libraries that decide what is sampled, by package name."""
    tokenizer: PolicyTokenizer

    def sample(
        self, groups: Sequence[SamplingGroup], settings: SamplingSettings
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield `(index in groups, a completion for each of its seeds)` as groups finish, each index once.

        What comes out depends on the groups of this call alone: same call, same bits.
        """
        ...

    def load_policy(self, directory: Path) -> None:
        """Put the weights of another policy of the same kind into the running engine."""
        ...

    def close(self) -> None:
        """Give the memory back; the engine is of no use afterwards."""
        ...


def _create_transformers(policy_directory: Path, settings: EngineSettings) -> Engine:
    from igrpo_cli.engines.transformers import TransformersEngine

    return TransformersEngine(policy_directory, settings)


_FACTORIES: dict[str, Callable[[Path, EngineSettings], Engine]] = {
    "auto": _create_transformers,
    "transformers": _create_transformers,
}
ENGINE_NAMES = tuple(_FACTORIES)


def create_engine(name: str, policy_directory: Path, settings: EngineSettings) -> Engine:
    """The engine called `name` (one of `ENGINE_NAMES`), with the policy of a Hugging Face model directory in it."""
    if name not in _FACTORIES:
        nearest = difflib.get_close_matches(name, ENGINE_NAMES, n=1, cutoff=0.0)[0]
        raise UsageError(
            f"there is no engine {name!r} (there are {', '.join(ENGINE_NAMES)})", hint=f"did you mean {nearest!r}?"
        )
    return _FACTORIES[name](policy_directory, settings)
