"""The chat template of a model: from the turns of a prompt to its text, with a mark of what is untrusted.

Problems and drafts are not passed to the template but placeholders of them, which shows where each character of the
rendered prompt comes from.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.records import ChatPrompt, PromptSegment
from igrpo_cli.thoughts import last_thought, opened_thought

PLAIN_TEMPLATE = (
    "{{ beginning }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% else %}{{ 'Assistant: ' + message['content'] + '\n\n' }}{% endif %}"
    "{% endfor %}Assistant:"
)
"""Chat template of models that have none. `beginning` is the BOS token if the tokenizer puts one before a text."""

PLAIN_STOP = "\nUser:"
"""Where a model with the plain chat template begins another turn of the user."""

TEMPLATE_DATE = date(2025, 1, 1)
"""Date that chat templates see, because prompts must not change from one day to the next."""
WITHOUT_EARLIER_TURNS = "use problems without earlier turns, and drafts in the user turn: --set prompts.draft_turn=user"
_DATE_CALL = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")


class ChatTemplate:
    """The chat template of a model directory, or the plain one if it has none."""

    def __init__(self, directory: Path, tokenizer: Any) -> None:
        """Raise IgrpoError if there are several templates and none of them is the default."""
        self._directory = directory
        self._tokenizer = tokenizer
        self.is_plain = not tokenizer.chat_template
        try:
            source = PLAIN_TEMPLATE if self.is_plain else tokenizer.get_chat_template()
        except ValueError as error:
            raise IgrpoError(
                f"{directory} has several chat templates and no default one: {error}",
                hint="save the one to use as chat_template.jinja",
            ) from error
        self._source: str = _DATE_CALL.sub(lambda call: repr(TEMPLATE_DATE.strftime(call[2])), source)
        self._beginning = _text_beginning(tokenizer) if self.is_plain else ""
        self._thoughts: dict[tuple[str, str, str, tuple[PromptSegment, ...]], str] = {}
        self._system_turns: dict[str, bool] = {}

    def render(self, prompt: ChatPrompt) -> list[PromptSegment]:
        """Return the whole rendered prompt with its prefill, split into trusted and untrusted text.

        If the template refuses or drops a system turn, its text is put before that of the first user turn.
        """
        segments, prefill = self._render(prompt), self._prefill(prompt)
        if self.is_plain and prefill and not prefill[0].text[0].isspace():
            segments.append(PromptSegment(" ", trusted=True))  # as in the earlier turns of the plain template
        return [*segments, *prefill]

    def beginning_of_completion(self, prompt: ChatPrompt) -> str:
        """Return the end of a rendered prompt that belongs to what the model says, and that its completion continues.

        It is the thought that the template opens, from its tag, and the prefill; "" where the prompt has neither.
        """
        return opened_thought(self._last_thought(prompt)) + "".join(segment.text for segment in self._prefill(prompt))

    def end_of_turn(self) -> str:
        """Return the text that the template puts after a turn of the assistant; "" where that cannot be found out."""
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "ANSWER"}]
        try:
            if self._render_turns(turns[:1], {}, add_generation_prompt=False) == self._render_turns(turns[:1], {}):
                return ""  # The template begins a turn whether it is asked to or not.
            rendered = self._render_turns(turns, {}, add_generation_prompt=False)
        except Exception:  # A template may raise anything, for example because it needs further arguments.
            return ""
        _, answer, rest = rendered.rpartition("ANSWER")
        return rest.strip() if answer else ""

    def _render(self, prompt: ChatPrompt) -> list[PromptSegment]:
        marker = self._free_marker(prompt)
        untrusted: list[PromptSegment] = []
        earlier = [
            PromptSegment(text, trusted=False, is_draft=number % 2 == 1) for number, text in enumerate(prompt.earlier)
        ]
        texts = [
            _mark_untrusted(turn, marker, untrusted)
            for turn in (_system_turn(prompt), *([each] for each in earlier), prompt.user)
        ]
        rendered = self._apply(texts[0], texts[1:], prompt.template_kwargs)
        pieces = re.split(f"{marker}([0-9]+)E", rendered)
        if missing := set(range(len(untrusted))) - {int(number) for number in pieces[1::2]}:
            raise IgrpoError(
                f"the chat template of {self._directory} drops {len(missing)} of {len(untrusted)} texts of the prompt",
                hint=WITHOUT_EARLIER_TURNS if prompt.earlier else None,
            )
        return [
            untrusted[int(piece)] if number % 2 else PromptSegment(piece, trusted=True)
            for number, piece in enumerate(pieces)
        ]

    def _prefill(self, prompt: ChatPrompt) -> list[PromptSegment]:
        """Return the prefill, without the thought that the template begins the turn with as well."""
        text = prompt.prefill
        if text and (thought := self._last_thought(prompt)):
            repeated = re.match(r"\s*" + r"\s*".join(map(re.escape, thought.split())), text)
            text = text[repeated.end() :] if repeated else text
            text = text.lstrip() if repeated and thought[-1].isspace() else text
        return [PromptSegment(text, trusted=False, is_draft=True)] if text else []

    def _last_thought(self, prompt: ChatPrompt) -> str:
        """Return the end of the rendered prompt from the thought that it ends with, open or closed; "" without one."""
        # The texts of problems and drafts decide nothing, but a template may look for a switch in the user turn.
        user = tuple(part if part.trusted else replace(part, text="?") for part in prompt.user)
        has_system = "?" if prompt.problem_system else ""
        key = prompt.system, has_system, json.dumps(prompt.template_kwargs, sort_keys=True), user
        if key not in self._thoughts:
            *_, last = self._render(replace(prompt, user=user, earlier=(), problem_system=has_system))
            self._thoughts[key] = last_thought(last.text) if last.trusted else ""
        return self._thoughts[key]

    def _free_marker(self, prompt: ChatPrompt) -> str:
        """Return a word that occurs neither in the template nor in the text of the prompt."""
        texts = [*prompt.earlier, *(segment.text for segment in prompt.user)]
        known = "".join([self._source, prompt.system, prompt.problem_system, *texts])
        marker = "UNTRUSTED"
        while marker in known:
            marker += "X"
        return marker

    def _apply(self, system: str, texts: Sequence[str], template_kwargs: Mapping[str, Any]) -> str:
        """Render a system turn and the turns `texts`: user, assistant, …, user."""
        own = {*inspect.signature(self._tokenizer.apply_chat_template).parameters} if template_kwargs else set()
        if taken := sorted(template_kwargs.keys() & {*own, "beginning", "messages"}):
            what = f"prompts.chat_template_kwargs has {taken[0]}, which is no argument of a chat template"
            raise UsageError(what, hint="remove it")
        turns = [{"role": "assistant" if number % 2 else "user", "content": text} for number, text in enumerate(texts)]
        if system and self._has_system_turn(template_kwargs):
            with contextlib.suppress(TemplateError):
                return self._render_turns([{"role": "system", "content": system}, *turns], template_kwargs)
        if system:
            turns[0]["content"] = f"{system}\n\n{turns[0]['content']}"
        try:
            return self._render_turns(turns, template_kwargs)
        except (TemplateError, TypeError, ValueError) as error:
            file = self._directory / "chat_template.jinja"
            file = file if file.is_file() else self._directory / "tokenizer_config.json"
            hint = WITHOUT_EARLIER_TURNS if len(turns) > 1 else None
            raise IgrpoError(f"the chat template of {file} fails: {error}", hint=hint) from error

    def _has_system_turn(self, template_kwargs: Mapping[str, Any]) -> bool:
        """Return True if the template shows a system turn, from which it may remove a switch such as /no_think."""
        key = json.dumps(template_kwargs, sort_keys=True)
        if key not in self._system_turns:
            turns, rendered = [{"role": "system", "content": "SYSTEMTEXT"}, {"role": "user", "content": "?"}], ""
            with contextlib.suppress(TemplateError):
                rendered = self._render_turns(turns, template_kwargs)
            self._system_turns[key] = "SYSTEMTEXT" in rendered
        return self._system_turns[key]

    def _render_turns(
        self, turns: list[dict[str, str]], template_kwargs: Mapping[str, Any], *, add_generation_prompt: bool = True
    ) -> str:
        rendered = self._tokenizer.apply_chat_template(
            turns,
            chat_template=self._source,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            beginning=self._beginning,
            **template_kwargs,
        )
        return str(rendered)


def _system_turn(prompt: ChatPrompt) -> list[PromptSegment]:
    """Return the system prompt of the settings, then that of the problem, with a blank line between."""
    parts = [PromptSegment(prompt.system, trusted=True), PromptSegment(prompt.problem_system, trusted=False)]
    if prompt.system and prompt.problem_system:
        parts.insert(1, PromptSegment("\n\n", trusted=True))
    return parts


def _mark_untrusted(segments: Sequence[PromptSegment], marker: str, untrusted: list[PromptSegment]) -> str:
    """Return a turn with a numbered marker for each untrusted text, and append these texts to `untrusted`.

    White space around untrusted text is kept outside the markers, for templates that strip the user turn.
    """
    marked: list[str] = []
    for segment in segments:
        core = segment.text.strip()
        if segment.trusted or not core:
            marked.append(segment.text)
            continue
        before, _, after = segment.text.partition(core)
        marked.append(f"{before}{marker}{len(untrusted)}E{after}")
        untrusted.append(replace(segment, text=core))
    return "".join(marked)


def _text_beginning(tokenizer: Any) -> str:
    """Return the BOS token if the tokenizer puts it before a text, else an empty string."""
    begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return tokenizer.bos_token if begins else ""
