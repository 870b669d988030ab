"""Find the answer in a completion, by scans that take linear time.

The last statement after the reasoning counts:

1. Text up to the last `</think>` is ignored; reasoning that does not end gives no answer.
2. If there is an `<answer>…</answer>`, only the content of the last one is read.
3. The last `\\boxed{…}` in it is the answer. Boxes with only separators between them are one list of answers.
   A "final answer is …" after the last box replaces it.
4. Without a box, the answer follows the last "answer is", "answer:" or `####`.
5. Without any of these marks, the answer is the last formula or number, if it is in the last line.

Only the model's own turn is read: what follows "User:" answers another question. A number keeps the words that
change it ("12 million", "not 5"). A list stays a list ("17 or 18" is never 18 alone), and a formula or word alone stays
as it is.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from igrpo_cli.rewards.choices import named_choice, stated_choice
from igrpo_cli.rewards.notation import NUMERAL, SCALING
from igrpo_cli.rewards.transcripts import first_turn, with_braced_boxes, without_markdown
from igrpo_cli.thoughts import after_thought

MAX_CHARACTERS = 4_096
"""Maximum length of an answer, and of the end of unmarked text that is read."""

_SPAN = r"(?<!\\)\$\$[^$]+\$\$|(?<!\\)\$(?:\\.|[^$\n\\])+\$|\\\([^\n]+?\\\)|\\\[.+?\\\]"
_NUMBER = (
    r"(?<![\w.\\/^*+−–-])[-+−–]?(?:\\?\$|[€£])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:[eE][-+]?\d+)?(?:\s*/\s*\d+)?(?:\s*(?:\\?%|percent\b))?"
)
_ITEM = rf"(?:(?<![\w\\])[A-Za-z](?:_?\d|[A-Z])?\s*=\s*)?(?:{_SPAN}|{_NUMBER})"
_LIST = re.compile(rf"{_ITEM}(?:\s*(?:,?\s*\b(?:and|or)\b|[,;])\s*{_ITEM})*", re.DOTALL)
_SPANS = re.compile(_SPAN, re.DOTALL)
# A dollar may be a price, so it opens a formula of several lines only where its line ends like one.
_SPAN_OF_LINES = r"\$(?=[^\S\n]*(?:\n|\\begin\{[a-z]*\}[^$\n]*\n))(?:\\.|[^$\\])+\$"
_DISPLAY = re.compile(rf"\s*(\$\$[^$]+\$\$|\\\[.+?\\\]|{_SPAN_OF_LINES})", re.DOTALL)

_FINAL_HEADING = r"(?m:^[#>* \t]*(?:the[ \t]+)?final[ \t]+answer[ \t]*[*:.]*[ \t]*$)"
_HEADING = r"(?m:^[#>* \t]*(?:the[ \t]+)?(?:final[ \t]+)?answer[ \t]*[*:.]*[ \t]*$)"
_MARK = re.compile(
    r"\banswers?\b\W{0,4}(?:\b(?:is|are)\b|[:=])[\s*:]*|答案\W{0,4}(?:[是为為]|(?<=[:：=]))[\s*:：]*"
    r"|####(?!#)(?=\s*(?:[-+−]?\s*[\d$\\√π.€£¥]|[A-Za-z]\s*=|\([-\d\\]))(?!\s*\d+[.)]\s+[A-Za-z])"
    rf"|{_HEADING}",
    re.IGNORECASE,
)
_FINAL_MARK = re.compile(r"\bfinal\s+answers?\b\W{0,4}(?:\b(?:is|are)\b|[:=])|" + _FINAL_HEADING, re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<![\\.])[.!](?=\s|$)|(?<=\?)(?=\s|$)|。")
_NO_RETRACTION = r"(?!\s+(?i:or|and|no|not|nope|wait|actually|maybe|perhaps|possibly|alternatively|hmm|but|sorry)\b)"
_SENTENCE_END_OF_CHOICE = re.compile(rf"(?:{_SENTENCE_END.pattern}){_NO_RETRACTION}")

_BRACE = re.compile(r"\\{1,4}(?:boxed|fbox|framebox)\s*\{|\\.|[{}]", re.DOTALL)
_SEPARATOR_COMMAND = re.compile(r"\\(?:quad|qquad|text|mbox|mathrm)(?![a-z])")
_WORDS = re.compile(r"[^\W_]+")
_MAX_HEDGES = 1
_CORRECTION = re.compile(
    r"\b(?:not|wrong|wait|no|actually|instead|but|correct(?:ion)?|mistake|however|rather|oops|sorry|should)\b",
    re.IGNORECASE,
)
_DELIMITERS = re.compile(r"^(?:\$\$?|\\[(\[])|(?:\$\$?|\\[)\]])$")
_BOUNDARY = re.compile(
    r"[=<>,;&:]|\\(?:approx|leq?|geq?|equiv|implies|iff|[Rr]ightarrow|to|therefore|because|quad|qquad|mid)(?![a-z])"
    r"|\\\\|\\[,;: !]?text\w*\s*\{[^{}]*\}|\\begin\{\w+\*?\}|\\end\{\w+\*?\}"
)
_FACTOR_BEFORE = re.compile(
    r"(?:[-+−/*^]|\\(?:cdot|times|div|pm|mp|pi|sqrt)|(?<!\\)[\d.]|(?<![A-Za-z\\])[A-Za-z]|\\[dt]?frac\s*\{[^{}]*\}\s*\{[^{}]*\})"
    r"\s*(?:(?:\\left)?\(\s*)?$|(?:\\(?:[dtc]?frac\s*(?:\{[^{}]*\}\s*)?|[dt]?binom\s*(?:\{[^{}]*\}\s*)?"
    r"|sqrt\s*(?:\[[^\]]*\]\s*)?)|[\^_]\s*)\{[^{}]*$"
)
_NO_ORDINAL = r"(?!\s*\{?\s*(?:\\circ|\\prime|\\text|\\mathrm|\\dagger|\\ast|\*|(?:th|st|nd|rd)\b))"
_FACTOR_AFTER = re.compile(
    rf"\s*(?:(?:\\right)?\)\s*)?(?:\^{_NO_ORDINAL}|_\s*\{{?\s*\d|[-+−/*!]|\\(?:cdot|times|div|pm|mp|pi|sqrt)(?![a-z]))"
)
_SIGN_BEFORE = re.compile(r"(?:(?<=\s)|^|(?<==))(?:[^\s=$]*(?:\\(?:cdot|times|div)\s*|[*/^]|\d)|[-−])$")
_SIGN_AFTER = re.compile(
    rf"(?:\^{_NO_ORDINAL}(?:\{{[^{{}}]*\}}|[\w-])|[-+*/]\d[\d.]*|\s*\\(?:times|cdot|div)\s*[\w.]+(?:\s*\^\s*(?:\{{[^{{}}]*\}}|\w))?)+"
)
_NUMERAL_AFTER = re.compile(rf"(?:[ \t]|\\[,; ]|~){{0,3}}(?:\\text\s*\{{\s*)?({NUMERAL})\b")
_SIMPLE = re.compile(r"[-+]?[\w.]+")
_LABEL = re.compile(r"([A-Za-z](?:_\{?\w+\}?)?|\\[a-z]+(?:_\{?\w+\}?)?)\s*=\s*$")

_COMMAND_WORDS = re.compile(r"\\(?:text\w*|mbox|math\w+|operatorname|begin|end)\s*\{[^{}]*\}")
_WORD = re.compile(
    r"(?<![\w\\])(?!(?:and|or|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|mod|infinity)\b)[A-Za-z]{2,}(?![\w(])",
    re.IGNORECASE,
)
_MAX_WORDS_OF_A_PHRASE = 3
_COMMENT = re.compile(
    r"\s\((?![^()]*\bor\b)[^()\\$]*[A-Za-z]{2,}[^()\\$]*\)|(?<=[A-Za-z])\s\(\s*[\d.]+\s*[-+*/=×][\d\s.+*/=×-]*\)"
)
_DENIED_BEFORE = re.compile(
    r"(?:\.\.\.|…|\\[lc]?dots\b)\s*[,+]\s*$|(?:\bnot|n['’]t|\bnever|\bcannot|\bneither|\bexcept|\bno|\b(?:more|less|fewer|greater|larger|smaller|other|higher|lower)"
    r"\s+than|\bat\s+(?:least|most)|\b(?:over|under|above|below|nearly|almost|minus|negative|half|twice))"
    r"(?:\s+[A-Za-z]+){0,3}\s*[$(]?$",
    re.IGNORECASE,
)
_CHANGED_AFTER = re.compile(
    rf"[\s$)*-]{{0,4}}(?:{SCALING}(?!-[a-z]+ [a-z]|\s+(?:year|month|week|day|hour|minute)s?\b)|[a-z]+['’]s\s+dozen"
    r"|or\s+(?:more|less|fewer|so|above|below|higher|lower)\b"
    r"|[-−–/]\d|\?|[,+]?\s*(?:\.\.\.|…|\\[lc]?dots\b)|(?:squared|cubed|factorial)\b|(?:is|are|was|were)(?:n['’]t|\s+(?:not|never|wrong|incorrect|false))\b)[^.,;\n]*",
    re.IGNORECASE,
)
_WINDOW = 60
"""Characters before a number in which words may deny it."""


def extract_answer(completion: str, max_characters: int = MAX_CHARACTERS, num_parts: int = 1) -> str | None:
    """Return the answer that `completion` gives, as it is written there; None if it gives none.

    A marked answer may be longer than `max_characters`; the caller decides what that means. Of unmarked text only the
    last `max_characters` are read, since an answer is at the end. If the reference has several parts and the completion
    has exactly `num_parts` boxes, they are one list, whatever stands between them.
    """
    scope, is_tagged = answer_scope(completion)
    scope = without_markdown(scope)
    boxes = _last_boxes(scope, num_parts)
    if boxes:
        stated = _final_statement(scope[boxes.end :][-max_characters:])
        return stated or _with_neighbours(scope, boxes) or None
    if not is_tagged:
        return _from_prose(scope[-max_characters:])
    if len(scope) > max_characters or _num_words(scope) == 0:
        return scope or None
    listed = None if _MARK.search(scope) else _last_list(scope)
    return listed[0] if listed else _statement(scope) or scope


def marked_answer(completion: str) -> str | None:
    """Return the whole answer in tags, in a box or after a mark ("the answer is …"); None without any of them.

    Used for a judge, which reads text: a sentence is not reduced to its formula, and unmarked text gives no answer.
    """
    scope, is_tagged = answer_scope(completion)
    boxes = _last_boxes(scope)
    if is_tagged and (boxes is None or (scope[: boxes.start] + scope[boxes.end :]).strip(" \n.$")):
        return scope or None
    if boxes:
        return _final_statement(scope[boxes.end :]) or boxes.content or None
    return _after_last_mark(scope)


def extract_choice(completion: str, max_characters: int = MAX_CHARACTERS) -> str | None:
    """Return the answer to a multiple-choice problem: as `extract_answer`, but with the whole sentence.

    So "(B) 42 m" keeps its letter. Without any mark, the last line counts if it has only a few words.
    """
    scope, is_tagged = answer_scope(completion)
    boxes = _last_boxes(scope)
    if boxes:
        rest = scope[boxes.end :][-max_characters:]
        stated = None if named_choice(boxes.content) else _after_last_mark(rest, _SENTENCE_END_OF_CHOICE)
        if stated and named_choice(stated):  # the box holds a formula of the working
            return stated
        return _final_statement(rest) or boxes.content or None
    stated = _after_last_mark(scope if is_tagged else scope[-max_characters:], _SENTENCE_END_OF_CHOICE)
    if stated or is_tagged:
        return stated or scope or None
    lines = scope[-max_characters:].strip().splitlines()
    if lines and stated_choice(lines[-1]):
        return lines[-1].strip()
    return _phrase(lines[-1] if _num_words(scope[-max_characters:]) else scope) if lines else None


def extract_reference(reference: str) -> str:
    """Return the answer in a reference: a whole solution is read like a completion, a shorter text is the answer."""
    boxes = _last_boxes(reference)
    if boxes:
        return boxes.content
    if _MARK.search(reference):
        return _statement(reference) or reference
    listed = _last_list(reference) if _SPANS.search(reference) and _num_words(reference) else None
    return listed[0] if listed else reference


def answer_scope(completion: str) -> tuple[str, bool]:
    """Return the part of `completion` that may hold the answer, and True if `<answer>` tags mark it.

    The part is empty if the reasoning does not end or the tags are empty. The closing tag may be missing at the end:
    samplers that stop at `</answer>` leave it out.
    """
    rest = after_thought(first_turn(completion))
    if rest is None:
        return "", False
    rest = with_braced_boxes(rest)
    closed_by = rest.rfind("</answer>")
    opened_by = rest.rfind("<answer>")
    if opened_by < 0:
        return rest.strip(), False
    if closed_by > opened_by:
        return rest[opened_by + len("<answer>") : closed_by].strip(), True
    return rest[opened_by + len("<answer>") :].strip(), True


class _Box(NamedTuple):
    start: int
    content: str
    end: int


def _last_boxes(text: str, num_parts: int = 1) -> _Box | None:
    """Return the last group of boxes as one box, with contents joined by commas; None without a box.

    All boxes are one group if there are `num_parts` of them and no word of correction between them.
    """
    boxes = _outer_boxes(text)
    if not boxes:
        return None
    group = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        if not _is_separator(text[box.end : group[-1].start]):
            break
        group.append(box)
    if len(group) == 1 < num_parts == len(boxes) and not _CORRECTION.search(text[boxes[0].end : boxes[-1].start]):
        return _Box(boxes[0].start, ", ".join(_labelled(text, boxes)), boxes[-1].end)
    content = ", ".join(dict.fromkeys(box.content for box in reversed(group)))
    inner = _last_boxes(content) if len(content) <= MAX_CHARACTERS else None
    return _Box(group[-1].start, inner.content if inner else content, group[0].end)


def _labelled(text: str, boxes: list[_Box]) -> list[str]:
    """Return the contents of boxes, with the names before them if each has one: `y_1 = \\boxed{3}` is `y_1 = 3`."""
    labels = [_LABEL.search(text[max(box.start - _WINDOW, 0) : box.start]) for box in boxes]
    if None in labels or any("=" in box.content for box in boxes):
        return [box.content for box in boxes]
    return [f"{label[1]} = {box.content}" for label, box in zip(labels, boxes, strict=True) if label]


def _outer_boxes(text: str) -> list[_Box]:
    """Return the outermost boxes, in order; empty boxes only if all are empty.

    A box that is not closed ends with its line.
    """
    open_braces: list[tuple[int, int] | None] = []
    boxes: list[tuple[int, int, int, int]] = []
    for match in _BRACE.finditer(text):
        token = match.group()
        if token == "{":
            open_braces.append(None)
        elif token == "}":
            opened = open_braces.pop() if open_braces else None
            if opened:
                while boxes and boxes[-1][0] > opened[0]:
                    boxes.pop()
                boxes.append((*opened, match.start(), match.end()))
        elif len(token) > 2:
            open_braces.append((match.start(), match.end()))
    unclosed = [opened for opened in open_braces if opened and (not boxes or opened[0] > boxes[-1][0])]
    if unclosed:
        rest = text[unclosed[-1][1] :].lstrip()
        end = len(text) - len(rest) + len(rest.split("\n", 1)[0])
        boxes.append((*unclosed[-1], end, end))
    found = [_Box(start, text[content:close].strip(), end) for start, content, close, end in boxes]
    return [box for box in found if box.content] or found[-1:]


def _is_separator(gap: str) -> bool:
    """Return True if the text between two boxes makes them one list: punctuation, "and", "or", "or maybe"."""
    words = _WORDS.findall(_SEPARATOR_COMMAND.sub(" ", gap))
    others = [word for word in words if word.lower() not in ("and", "or")]
    return not others or ("or" in words and len(others) <= _MAX_HEDGES)


def _with_neighbours(text: str, box: _Box) -> str:
    """Return the content of a box with the sign, factors, powers or numeral that touch it: `2 \\cdot \\boxed{3}^2`.

    In a formula, what touches it extends to the next relation or comma. Outside, only signs without spaces touch.
    """
    if not box.content or len(_outer_boxes(text[box.start : box.end])) != 1:
        return box.content
    start, end = max(box.start - MAX_CHARACTERS, 0), box.end + MAX_CHARACTERS
    around = next(
        (span.span() for span in _SPANS.finditer(text, start, end) if span.start() < box.start < span.end()), None
    )
    before, after = text[start : box.start].rpartition("\n")[2], text[box.end : end].partition("\n")[0]
    if around:
        before = _BOUNDARY.split(_DELIMITERS.sub("", text[around[0] : box.start]))[-1]
        after = _BOUNDARY.split(_DELIMITERS.sub("", text[box.end : around[1]]))[0]
        touches = _FACTOR_BEFORE.search(before) or _FACTOR_AFTER.match(text, box.end)
        before, after = (before, after) if touches else ("", "")
    else:
        sign, factor = _SIGN_BEFORE.search(before), _SIGN_AFTER.match(after)
        before, after = sign[0] if sign else "", factor[0] if factor else ""
    numeral = _NUMERAL_AFTER.match(text, box.end) or (around and _NUMERAL_AFTER.match(text, around[1]))
    content = box.content if before + after == "" or _SIMPLE.fullmatch(box.content) else f"({box.content})"
    return before + content + after + (f" {numeral[1]}" if numeral else "")


def _final_statement(text: str) -> str | None:
    """Return the answer after a "final answer is" in `text`, if it is a formula or number ("… is above" is none)."""
    marks = list(_FINAL_MARK.finditer(text))
    stated = _statement(text[marks[-1].start() :]) if marks else None
    return stated if stated and (_num_words(stated) == 0 or _LIST.search(stated)) else None


def _from_prose(text: str) -> str | None:
    if _MARK.search(text):
        return _statement(text)
    if _num_words(text) == 0 and "\n" not in text:
        return text or None
    lines = text.rsplit("\n", 1)
    lines[-1] = _COMMENT.sub("", lines[-1])
    listed = _last_list("\n".join(lines)) or _last_list(text)
    if listed is None:
        return _phrase(text)
    answer, end = listed
    return answer if "\n" not in text[end:].rstrip() else None


def _statement(text: str) -> str | None:
    """Return the answer after the last mark in `text`: a displayed formula, or the last one in the sentence."""
    stated = _after_last_mark(text)
    if stated is None or _num_words(stated) == 0:
        return stated
    listed = _last_list(_COMMENT.sub("", stated)) or _last_list(stated)
    return listed[0] if listed else _phrase(stated)


def _after_last_mark(text: str, sentence_end: re.Pattern[str] = _SENTENCE_END) -> str | None:
    """Return the displayed formula, or the rest of the sentence, after the last mark in `text`."""
    marks = list(_MARK.finditer(text))
    if not marks:
        return None
    stated = text[marks[-1].end() :]
    displayed = _DISPLAY.match(stated)
    if displayed:
        return displayed.group(1)
    line = (stated.strip().splitlines() or [""])[0]
    end = sentence_end.search(line)
    return (line[: end.start()] if end else line).strip(" *") or None


def _last_list(text: str) -> tuple[str, int] | None:
    """Return the last list of formulas and numbers, with the words that change it, and its end."""
    lists = list(_LIST.finditer(text))
    if not lists:
        return None
    start, end = lists[-1].span()
    denied = _DENIED_BEFORE.search(text[max(start - _WINDOW, 0) : start].rpartition("\n")[2])
    changed = _CHANGED_AFTER.match(text, end)
    end = changed.end() if changed else end
    return (denied[0] if denied else "") + text[start:end], end


def _phrase(text: str) -> str | None:
    """Return `text` if it is an answer by itself: a few words on one line."""
    is_phrase = _num_words(text) <= _MAX_WORDS_OF_A_PHRASE and "\n" not in text
    return text if text and is_phrase else None


def _num_words(text: str) -> int:
    """Count the words of a text: those outside formulas and commands that are not names of functions."""
    return len(_WORD.findall(_COMMAND_WORDS.sub(" ", _SPANS.sub(" ", text))))
