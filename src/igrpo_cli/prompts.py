"""Prompts: a problem without draft, q, or with one, q' = Concat(q, d_hat) (arXiv 2602.09000).

Each segment of a prompt is marked as trusted or untrusted, so that the tokenizer can keep control tokens out of
problems and drafts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from igrpo_cli.config import RunConfig
from igrpo_cli.config.sections import PromptsSection
from igrpo_cli.records import ChatPrompt, Problem, PromptSegment, Selection, Verdict
from igrpo_cli.thoughts import after_thought

Truncate = Callable[[str, int], tuple[str, bool]]
"""A function (text, max_tokens) -> (first tokens of the text, True if anything was cut)."""


def prompt_without_draft(problem: Problem, prompts: PromptsSection) -> ChatPrompt:
    """Return the prompt q: the problem alone, after its earlier turns if it has any.

    With `prompts.empty_draft`, that text is in the place of a draft.
    """
    if prompts.empty_draft is not None:
        return _with_slot(problem, PromptSegment(prompts.empty_draft, trusted=True), prompts)
    return _prompt(problem, (PromptSegment(problem.problem, trusted=False),), prompts)


def prompt_with_draft(
    problem: Problem, draft: str, prompts: PromptsSection, verdict: Verdict | None = None, critique: str = ""
) -> ChatPrompt:
    """Return the prompt q': the problem and a draft, in one user turn or as an earlier turn of the assistant.

    `draft` is the result of `visible_draft`. In the user turn it stands between fixed markers: a marker of the template
    within the draft gets a space after its first character, so that a draft cannot end its own frame. In the turn of
    the assistant it is as it was written. `verdict` is that on the draft, for templates with `{verdict}`, and
    `critique` the result of `visible_critique`, for those with `{critique}`.
    """
    if prompts.draft_turn == "user":
        draft, critique = (_without_markers(text, prompts.refine_template) for text in (draft, critique))
    return _with_slot(problem, PromptSegment(draft, trusted=False, is_draft=True), prompts, verdict, critique)


def critique_prompt(problem: Problem, draft: str, config: RunConfig, verdict: Verdict | None = None) -> ChatPrompt:
    """Return the prompt that asks for a critique of a draft: `critique.template`, filled as a prompt with draft is.

    It has the earlier turns of the problem, and no prefill, which begins a solution.
    """
    section, prompts = config.critique, config.prompts
    draft = _without_markers(draft, section.template)
    fill = {
        "{problem}": PromptSegment(problem.problem, trusted=False),
        "{draft}": PromptSegment(draft, trusted=False, is_draft=True),
        "{verdict}": PromptSegment(prompts.verdict_text(verdict), trusted=True),
        "{answer}": PromptSegment(problem.answer, trusted=False),
    }
    earlier = tuple(json.loads(problem.earlier_turns or "[]"))
    return ChatPrompt(section.system_prompt, _filled(section.template, fill), prompts.chat_template_kwargs, earlier)


def visible_critique(critique: str, max_tokens: int, truncate: Truncate) -> str:
    """Return the part of a critique that refinements see: the text after its thought, at most `max_tokens` tokens."""
    return truncate((after_thought(critique) or "").strip(), max_tokens)[0]


def refined_problem(problem: Problem, selection: Selection, config: RunConfig) -> Problem:
    """Return the problem with the reference answer that refinements of a selected draft are graded against.

    With `reward.refinements = "verdict"` it is the text for the verdict on the draft, and empty if that could not be
    graded. A refinement without draft answers the problem itself.
    """
    if config.reward.refinements == "answer" or selection.action != "condition":
        return problem
    is_graded = selection.draft_verdict != "ungraded"
    return replace(problem, answer=config.prompts.verdict_text(selection.draft_verdict) if is_graded else "")


def visible_draft(
    draft: str, extracted_answer: str | None, prompts: PromptsSection, truncate: Truncate
) -> tuple[str, bool]:
    """Return the part of a draft that the refinement sees, and True if it was cut to `max_draft_tokens`."""
    if prompts.draft_view == "answer_only":
        shown = extracted_answer or ""
    elif prompts.draft_view == "no_think":
        shown = (after_thought(draft) or "").strip()
    else:
        shown = draft
    return truncate(shown, prompts.max_draft_tokens)


def template_hash(prompts: PromptsSection) -> str:
    """Return the SHA-256 of the settings that prompts depend on. The chat template of the policy is not included."""
    return hashlib.sha256(json.dumps(prompts.model_dump(), sort_keys=True).encode()).hexdigest()


def _with_slot(
    problem: Problem, draft: PromptSegment, prompts: PromptsSection, verdict: Verdict | None = None, critique: str = ""
) -> ChatPrompt:
    """Return the prompt with `draft` in the place that `prompts.draft_turn` names."""
    fill = {
        "{verdict}": PromptSegment(prompts.verdict_text(verdict), trusted=True),
        "{critique}": PromptSegment(critique, trusted=False, is_draft=True),
    }
    if prompts.draft_turn == "assistant":
        return _prompt(problem, _filled(prompts.refine_request, fill), prompts, (problem.problem, draft.text))
    fill |= {"{problem}": PromptSegment(problem.problem, trusted=False), "{draft}": draft}
    return _prompt(problem, _filled(prompts.refine_template, fill), prompts)


def _filled(template: str, fill: Mapping[str, PromptSegment]) -> tuple[PromptSegment, ...]:
    """Return a template as segments, with those of `fill` in the places of its keys."""
    pieces = re.split("(" + "|".join(map(re.escape, fill)) + ")", template)
    return tuple(fill.get(piece) or PromptSegment(piece, trusted=True) for piece in pieces if piece)


def _prompt(
    problem: Problem, user: tuple[PromptSegment, ...], prompts: PromptsSection, last_turns: tuple[str, ...] = ()
) -> ChatPrompt:
    """Return the prompt of a problem; `last_turns` follow its own earlier turns."""
    earlier = (*json.loads(problem.earlier_turns or "[]"), *last_turns)
    kwargs, system = prompts.chat_template_kwargs, prompts.system_prompt
    return ChatPrompt(system, user, kwargs, earlier, problem.prefill, problem.system_prompt)


def _without_markers(draft: str, template: str) -> str:
    markers = {line.strip() for line in re.split(r"\{problem\}|\{draft\}|\{critique\}|\n", template)}
    for marker in sorted(filter(None, markers), key=len, reverse=True):
        draft = draft.replace(marker, f"{marker[0]} {marker[1:]}")
    return draft
