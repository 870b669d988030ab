"""An engine whose word is not taken: what comes back is held against what was asked for, and asked for again."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

from igrpo_cli.errors import Interrupted
from igrpo_cli.records import Completion, SamplingGroup, SamplingSettings

if TYPE_CHECKING:
    from igrpo_cli.engines.base import Engine

MAX_TRIES = 3
"""How often a batch is sampled of which the engine gives back something else than was asked for."""
_ROUNDING = 1e-3
"""By how much (nats) rounding may lift a log-prob above 0, which none can exceed."""

_Key = TypeVar("_Key")


@dataclass(frozen=True, eq=False)
class Asked(Generic[_Key]):
    """A batch that the engine was given. It is its own key: each try has another one, which no engine can guess."""

    key: _Key
    groups: Sequence[SamplingGroup]
    names: Sequence[str]
    """What errors call each group."""
    settings: SamplingSettings
    tries: int = 1

    @property
    def name(self) -> str:
        """What errors call the batch."""
        return f"the batch of {self.names[0]}" if self.names else "a batch without groups"


class CheckedEngine(Generic[_Key]):
    """Batches in, and out once, as asked for: one completion for each seed of each group, that could be drawn.

    A batch of which something else comes back, or nothing, is sampled again, `MAX_TRIES` times in all; as often
    may something come back that was not asked for.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._under_way: dict[Hashable, Asked[_Key]] = {}
        self._num_strays = 0

    @property
    def num_unfinished(self) -> int:
        """Batches that were submitted and have not come back as asked for."""
        return len(self._under_way)

    def submit(
        self, key: _Key, groups: Sequence[SamplingGroup], names: Sequence[str], settings: SamplingSettings
    ) -> None:
        """Give the engine a batch; `names` is what errors call its groups."""
        self._submit(Asked(key, groups, names, settings))

    def step(self, watching: Callable[[], AbstractContextManager[object]]) -> list[tuple[_Key, list[list[Completion]]]]:
        """A step of the engine within `watching()`: the batches that came back as asked for.

        Raises Interrupted where the engine keeps giving back something else.
        """
        if not self._under_way:
            return []
        with watching():
            done = self._engine.step()
        came: dict[Hashable, list[list[list[Completion]]]] = {}
        for key, completions in done:
            came.setdefault(key, []).append(completions)
        sound, again = [], []
        for key, answers in came.items():
            if (asked := self._under_way.pop(key, None)) is None:
                self._count_stray(key)
            elif (what := _unlike_asked(asked, answers, self._engine.vocab_size)) is None:
                sound.append((asked.key, answers[0]))
            else:
                again.append((asked, what))
        if not self._engine.num_unfinished:
            again += [(asked, f"nothing of {asked.name}") for asked in self._under_way.values()]
            self._under_way.clear()
        for asked, what in again:
            if asked.tries == MAX_TRIES:
                raise _returned(what)
            self._submit(replace(asked, tries=asked.tries + 1))
        return sound

    def _submit(self, asked: Asked[_Key]) -> None:
        self._engine.submit(asked, asked.groups, asked.settings)
        self._under_way[asked] = asked

    def _count_stray(self, key: Hashable) -> None:
        self._num_strays += 1
        if self._num_strays == MAX_TRIES:
            what = f"{key.name} once more" if isinstance(key, Asked) else f"a batch called {repr(key)[:80]}"
            raise _returned(f"{what}, which it was not asked for")


def _returned(what: str) -> Interrupted:
    return Interrupted(
        f"the engine returned {what}, {MAX_TRIES} times",
        hint="run the same command again; finished blocks are kept",
    )


def _unlike_asked(asked: Asked[_Key], answers: Sequence[Sequence[Sequence[Completion]]], vocab_size: int) -> str | None:
    """What is wrong with what came back of a batch; None where it is a completion for each seed of each group."""
    completions, *more = answers
    if more:
        return f"{asked.name} {len(answers)} times at once"
    if len(completions) != len(asked.groups):
        return f"{len(completions)} groups where {len(asked.groups)} were asked for"
    for group, name, drawn in zip(asked.groups, asked.names, completions, strict=True):
        if len(drawn) != len(group.seeds):
            return f"{len(drawn)} completions of {name} where {len(group.seeds)} were asked for"
        for sample, (seed, completion) in enumerate(zip(group.seeds, drawn, strict=True)):
            if (what := _unlike_drawn(completion, seed, vocab_size)) is not None:
                return f"{what} as sample {sample} of {name}"
    return None


def _unlike_drawn(completion: Completion, seed: int, vocab_size: int) -> str | None:
    """Why a completion cannot have been drawn for a seed; None where it can."""
    ids, logprobs = completion.completion_ids, completion.sampling_logprobs
    if completion.seed != seed:
        return "the completion of another seed"
    if len(logprobs) != len(ids):
        return f"{len(ids)} tokens with {len(logprobs)} log-probs"
    if strange := [token for token in (min(ids, default=0), max(ids, default=0)) if not 0 <= token < vocab_size]:
        return f"token id {strange[0]}, where the vocabulary has {vocab_size},"
    # A finite sum has finite terms; a few thousand finite log-probs do not overflow.
    if not math.isfinite(sum(logprobs)) or max(logprobs, default=0.0) > _ROUNDING:
        impossible = next(each for each in logprobs if not -math.inf < each <= _ROUNDING)
        return f"a log-prob of {impossible}"
    return None
