"""Conversion of chat prompts to token ids and back. Untrusted text never becomes a control token.

A problem or a draft may contain `<|im_end|>` and the like. Tokenised with the rest of the prompt, it would close the
user turn. So `chat_template` says where each character of the prompt comes from. A control token that the tokenizer
finds in a problem or a draft is split in two and encoded as plain text. The tags of thoughts are the exception: in a
draft they are what the model wrote.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igrpo_cli.config.sections import SamplingSettings
from igrpo_cli.engines.chat_template import PLAIN_STOP, ChatTemplate
from igrpo_cli.engines.hub import load_tokenizer
from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.records import ChatPrompt, PromptSegment
from igrpo_cli.thoughts import CHANNEL_TOKENS, is_tag

if TYPE_CHECKING:
    import numpy as np

_TEMPLATE, _PROBLEM, _DRAFT = "tpd"
"""Marks of where a character of a prompt comes from."""

_BYTE_MARGIN = 8
"""Tokens that are decoded in addition when a stop string is looked for at the end of a completion."""

_REPLACEMENTS = ("\N{REPLACEMENT CHARACTER}", "?", " ")
"""Replacements of an untrusted character that is a control token by itself: the first that can be encoded is used."""


class PolicyTokenizer:
    """The tokenizer and the chat template of a model directory."""

    def __init__(self, directory: Path, trust_remote_code: bool = False) -> None:
        self._directory = directory
        self._tokenizer = load_tokenizer(directory, trust_remote_code)
        self._control_tokens: dict[int, str] = {
            token_id: token.content.strip()
            for token_id, token in self._tokenizer.added_tokens_decoder.items()
            if token.content.strip()
        }
        self._template = ChatTemplate(directory, self._tokenizer)
        self.has_chat_template = not self._template.is_plain
        self.eos_token_ids: tuple[int, ...] = tuple(
            sorted(_find_eos_token_ids(directory, self._tokenizer) | self._find_turn_end())
        )
        """Ids that end a completion, from the generation config, the config, the tokenizer and the chat template."""
        self._dropped_ids = self._find_dropped_ids()
        self._completes: dict[tuple[int, str], bool] = {}

    @property
    def largest_id(self) -> int:
        """Largest token id, added tokens included."""
        return int(max(self._tokenizer.get_vocab().values()))

    @property
    def end_tokens(self) -> list[str]:
        """The tokens that end a completion, as text, those of the chat template included."""
        return [str(self._tokenizer.convert_ids_to_tokens(token_id)) for token_id in self.eos_token_ids]

    @property
    def tag_tokens(self) -> list[str]:
        """The tags around thoughts and answers that are control tokens."""
        return [token for token in self._control_tokens.values() if is_tag(token)]

    def encode_prompt(self, prompt: ChatPrompt) -> tuple[str, list[int]]:
        """Return the rendered prompt, up to the first token of the assistant, and its token ids.

        Characters of untrusted segments are never encoded as added tokens, except for white space and the unknown
        token.
        """
        segments = self._template.render(prompt)
        text = "".join(segment.text for segment in segments)
        text, ids, _ = self._encode(text, "".join(_origin(segment) * len(segment.text) for segment in segments))
        return text, ids

    def beginning_of_completion(self, prompt: ChatPrompt) -> str:
        """Return the end of a prompt that completions continue, as `ChatTemplate.beginning_of_completion` does."""
        return self._template.beginning_of_completion(prompt)

    def encode_text(self, text: str, *, is_draft: bool = False) -> list[int]:
        """Return the token ids of untrusted text: without control tokens, except for the tags of a draft."""
        return self._encode(text, (_DRAFT if is_draft else _PROBLEM) * len(text))[1]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a completion, without special tokens other than tags and channels."""
        kept = [token_id for token_id in ids if token_id not in self._dropped_ids]
        return str(self._tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def with_all_stops(self, settings: SamplingSettings) -> SamplingSettings:
        """Return the settings with everything that ends a completion of this policy.

        These are the token ids of the model and of its chat template, and the next turn of the plain chat template. A
        stop string that is one control token counts as its token id, because such tokens are not part of the text.
        Raises UsageError for a string that only contains such a token, and for an id outside the vocabulary.
        """
        ids_of = {text: token_id for token_id, text in self._control_tokens.items()}
        found = {ids_of[text] for text in settings.stop if text in ids_of}
        strings = [text for text in settings.stop if text not in ids_of]
        for text in strings:
            if inside := [token for token in ids_of if token in text and not self._is_part_of_text(token)]:
                raise UsageError(
                    f"the stop string {text!r} contains {inside[0]!r}, a token that is not part of the text",
                    hint=f"stop at the token alone: {inside[0]!r}",
                )
        if not self.has_chat_template and PLAIN_STOP not in strings:
            strings.append(PLAIN_STOP)
        if beyond := [token_id for token_id in settings.stop_token_ids if token_id > self.largest_id]:
            what = f"{beyond[0]} of stop_token_ids is no token of {self._directory}"
            raise UsageError(what, hint=f"its largest token id is {self.largest_id}")
        token_ids = sorted({*self.eos_token_ids, *settings.stop_token_ids, *found})
        return settings.model_copy(update={"stop": strings, "stop_token_ids": token_ids})

    def reaches_stop(self, ids: Sequence[int] | np.ndarray, strings: Sequence[str]) -> bool:
        """Return True if the last token of a completion completes a stop string. Called after every token."""
        # Decoding takes much longer than a look at the last token, which must have the last character of the string.
        if not len(ids) or not any(self._may_complete(int(ids[-1]), text[-1]) for text in strings):
            return False
        # A token that is part of the text has at least one byte.
        num_tokens = max(len(text.encode()) for text in strings) + _BYTE_MARGIN
        return _stop_span(self.decode([int(token_id) for token_id in ids[-num_tokens:]]), strings) is not None

    def decode_completion(self, ids: Sequence[int], stops: SamplingSettings, beginning: str = "") -> str:
        """Return the text without the token or string of `with_all_stops` that ended it, unless that is a tag.

        `beginning` is the text that the completion continues (see `beginning_of_completion`). It is not returned, but
        a decoder may drop white space at the beginning of a text.
        """
        if ids and ids[-1] in stops.stop_token_ids and not is_tag(self._control_tokens.get(ids[-1], "")):
            ids = ids[:-1]
        text = self._decode_after(beginning, ids) if beginning else self.decode(ids)
        if (span := _stop_span(text, stops.stop)) is None:
            return text
        start, end = span
        return text[: end if is_tag(text[start:end]) else start]

    def _decode_after(self, beginning: str, ids: Sequence[int]) -> str:
        before_ids = self.encode_text(beginning, is_draft=True)
        before, whole = self.decode(before_ids), self.decode([*before_ids, *ids])
        return whole.removeprefix(before) if whole.startswith(before) else self.decode(ids)

    def truncate(self, text: str, max_tokens: int) -> tuple[str, bool]:
        """Return the first `max_tokens` tokens of a draft as text, and True if anything was cut."""
        _, ids, ends = self._encode(text, _DRAFT * len(text))
        if len(ids) <= max_tokens:
            return text, False
        # The end of a text may be encoded differently from the same characters within it, hence the check.
        for end in reversed(ends[:max_tokens]):
            if len(self.encode_text(text[:end], is_draft=True)) <= max_tokens:
                return text[:end], True
        return "", True

    def _encode(self, text: str, origins: str) -> tuple[str, list[int], list[int]]:
        """Return the text with replacements, its token ids, and for each token its end position in the text.

        `origins` has a mark for each character: `_TEMPLATE`, `_PROBLEM` or `_DRAFT`.
        """
        ids, spans = self._encode_as_is(text)
        forged = list(self._find_forged(text, origins, ids, spans))
        if not forged:
            return text, ids, [end for _, end in spans]
        if single := [start for start, end in forged if end - start == 1]:
            return self._encode(self._replace(text, single), origins)
        cuts = [0, *(start + 1 for start, _ in forged), len(text)]
        pieces = [(start, self._encode(text[start:end], origins[start:end])) for start, end in pairwise(cuts)]
        return (
            "".join(piece_text for _, (piece_text, _, _) in pieces),
            [token_id for _, (_, piece_ids, _) in pieces for token_id in piece_ids],
            [start + end for start, (_, _, piece_ends) in pieces for end in piece_ends],
        )

    def _encode_as_is(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return token ids and the characters (start, end) of each. Control tokens in the text are recognised."""
        try:
            encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        except Exception as error:  # the class that the tokenizers library raises
            if len(text) == 1:
                raise IgrpoError(
                    f"the tokenizer of {self._directory} has no token for {text!r}",
                    hint="this policy can only read the characters of its vocabulary: exclude such problems",
                ) from error
            for character in text:
                self._encode_as_is(character)
            raise IgrpoError(f"the tokenizer of {self._directory} cannot encode {text[:80]!r}: {error}") from error
        return encoded["input_ids"], encoded["offset_mapping"]

    def _find_forged(
        self, text: str, origins: str, ids: Sequence[int], spans: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of each control token in a problem or draft, without white space around it."""
        for token_id, (start, end) in zip(ids, spans, strict=True):
            if (content := self._control_tokens.get(token_id)) is None:
                continue
            matched = text[start:end].strip()
            start += len(text[start:end]) - len(text[start:end].lstrip())
            is_unknown = token_id == self._tokenizer.unk_token_id and matched != content
            found_in = set(origins[start : start + len(matched)])
            is_allowed = found_in <= {_TEMPLATE} or (found_in == {_DRAFT} and is_tag(content))
            if matched and not is_allowed and not is_unknown:
                yield start, start + len(matched)

    def _may_complete(self, token_id: int, last: str) -> bool:
        """Return False for a token whose text does not contain the character `last`, not even a part of its bytes."""
        if (token_id, last) not in self._completes:
            text = self.decode([token_id])
            # A decoder may drop the white space of a token that stands alone.
            self._completes[token_id, last] = last.isspace() or last in text or _REPLACEMENTS[0] in text
        return self._completes[token_id, last]

    def _find_turn_end(self) -> set[int]:
        """Return the control token that the chat template puts after a turn of the assistant, if there is one."""
        end = self._template.end_of_turn()
        ids = self._encode_as_is(end)[0][:1] if end else []
        return {
            token_id
            for token_id in ids
            if token_id in self._control_tokens and not self._is_part_of_text(self._control_tokens[token_id])
        }

    def _is_part_of_text(self, token: str) -> bool:
        """Return True for a control token that stays in the text of a completion: a tag, or one of gpt-oss."""
        has_channels = CHANNEL_TOKENS[0] in self._control_tokens.values()
        return is_tag(token) or (has_channels and token in CHANNEL_TOKENS)

    def _find_dropped_ids(self) -> frozenset[int]:
        """Return the ids that are no part of the text of a completion: end, padding and other special tokens."""
        special = {
            token_id
            for token_id, token in self._tokenizer.added_tokens_decoder.items()
            if token.special and not self._is_part_of_text(token.content.strip())
        }
        return frozenset({*special, *self.eos_token_ids, self._tokenizer.pad_token_id} - {None})

    def _replace(self, text: str, positions: Sequence[int]) -> str:
        characters = list(text)
        for position in positions:
            characters[position] = self._replacement
        return "".join(characters)

    @functools.cached_property
    def _replacement(self) -> str:
        harmful = {*self._control_tokens, self._tokenizer.unk_token_id}
        for character in _REPLACEMENTS:
            with contextlib.suppress(IgrpoError):
                if harmful.isdisjoint(self._encode_as_is(character)[0]):
                    return character
        raise IgrpoError(f"the tokenizer of {self._directory} can encode none of {_REPLACEMENTS}")


def _stop_span(text: str, strings: Sequence[str]) -> tuple[int, int] | None:
    """Return start and end of the first stop string in `text`; None if there is none."""
    spans = [(start, start + len(each)) for each in strings if (start := text.find(each)) >= 0]
    return min(spans, default=None)


def _origin(segment: PromptSegment) -> str:
    if segment.trusted:
        return _TEMPLATE
    return _DRAFT if segment.is_draft else _PROBLEM


def _find_eos_token_ids(directory: Path, tokenizer: Any) -> set[int]:
    found = {tokenizer.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        if (directory / name).is_file():
            ids = json.loads((directory / name).read_text()).get("eos_token_id")
            found.update(ids if isinstance(ids, list) else [ids])
    return found - {None}
