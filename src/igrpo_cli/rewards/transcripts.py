"""The text of a completion before an answer is looked for: the model's own turn, without Markdown."""

from __future__ import annotations

import re

from igrpo_cli.thoughts import FINAL_CHANNEL

_END_OF_TURN = re.compile(
    r"<\|(?:im_end|endoftext|eot_id|end_of_text|user)\|>|<\|im_start\|>\s*(?:user|human|system)"
    r"|<\|start_header_id\|>\s*user|<(?:end_of_turn|start_of_turn)>|\[INST\]|</s>"
)
_NEXT_TURN = re.compile(r"(?:(?:^|\n)[ \t]*|</answer>\s*)(?:\*\*|#{1,4} ?)?(?:User|Human)(?:\*\*)?[ \t]*:")
_NEXT_PROBLEM = re.compile(
    r"\n[ \t]*(?:\*\*|#{1,6} ?)?(?:Question|Problem|Q|Exercise|Instruction|Input)(?: ?\d+)?(?:\*\*)?[ \t]*:"
)
_ANSWERED = re.compile(r"</answer>|\\boxed|####|\banswer\b\W{0,4}(?:is\b|:)", re.IGNORECASE)

_STRONG = re.compile(r"(?<![\w*)\]}\\])(\*\*|__)(?=[^\s*_])([^\n]{1,1000}?)(?<=[^\s*])\1(?![\w*])")
_EMPHASIS = re.compile(r"(?<![\w*)\]}\\])\*(?=[^\s*])([^*\n]{1,1000}?)(?<=[^\s*])\*(?![\w*(])")
_CODE = re.compile(r"(?<![`\\])`([^`\n]{1,1000})`(?!`)")

_BOX_WITHOUT_BRACES = re.compile(
    r"(\\(?:boxed|fbox|framebox))\s*(-?\d[\d,]*(?:\.\d+)?(?![\w^/])|\\[A-Za-z]+(?:\{[^{}]*\}){1,2}|[A-Z](?=[$.\s]*$))",
    re.M,
)


def first_turn(completion: str) -> str:
    """Return `completion` up to the point where the model goes on with another turn or problem.

    A base model often continues with "User: …" or "Question: …" and answers that too. A turn that only thinks is not
    searched for its end, and the next problem counts only behind an answer.
    """
    start = max(completion.find(end) for end in ("</think>", "</thinking>", "[/THINK]", FINAL_CHANNEL))
    start = max(start, 0)
    ends = []
    for pattern in (_END_OF_TURN, _NEXT_TURN):
        match = pattern.search(completion, start)
        while match and not completion[: match.start()].strip():
            match = pattern.search(completion, match.end())
        if match:
            keeps_tag = match[0].startswith("</answer>")
            ends.append(match.start() + len("</answer>") * keeps_tag)
    answered = _ANSWERED.search(completion, start)
    if answered and (match := _NEXT_PROBLEM.search(completion, answered.end())):
        ends.append(match.start())
    return completion[: min(ends)] if ends else completion


def without_markdown(text: str) -> str:
    """Return `text` without the marks of bold, italics and code."""
    if "*" in text or "__" in text:
        text = _EMPHASIS.sub(r"\1", _STRONG.sub(r"\2", text))
    return _CODE.sub(r"\1", text) if "`" in text else text


def with_braced_boxes(text: str) -> str:
    """Return `text` with `\\boxed{73}` for `\\boxed 73`, which would be a box around the 7 alone."""
    return _BOX_WITHOUT_BRACES.sub(r"\1{\2}", text) if "box" in text else text
