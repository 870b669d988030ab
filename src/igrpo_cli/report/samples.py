"""The sample problems of a report: some of each kind, spread over the iterations, so that the page stays small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from igrpo_cli.errors import IgrpoError
from igrpo_cli.inspection.stories import GroupStory, read_stories
from igrpo_cli.records import Rollout
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.ui.quoting import MAX_SHOWN

MAX_ITERATIONS = 10
MAX_STORIES_OF_A_KIND = 3
"""Maximum per iteration."""
MAX_COMPLETIONS = 8
"""Maximum per stage of a story."""
MAX_CHARACTERS = 4_000_000
"""Maximum of a whole report, shared equally by the iterations of all runs."""

KINDS: dict[str, Callable[[GroupStory], bool]] = {
    "fixed": lambda story: story.is_fixed,
    "broken": lambda story: story.is_broken,
    "equal rewards": lambda story: not story.has_reward_variance,
    "never correct": lambda story: all(each.verdict != "correct" for each in story.completions),
    "always correct": lambda story: all(each.verdict == "correct" for each in story.completions),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """A story on the page."""

    story: GroupStory
    kinds: list[str]
    drafts: list[Rollout]
    """At most MAX_COMPLETIONS, and the selected draft."""
    refinements: list[Rollout]


@dataclass(slots=True)
class Samples:
    """The stories of one run on the page."""

    samples: list[Sample] = field(default_factory=list)
    iterations: list[int] = field(default_factory=list)
    """The iterations of the stories."""
    unreadable: list[str] = field(default_factory=list)


def choose_samples(run: RunDirectory, iterations: Sequence[int], num_runs: int) -> Samples:
    """Return stories of evenly spread iterations, the first and the last included: the first few of each kind."""
    chosen = Samples()
    last = len(iterations) - 1
    places = (
        sorted({round(place * last / (MAX_ITERATIONS - 1)) for place in range(MAX_ITERATIONS)}) if iterations else []
    )
    for iteration in (iterations[place] for place in places):
        try:
            chosen.samples += _of_iteration(run, iteration, MAX_CHARACTERS // (num_runs * len(places)))
            chosen.iterations.append(iteration)
        except IgrpoError as error:
            chosen.unreadable.append(f"problems of iteration {iteration}: {error.message}")
    return chosen


def _of_iteration(run: RunDirectory, iteration: int, characters: int) -> list[Sample]:
    found: list[Sample] = []
    counts = dict.fromkeys([*KINDS, "other"], 0)
    for story in read_stories(run, iteration):
        kinds = [kind for kind, is_of_kind in KINDS.items() if is_of_kind(story)] or ["other"]
        if all(counts[kind] >= MAX_STORIES_OF_A_KIND for kind in kinds):
            continue
        sample = Sample(story, kinds, _few(story.drafts, _selected(story)), _few(story.refinements, None))
        characters -= _size(sample)
        if characters < 0 and found:
            break
        found.append(sample)
        for kind in kinds:
            counts[kind] += 1
    return found


def _selected(story: GroupStory) -> int | None:
    chosen = story.selection
    return chosen.draft_sample_id if chosen is not None and chosen.draft_group_id == story.group_id else None


def _few(rollouts: Sequence[Rollout], wanted: int | None) -> list[Rollout]:
    return [each for place, each in enumerate(rollouts) if place < MAX_COMPLETIONS or each.sample_id == wanted]


def _size(sample: Sample) -> int:
    texts = [sample.story.problem.problem, *(each.completion for each in (*sample.drafts, *sample.refinements))]
    return sum(min(len(text), MAX_SHOWN) for text in texts)
