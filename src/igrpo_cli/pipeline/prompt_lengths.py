"""Check that prompts fit their limit, and that prompt, draft and completion fit the positions of the model."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from igrpo_cli.config import RunConfig
from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.prompts import critique_prompt, prompt_with_draft, prompt_without_draft
from igrpo_cli.records import VERDICTS, ChatPrompt, Problem

if TYPE_CHECKING:
    from igrpo_cli.engines.tokenization import PolicyTokenizer


class PromptLengths:
    """Counts the tokens of prompts, of all problems of a run.

    Encoding hundreds of thousands of prompts takes minutes, and most are far below their limit. So a prompt is only
    encoded if it may exceed the limit: a token has at least one byte of the text, in whatever Unicode normal form the
    tokenizer puts it. If the tokenizer lacks a character of some problem, every prompt is encoded, and the error names
    the character.
    """

    def __init__(self, problems: Sequence[Problem], config: RunConfig, tokenizer: PolicyTokenizer) -> None:
        self._problems = problems
        self._config, self._prompts = config, config.prompts
        self._tokenizer = tokenizer

    def over(self, problem: Problem, limit: int) -> int | None:
        """Return the number of tokens of the prompt without draft, if it is more than `limit`; else None."""
        if self._at_most(problem) <= limit:
            return None
        num_tokens = self._count(prompt_without_draft(problem, self._prompts))
        return num_tokens if num_tokens > limit else None

    @cached_property
    def added_by_a_draft(self) -> int:
        """Number of tokens by which the markers make a prompt with draft longer, the draft itself aside."""
        with_draft = max(
            self._count(prompt_with_draft(self._shortest, "1", self._prompts, verdict)) for verdict in VERDICTS
        )
        return max(with_draft - self._count(prompt_without_draft(self._shortest, self._prompts)), 0)

    @cached_property
    def added_by_a_critique_prompt(self) -> int:
        """Number of tokens by which a prompt for a critique is longer than one without draft, the draft aside."""
        longest = max((each.answer for each in self._problems), key=len)
        asked = replace(self._shortest, answer=longest)
        asking = max(self._count(critique_prompt(asked, "1", self._config, verdict)) for verdict in VERDICTS)
        return max(asking - self._count(prompt_without_draft(self._shortest, self._prompts)), 0)

    @cached_property
    def begun(self) -> int:
        """Number of tokens that the prompt adds to every draft: a thought that the template opens, and a prefill."""
        problem = max(self._problems, key=lambda each: len(each.prefill))
        begun = self._tokenizer.beginning_of_completion(prompt_without_draft(problem, self._prompts))
        return len(self._tokenizer.encode_text(begun, is_draft=True)) if begun else 0

    @cached_property
    def _shortest(self) -> Problem:
        problem = min(self._problems, key=lambda each: len(each.problem))
        return replace(problem, earlier_turns="", prefill="", system_prompt="")

    @cached_property
    def _frame(self) -> tuple[float, int]:
        """Tokens that the template adds at most, and the number of times that it shows the problem."""
        return self._frame_of(self._shortest)

    @cached_property
    def _frame_with_system(self) -> tuple[float, int]:
        """As `_frame`, for problems with a system prompt of their own."""
        return self._frame_of(replace(self._shortest, system_prompt="?"))

    def _frame_of(self, shortest: Problem) -> tuple[float, int]:
        try:
            text, ids = self._tokenizer.encode_prompt(prompt_without_draft(shortest, self._prompts))
            characters = set().union(*map(_own_text, self._problems))
            self._tokenizer.encode_text("".join(sorted(characters)))
        except IgrpoError:
            return math.inf, 1
        return len(ids), max(text.count(shortest.problem), 1)

    def _at_most(self, problem: Problem) -> float:
        if problem.earlier_turns:
            return math.inf  # What the template adds to each turn is not known.
        text = _own_text(problem)
        num_bytes = len(text)
        if not text.isascii():
            num_bytes = max(len(form.encode()) for form in (text, unicodedata.normalize("NFKD", text)))
        added, times_shown = self._frame_with_system if problem.system_prompt else self._frame
        return added + times_shown * num_bytes

    def _count(self, prompt: ChatPrompt) -> int:
        return len(self._tokenizer.encode_prompt(prompt)[1])


def _own_text(problem: Problem) -> str:
    return problem.system_prompt + problem.problem + problem.prefill


def short_enough(lengths: PromptLengths, problems: Sequence[Problem], config: RunConfig) -> list[Problem]:
    """Return the problems whose prompt fits `prompts.max_prompt_length`. Others are an error, or are skipped."""
    limit, kept = config.prompts.max_prompt_length, []
    too_long: list[tuple[Problem, int]] = []
    for problem in problems:
        num_tokens = lengths.over(problem, limit)
        if num_tokens is None:
            kept.append(problem)
        else:
            too_long.append((problem, num_tokens))
    if too_long and not config.data.skip_bad_rows:
        first, num_tokens = too_long[0]
        longest = max(length for _, length in too_long)
        raise IgrpoError(
            f"{first.source}: the prompt has {num_tokens} tokens, more than prompts.max_prompt_length = {limit}; "
            f"{len(too_long)} of {len(problems)} prompts are longer than that",
            hint=f"--set prompts.max_prompt_length={longest}, or count and skip such rows: --skip-bad-rows",
        )
    if not kept:
        raise IgrpoError(f"no problem has a prompt of at most prompts.max_prompt_length = {limit} tokens")
    return kept


def require_completions_fit(config: RunConfig, positions: int | None) -> None:
    """Raise UsageError for a completion that is as long as the context of the model, however short the prompt.

    It needs no tokenizer and no problems. `require_context` also counts prompts and drafts.
    """
    context = config.engine.max_model_len or positions
    if context is None:
        return
    for stage in ("draft", "refine"):
        length = getattr(config, stage).max_completion_length
        if stage in config.stages() and length >= context:
            limit = "engine.max_model_len" if config.engine.max_model_len else "the positions of the model"
            raise UsageError(
                f"{stage}.max_completion_length = {length:,}, but {config.policy.model} takes {context:,} tokens of "
                f"prompt and completion together ({limit})",
                # The prompt of a refinement contains a draft: a quarter each, and half of the context for the problem.
                hint=f"--set {stage}.max_completion_length={max(context // 4, 1)}, or a model with a longer context",
            )


def require_context(
    lengths: PromptLengths, problems: Sequence[Problem], config: RunConfig, positions: int | None
) -> None:
    """Raise UsageError if a stage may need more tokens than the model has positions, or than `engine.max_model_len`.

    `positions` is None for a model without a maximum. Otherwise the stage would fail in the middle of an iteration,
    after the samples before it are paid for.
    """
    context = config.engine.max_model_len or positions
    if context is None:
        return
    draft, prompts = config.draft.max_completion_length, config.prompts
    _require_room(lengths, problems, config, context, "draft", 0, draft)
    if "refine" in config.stages() and config.select.strategy != "none":
        # An answer alone is short. If it is not, refine says so.
        shown = 0 if prompts.draft_view == "answer_only" else min(draft + lengths.begun, prompts.max_draft_tokens)
        critique = 0 if config.critique.by == "none" else config.critique.max_completion_length
        if config.critique.by == "policy":
            _require_room(lengths, problems, config, context, "critique", shown, critique)
        refinement = config.refine.max_completion_length
        _require_room(lengths, problems, config, context, "refine", shown, refinement, critique)


def _require_room(
    lengths: PromptLengths,
    problems: Sequence[Problem],
    config: RunConfig,
    context: int,
    stage: str,
    draft: int,
    completion: int,
    critique: int = 0,
) -> None:
    markers = 0
    if stage != "draft":
        markers = lengths.added_by_a_draft if stage == "refine" else lengths.added_by_a_critique_prompt
    room = context - draft - markers - critique - completion
    too_long = [(tokens, problem) for problem in problems if (tokens := lengths.over(problem, room)) is not None]
    if not too_long:
        return
    prompt, problem = max(too_long, key=lambda each: each[0])
    excess = prompt - room
    of_draft = f"draft {draft:,} + its markers {markers} + " if stage != "draft" else ""
    of_draft += f"critique {critique:,} + " if critique else ""
    limit = "engine.max_model_len" if config.engine.max_model_len else "the positions of the model"
    ways = [
        f"prompts.max_draft_tokens={draft - excess} (longer drafts are cut, and counted)" if draft > excess else "",
        f"{stage}.max_completion_length={completion - excess}" if completion > excess else "",
        f"critique.max_completion_length={critique - excess}" if critique > excess else "",
        f"prompts.max_prompt_length={room} with --skip-bad-rows, which leaves out {len(too_long):,} problems"
        if 0 < room < prompt and len(too_long) < len(problems)
        else "",
        "a higher engine.max_model_len" if config.engine.max_model_len else "",
    ]
    total = prompt + draft + markers + critique + completion
    raise UsageError(
        f"{stage} may need {total:,} tokens (prompt of {problem.source} {prompt:,} + "
        f"{of_draft}completion {completion:,}), and {config.policy.model} takes {context:,} ({limit})",
        hint=f"--set {'; or '.join(filter(None, ways))}" if any(ways) else "use a model with a longer context",
    )
