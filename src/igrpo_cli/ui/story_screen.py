"""The story of a problem as text: for a terminal or a file, and as Markdown to paste."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from igrpo_cli.inspection.stories import GroupStory, word_changes
from igrpo_cli.records import Rollout, Selection, Verdict
from igrpo_cli.ui.quoting import Piece, fenced, heading, in_line, markdown_escaped, quoted, shortened

MIN_SHARE_KEPT = 0.25
"""Of a refinement that keeps less of its draft the words are shown, not their changes: nobody could read those."""
TIES = {"first": "the first", "shortest": "the shortest", "random": "one at random"}


@dataclass(frozen=True)
class Passage:
    """A line of ours, and the text of others that it introduces."""

    line: str
    quote: Sequence[Piece] = ()


def story_text(story: GroupStory, settings: Mapping[str, Any], *, whole: bool) -> str:
    """A story for a terminal. `settings` are those of the selection; `whole` leaves nothing out of long texts."""
    title, *facts = _title(story).split("\n")
    parts = ["\n".join([heading(title), *facts])]
    for passage in _passages(story, settings, whole):
        first, *more = passage.line.split("\n")
        parts.append("\n".join([heading(first), *more, *([quoted(passage.quote)] if passage.quote else [])]))
    return "\n\n".join(parts)


def story_markdown(story: GroupStory, settings: Mapping[str, Any], *, whole: bool) -> str:
    """The same as Markdown."""
    title, *facts = map(markdown_escaped, _title(story).split("\n"))
    parts = [f"### {title}", *facts]
    for passage in _passages(story, settings, whole):
        parts += [markdown_escaped(passage.line), *([fenced(passage.quote)] if passage.quote else [])]
    return "\n\n".join(parts)


def selection_sentence(selection: Selection, settings: Mapping[str, Any]) -> str:
    """Which draft was selected, or what was done instead, and why; `settings` are those of `[select]`."""
    strategy, reward = settings.get("strategy", "not recorded"), f"reward {selection.draft_reward:g}"
    draft = f"draft {selection.draft_sample_id}"
    if selection.draft_group_id != selection.group_id:
        draft += f" of group {selection.draft_group_id}"
    elif selection.num_tied > 1 and strategy != "random":
        reward = f"{TIES.get(settings.get('ties', ''), 'one')} of {selection.num_tied} with {reward}"
    if settings.get("scores") is not None:
        reward += f" in the scores {settings['scores']}"
    spread = f"rewards of the drafts: mean {selection.group_reward_mean:g}, std {selection.group_reward_std:.3g}"
    if selection.action == "condition":
        return f"selected: {draft}, {reward}\nstrategy {strategy}; {spread}"
    done = "refined without a draft" if selection.action == "bare" else "dropped, not refined"
    return f"{done}\nstrategy {strategy}, all_zero {settings.get('all_zero')}; {spread}"


def _title(story: GroupStory) -> str:
    name, source, answer = map(in_line, (story.problem.problem_id, story.problem.source, story.problem.answer))
    place = f"group {story.group_id} of iteration {story.iteration}, from {source}"
    return f"{name}, {place}\nreference answer: {answer}\n{'; '.join(_outcome(story))}"


def _outcome(story: GroupStory) -> Iterator[str]:
    yield f"{_right(story.drafts)} drafts right"
    if story.draft_verdict is not None:
        yield f"the selected one: {_words(story.draft_verdict)}"
    if story.refinements:
        yield f"{_right(story.refinements)} refinements right"
    if story.is_fixed:
        yield "fixed"
    if story.is_broken:
        yield "broken"
    if not story.has_reward_variance:
        yield "no gradient"


def _right(rollouts: Sequence[Rollout]) -> str:
    return f"{sum(rollout.verdict == 'correct' for rollout in rollouts)} of {len(rollouts)}"


def _passages(story: GroupStory, settings: Mapping[str, Any], whole: bool) -> Iterator[Passage]:
    told = [_prompt("prompt", story.drafts), *_drafts(story)]
    if story.selection is not None:
        told.append(Passage(selection_sentence(story.selection, settings)))
    if story.refinements:
        told += [_prompt("prompt of the refinements", story.refinements), *_refinements(story)]
    for passage in told:
        yield passage if whole else Passage(passage.line, shortened(passage.quote))


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
            yield Passage(f"{line}\nword for word draft {first}")


def _refinements(story: GroupStory) -> Iterator[Passage]:
    seen: dict[str, int] = {}
    for refinement in story.refinements:
        line, draft, text = _facts("refinement", refinement, story), story.draft_shown, refinement.completion
        first = seen.setdefault(text, refinement.sample_id)
        if draft is not None and draft.strip() == text.strip():
            yield Passage(f"{line}\nword for word its draft")
        elif first != refinement.sample_id:
            yield Passage(f"{line}\nword for word refinement {first}")
        else:
            yield Passage(line, _against_draft(draft, text))


def _against_draft(draft: str | None, completion: str) -> list[Piece]:
    changes = None if draft is None else word_changes(draft, completion)
    if draft is None or changes is None:
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
        facts.append({"length": "cut at the limit", "abort": "aborted"}[rollout.finish_reason])
    advantage = story.advantages.get((rollout.stage, rollout.sample_id))
    if advantage is not None:
        facts.append(f"advantage {advantage:+.2f}")
    return ", ".join(facts)


def _words(verdict: Verdict) -> str:
    return verdict.replace("_", " ")
