"""`igrpo show`: show problems of one iteration, from the prompt to the advantage of each refinement."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from igrpo_cli.algo import AT_RANDOM
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
from igrpo_cli.records import EXTERNAL_GROUP, VERDICTS, Rollout, Selection, Verdict
from igrpo_cli.store.hints import command_line
from igrpo_cli.ui.console import Console, printable
from igrpo_cli.ui.quoting import Piece, fenced, heading, in_line, markdown_escaped, quoted, shortened

MIN_SHARE_KEPT = 0.25
"""A refinement that keeps less of its draft is shown as it is. Nobody could read the changes."""
TIES = {"first": "the first", "shortest": "the shortest", "random": "a random one"}
SHOWN_FIELDS = (
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
"""The fields of a rollout in `--json`. Token ids are only in the shards."""


@dataclass(frozen=True)
class ShowRequest:
    """The options of the command line. A story is shown if it matches every filter that is set."""

    run: Path
    iteration: int | None = None
    """None means the newest iteration with a story that matches."""
    problem: str | None = None
    fixed: bool = False
    broken: bool = False
    equal_rewards: bool = False
    verdict: str | None = None
    limit: int = 1
    """Maximum number of stories; 0 shows all."""
    full: bool = False
    """Show long texts whole."""

    def matches(self, story: GroupStory) -> bool:
        """Return True if `story` matches the filters."""
        return (
            self.problem in (None, story.problem.problem_id)
            and (not self.fixed or story.is_fixed)
            and (not self.broken or story.is_broken)
            and (not self.equal_rewards or not story.has_reward_variance)
            and (self.verdict is None or any(rollout.verdict == self.verdict for rollout in story.completions))
        )

    @property
    def filters(self) -> str:
        """The filters as flags."""
        named = {"--problem": self.problem, "--verdict": self.verdict}
        switched = {"--fixed": self.fixed, "--broken": self.broken, "--equal-rewards": self.equal_rewards}
        flags = [f"{flag} {value}" for flag, value in named.items() if value is not None]
        return " ".join([*flags, *(flag for flag, is_set in switched.items() if is_set)])


@dataclass
class Found:
    """The stories that were found."""

    iteration: int | None
    """None when several iterations were searched and none has a match."""
    stories: list[GroupStory] = field(default_factory=list)
    """The stories that match, at most `limit`."""
    matched: int = 0
    groups: int = 0


@dataclass(frozen=True)
class Passage:
    """A line of our own, and the quoted text below it."""

    line: str
    quote: Sequence[Piece] = ()


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
    stories = [text_of(story, settings, full=request.full) for story in found.stories]
    console.data({}, "\n\n\n".join([_heading(request, found), *stories]))


def _check(request: ShowRequest, session: Session) -> None:
    """Raise UsageError for an unknown verdict, iteration or problem."""
    if request.verdict not in (None, *VERDICTS):
        raise UsageError(f"{request.verdict!r} is not a verdict", hint=f"--verdict {', '.join(VERDICTS)}")
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
    """Search the requested iteration, or all from the newest until one has a match.

    Raises MissingInputError when there are no drafts.
    """
    sampled = [number for number in session.run.iterations() if complete_shards(session.run, number, "draft")]
    iterations = [number for number in reversed(sampled) if request.iteration in (None, number)]
    if not iterations:
        what = f"no iteration of {request.run} has a complete draft shard"
        if request.iteration is not None:
            what = f"iteration {request.iteration} of {request.run} has no complete draft shard"
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
    """Return a line that says which stories these are, of how many."""
    run = printable(str(request.run))
    where = run if found.iteration is None else f"{run}, iteration {found.iteration}"
    if not found.stories:
        return f"{where}: no problem matches {request.filters}"
    matching = f" of {found.groups} problems match {request.filters}" if request.filters else " problems"
    more = found.matched - len(found.stories)
    left_out = f", {more} more with --limit 0" if more else ""
    return f"{where}: {found.matched}{matching}{left_out}"


def _payload(story: GroupStory, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a story as a JSON object, with whole texts."""
    selection = None if story.selection is None else {**settings, **asdict(story.selection)}
    return {
        "iteration": story.iteration,
        "group_id": story.group_id,
        **asdict(story.problem),
        "fixed": story.is_fixed,
        "broken": story.is_broken,
        "gradient": story.has_reward_variance,
        "selection": selection,
        "critique": story.critique,
        "drafts": [_completion(draft, story) for draft in story.drafts],
        "refinements": [_completion(refinement, story) for refinement in story.refinements],
    }


def _completion(rollout: Rollout, story: GroupStory) -> dict[str, Any]:
    values = {name: getattr(rollout, name) for name in SHOWN_FIELDS}
    draft = story.draft_shown if rollout.stage == "refine" else None
    return {
        **values,
        "tokens": len(rollout.completion_ids),
        "advantage": story.advantages.get((rollout.stage, rollout.sample_id)),
        "changes": None if draft is None else word_changes(draft, rollout.completion),
    }


def story_text(story: GroupStory, settings: Mapping[str, Any], *, full: bool) -> str:
    """Return a story as text for a terminal. `settings` are those of `[select]`. `full` shows long texts whole."""
    title, *facts = _title(story).split("\n")
    parts = ["\n".join([heading(title), *facts])]
    for passage in _passages(story, settings, full):
        first, *more = passage.line.split("\n")
        parts.append("\n".join([heading(first), *more, *([quoted(passage.quote)] if passage.quote else [])]))
    return "\n\n".join(parts)


