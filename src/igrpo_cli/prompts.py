"""From a problem, and maybe a draft, to a prompt (METHOD: q and q' = Concat(q, d_hat)).

Pure text work: what is ours and what came from outside is marked segment by segment, so that the
tokeniser can keep control tokens out of problems and drafts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable

from igrpo_cli.config.sections import PromptsSection
from igrpo_cli.records import ChatPrompt, PromptSegment

Truncate = Callable[[str, int], tuple[str, bool]]
"""(text, max_tokens) -> (its first tokens as text, whether anything was cut)."""


def prompt_without_draft(problem: str, prompts: PromptsSection) -> ChatPrompt:
    """The prompt q: the problem alone."""
    return ChatPrompt(prompts.system_prompt, (PromptSegment(problem, trusted=False),))


def prompt_with_draft(problem: str, draft: str, prompts: PromptsSection) -> ChatPrompt:
    """The prompt q': the problem with a draft in the same user turn, between fixed markers.

    `draft` is what `visible_draft` returned. A draft that itself writes a marker of the template
    cannot close its own frame: the marker is broken with a space after its first character.
    """
    pieces = re.split(r"(\{problem\}|\{draft\})", prompts.refine_template)
    fill = {"{problem}": problem, "{draft}": _without_markers(draft, prompts.refine_template)}
    user = tuple(PromptSegment(fill.get(piece, piece), trusted=piece not in fill) for piece in pieces if piece)
    return ChatPrompt(prompts.system_prompt, user)


def visible_draft(
    draft: str, extracted_answer: str | None, prompts: PromptsSection, truncate: Truncate
) -> tuple[str, bool]:
    """What of a draft the refinement sees, and whether it was cut to `max_draft_tokens`."""
    if prompts.draft_view == "answer_only":
        shown = extracted_answer or ""
    elif prompts.draft_view == "no_think":
        shown = draft.rpartition("</think>")[2].strip()
    else:
        shown = draft
    return truncate(shown, prompts.max_draft_tokens)


def template_hash(prompts: PromptsSection) -> str:
    """SHA-256 of all that decides how a prompt is laid out, apart from the policy's own chat template."""
    return hashlib.sha256(json.dumps(prompts.model_dump(), sort_keys=True).encode()).hexdigest()


def _without_markers(draft: str, template: str) -> str:
    markers = {line.strip() for line in re.split(r"\{problem\}|\{draft\}|\n", template)}
    for marker in sorted(filter(None, markers), key=len, reverse=True):
        draft = draft.replace(marker, f"{marker[0]} {marker[1:]}")
    return draft
