"""`igrpo show`: problems through one iteration, from the prompt to the advantage of each refinement."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from igrpo_cli.errors import MissingInputError, UsageError
from igrpo_cli.inspection.stories import (
    GroupStory,
    complete_shards,
    problems_by_id,
    read_stories,
    selection_settings,
    word_changes,
)
from igrpo_cli.pipeline.session import Session, open_session
from igrpo_cli.records import VERDICTS, Rollout
from igrpo_cli.store.layout import command_line
from igrpo_cli.ui.console import Console, printable
from igrpo_cli.ui.story_screen import story_markdown, story_text


@dataclass(frozen=True)
class ShowRequest:
    """What the command line asked for: a story matches when it matches every filter that is set."""

    run: Path
    iteration: int | None = None
    """None stands for the newest one with a story that matches."""
    problem: str | None = None
    fixed: bool = False
    broken: bool = False
    no_gradient: bool = False
    verdict: str | None = None
    limit: int = 1
    """Stories to show; 0 for all."""
    whole: bool = False
    """Whether to leave nothing out of long texts."""

    def matches(self, story: GroupStory) -> bool:
        """Whether `story` is one to show."""
        return (
            self.problem in (None, story.problem.problem_id)
            and (not self.fixed or story.is_fixed)
            and (not self.broken or story.is_broken)
            and (not self.no_gradient or not story.has_reward_variance)
            and (self.verdict is None or any(rollout.verdict == self.verdict for rollout in story.completions))
        )

    @property
    def filters(self) -> str:
        """The filters as flags."""
        named = {"--problem": self.problem, "--verdict": self.verdict}
        switched = {"--fixed": self.fixed, "--broken": self.broken, "--no-gradient": self.no_gradient}
        flags = [f"{flag} {value}" for flag, value in named.items() if value is not None]
        return " ".join([*flags, *(flag for flag, is_set in switched.items() if is_set)])


@dataclass
class Found:
    """What an iteration has to show."""

    iteration: int | None
    """None where several were searched and none had anything."""
    stories: list[GroupStory] = field(default_factory=list)
    """Those that match, at most `limit`."""
    matched: int = 0
    groups: int = 0


def run(request: ShowRequest, console: Console, *, markdown: bool = False) -> None:
    """Print the stories that match."""
    with open_session(request.run, [], console, only_looks=True) as session:
        _check(request, session)
        found = _find(session, request, console)
        settings = {} if found.iteration is None else selection_settings(session.run, found.iteration)
    payload = {"run": str(request.run), "iteration": found.iteration, "matched": found.matched, "groups": found.groups}
    if console.as_json:
        console.data({**payload, "stories": [_payload(story, settings) for story in found.stories]}, "")
        return
    text_of = story_markdown if markdown else story_text
    stories = [text_of(story, settings, whole=request.whole) for story in found.stories]
    console.data({}, "\n\n\n".join([_heading(request, found), *stories]))


def _check(request: ShowRequest, session: Session) -> None:
    """Raises UsageError for what no run has, or not this one."""
    if request.verdict not in (None, *VERDICTS):
        raise UsageError(f"{request.verdict!r} is no verdict", hint=f"--verdict {', '.join(VERDICTS)}")
    if request.iteration is not None:
        session.iteration_or_current(request.iteration)
    if request.problem is not None:
        known = [problem.problem_id for problem in session.problems()]
        if request.problem not in known:
            nearest = difflib.get_close_matches(request.problem, known, n=1)
            raise UsageError(
                f"the run has no problem {request.problem!r}" + (f"; did you mean {nearest[0]}?" if nearest else ""),
                hint=f"its {len(known)} problems begin with {known[0]}",
            )


def _find(session: Session, request: ShowRequest, console: Console) -> Found:
    """What the iteration asked for has to show; else the newest one with anything.

    Raises MissingInputError where there are no drafts.
    """
    sampled = [number for number in session.run.iterations() if complete_shards(session.run, number, "draft")]
    iterations = [number for number in reversed(sampled) if request.iteration in (None, number)]
    if not iterations:
        what = f"no iteration of {request.run} has a finished draft shard"
        if request.iteration is not None:
            what = f"iteration {request.iteration} of {request.run} has no finished draft shard"
        raise MissingInputError(what, hint=command_line(request.run, "draft", f"--iteration {request.iteration or 0}"))
    problems = problems_by_id(session.run)
    with console.progress("searching", len(iterations), "iterations") as progress:
        for iteration in iterations:
            found = Found(iteration)
            for story in read_stories(session.run, iteration, problems):
                found.groups += 1
                if request.matches(story):
                    found.matched += 1
                    if found.matched <= (request.limit or found.matched):
                        found.stories.append(story)
            if found.stories:
                return found
            progress.advance()
    return Found(request.iteration)


def _heading(request: ShowRequest, found: Found) -> str:
    """Which stories these are, of how many."""
    run = printable(str(request.run))
    where = run if found.iteration is None else f"{run}, iteration {found.iteration}"
    if not found.stories:
        return f"{where}: no problem matches {request.filters}"
    matching = f" of {found.groups} problems match {request.filters}" if request.filters else " problems"
    more = found.matched - len(found.stories)
    left_out = f", {more} more with --limit 0" if more else ""
    return f"{where}: {found.matched}{matching}{left_out}"


def _payload(story: GroupStory, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A story as JSON: texts whole, token ids left to the shards."""
    selection = None if story.selection is None else {**settings, **asdict(story.selection)}
    return {
        "iteration": story.iteration,
        "group_id": story.group_id,
        **asdict(story.problem),
        "fixed": story.is_fixed,
        "broken": story.is_broken,
        "gradient": story.has_reward_variance,
        "selection": selection,
        "drafts": [_completion(draft, story) for draft in story.drafts],
        "refinements": [_completion(refinement, story) for refinement in story.refinements],
    }


def _completion(rollout: Rollout, story: GroupStory) -> dict[str, Any]:
    values = {name: getattr(rollout, name) for name in _SHOWN}
    draft = story.draft_shown if rollout.stage == "refine" else None
    return {
        **values,
        "tokens": len(rollout.completion_ids),
        "advantage": story.advantages.get((rollout.stage, rollout.sample_id)),
        "changes": None if draft is None else word_changes(draft, rollout.completion),
    }


_SHOWN = (
    "sample_id",
    "draft_sample_id",
    "prompt",
    "completion",
    "finish_reason",
    "reward",
    "reward_parts",
    "verdict",
    "extracted_answer",
)