def story_markdown(story: GroupStory, settings: Mapping[str, Any], *, full: bool) -> str:
    """Return a story as Markdown."""
    title, *facts = map(markdown_escaped, _title(story).split("\n"))
    parts = [f"### {title}", *facts]
    for passage in _passages(story, settings, full):
        parts += [markdown_escaped(passage.line), *([fenced(passage.quote)] if passage.quote else [])]
    return "\n\n".join(parts)


def selection_sentence(selection: Selection, settings: Mapping[str, Any]) -> str:
    """Return which draft was selected and why, or what was done instead. `settings` are those of `[select]`."""
    strategy, reward = settings.get("strategy", "not recorded"), f"reward {selection.draft_reward:g}"
    draft = f"draft {selection.draft_sample_id}"
    if selection.draft_group_id == EXTERNAL_GROUP:
        draft, reward = f"external {draft}", "reward not known"
    elif selection.draft_group_id != selection.group_id:
        draft += f" of group {selection.draft_group_id}"
    elif selection.num_tied > 1 and strategy not in AT_RANDOM:
        reward = f"{TIES.get(settings.get('ties', ''), 'one')} of {selection.num_tied} with {reward}"
    if settings.get("scores") is not None:
        reward += f" in the scores {settings['scores']}"
    spread = f"rewards of the drafts: mean {selection.group_reward_mean:g}, std {selection.group_reward_std:.3g}"
    if selection.action == "condition":
        return f"selected: {draft}, {reward}\nstrategy {strategy}; {spread}"
    done = "refined without draft" if selection.action == "bare" else "dropped, not refined"
    return f"{done}\nstrategy {strategy}, all_zero {settings.get('all_zero')}; {spread}"


def _title(story: GroupStory) -> str:
    name, source, answer = map(in_line, (story.problem.problem_id, story.problem.source, story.problem.answer))
    place = f"group {story.group_id} of iteration {story.iteration}, from {source}"
    return f"{name}, {place}\nreference answer: {answer}\n{'; '.join(_outcome(story))}"


def _outcome(story: GroupStory) -> Iterator[str]:
    yield f"{_correct(story.drafts)} drafts correct"
    if story.draft_verdict is not None:
        yield f"the selected one: {_words(story.draft_verdict)}"
    if story.refinements:
        which = "verdicts on it" if story.has_verifications else "refinements"
        yield f"{_correct(story.refinements)} {which} correct"
    if story.is_fixed:
        yield "fixed"
    if story.is_broken:
        yield "broken"
    if not story.has_reward_variance:
        yield "equal rewards"


def _correct(rollouts: Sequence[Rollout]) -> str:
    return f"{sum(rollout.verdict == 'correct' for rollout in rollouts)} of {len(rollouts)}"


def _passages(story: GroupStory, settings: Mapping[str, Any], full: bool) -> Iterator[Passage]:
    passages = [_prompt("prompt", story.drafts), *_drafts(story)]
    if story.selection is not None:
        passages.append(Passage(selection_sentence(story.selection, settings)))
    if (critique := story.critique) is not None:
        passages.append(Passage("critique of the draft", [("same", critique)]))
    if story.refinements:
        passages += [_prompt("prompt of the refinements", story.refinements), *_refinements(story)]
    for passage in passages:
        yield passage if full else Passage(passage.line, shortened(passage.quote))


def _prompt(name: str, rollouts: Sequence[Rollout]) -> Passage:
    return Passage(f"{name}, {len(rollouts[0].prompt_ids)} tokens", [("same", rollouts[0].prompt)])


def _drafts(story: GroupStory) -> Iterator[Passage]:
    seen: dict[str, int] = {}
    for draft in story.drafts:
        line = _facts("draft", draft, story)
        first = seen.setdefault(draft.completion, draft.sample_id)
        if first == draft.sample_id:
            yield Passage(line, [("same", draft.completion)])
        else:
            yield Passage(f"{line}\nequal to draft {first}")


def _refinements(story: GroupStory) -> Iterator[Passage]:
    seen: dict[str, int] = {}
    for refinement in story.refinements:
        line, draft, text = _facts("refinement", refinement, story), story.draft_shown, refinement.completion
        first = seen.setdefault(text, refinement.sample_id)
        if draft is not None and draft.strip() == text.strip():
            yield Passage(f"{line}\nequal to its draft")
        elif first != refinement.sample_id:
            yield Passage(f"{line}\nequal to refinement {first}")
        else:
            yield Passage(line, _changes(draft, text))


def _changes(draft: str | None, completion: str) -> list[Piece]:
    changes = None if draft is None else word_changes(draft, completion)
    if changes is None:
        return [("same", completion)]
    kept = sum(len(text) for kind, text in changes if kind == "same")
    return changes if kept >= MIN_SHARE_KEPT * len(completion) else [("same", completion)]


def _facts(name: str, rollout: Rollout, story: GroupStory) -> str:
    parts = ", ".join(f"{part} {value:g}" for part, value in rollout.reward_parts.items())
    facts = [
        f"{name} {rollout.sample_id}: {_words(rollout.verdict)}",
        f"reward {rollout.reward:g} ({parts})",
        *([] if rollout.extracted_answer is None else [f"answer {in_line(rollout.extracted_answer)}"]),
        f"{len(rollout.completion_ids)} tokens",
    ]
    if rollout.finish_reason != "stop":
        facts.append({"length": "truncated", "abort": "aborted"}[rollout.finish_reason])
    advantage = story.advantages.get((rollout.stage, rollout.sample_id))
    if advantage is not None:
        facts.append(f"advantage {advantage:+.2f}")
    return ", ".join(facts)


def _words(verdict: Verdict) -> str:
    return verdict.replace("_", " ")
