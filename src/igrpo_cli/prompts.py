"""Prompts: a problem without draft, q, or with one, q' = Concat(q, d_hat) (arXiv 2602.09000).

Each segment of a prompt is marked as trusted or untrusted, so that the tokenizer can keep control tokens out of
problems and drafts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable

from igrpo_cli.config.sections import PromptsSection
from igrpo_cli.records import ChatPrompt, Problem, PromptSegment
from igrpo_cli.thoughts import after_thought

Truncate = Callable[[str, int], tuple[str, bool]]
"""A function (text, max_tokens) -> (first tokens of the text, True if anything was cut)."""


def prompt_without_draft(problem: Problem, prompts: PromptsSection) -> ChatPrompt:
    """Return the prompt q: the problem alone, after its earlier turns if it has any."""
    return _prompt(problem, (PromptSegment(problem.problem, trusted=False),), prompts)


def prompt_with_draft(problem: Problem, draft: str, prompts: PromptsSection) -> ChatPrompt:
    """Return the prompt q': the problem and a draft in one user turn, between fixed markers.

    `draft` is the result of `visible_draft`. A marker of the template within the draft gets a space after its first
    character, so that a draft cannot end its own frame.
    """
    pieces = re.split(r"(\{problem\}|\{draft\})", prompts.refine_template)
    fill = {"{problem}": problem.problem, "{draft}": _without_markers(draft, prompts.refine_template)}
    user = tuple(
        PromptSegment(fill.get(piece, piece), trusted=piece not in fill, is_draft=piece == "{draft}")
        for piece in pieces
        if piece
    )
    return _prompt(problem, user, prompts)


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


def _prompt(problem: Problem, user: tuple[PromptSegment, ...], prompts: PromptsSection) -> ChatPrompt:
    earlier = tuple(json.loads(problem.earlier_turns or "[]"))
    return ChatPrompt(prompts.system_prompt, user, prompts.chat_template_kwargs, earlier, problem.prefill)


def _without_markers(draft: str, template: str) -> str:
    markers = {line.strip() for line in re.split(r"\{problem\}|\{draft\}|\n", template)}
    for marker in sorted(filter(None, markers), key=len, reverse=True):
        draft = draft.replace(marker, f"{marker[0]} {marker[1:]}")
    return draft
