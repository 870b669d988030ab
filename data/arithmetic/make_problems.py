"""Write `train.jsonl` and `test.jsonl` (sums and differences in four levels), and `digits-train.jsonl` and
`digits-test.jsonl` (one-digit sums, differences and products as sentences). Needs only the standard library.

    python make_problems.py [OUTPUT_DIRECTORY]

All problems are enumerated, ordered by a hash of their text and cut to the quotas below, so the bytes depend neither on
a random generator nor on the Python version. The split depends only on the operands, without order and signs: if
`7+8=?` is a test problem, then `8+7=?` and `8-7=?` cannot be training problems.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ONE_DIGIT = range(1, 10)
TWO_DIGITS = range(10, 100)
LEVELS = (1, 2, 3, 4)
QUOTAS = {"train": (96, 1000, 1304, 800), "test": (16, 160, 208, 128)}
"""Problems per level; both splits have the same proportions of levels."""
TEST_BUCKETS = 16
"""Number of the 128 buckets of operands that belong to the test split."""


@dataclass(frozen=True)
class ArithmeticProblem:
    """Represents a chain of signed terms, for example `(47, 8, -5)` for `47+8-5=?`. Its value is never negative."""

    level: int
    """1: one digit and one digit; 2: two and one; 3: two and two; 4: two, one and one (three terms)."""
    terms: tuple[int, ...]

    @property
    def text(self) -> str:
        return str(self.terms[0]) + "".join(f"{term:+d}" for term in self.terms[1:]) + "=?"

    @property
    def answer(self) -> int:
        return sum(self.terms)

    @property
    def operands(self) -> tuple[int, ...]:
        """Return the operands without order and signs, which determine the split."""
        return tuple(sorted(abs(term) for term in self.terms))

    @property
    def split(self) -> str:
        return "test" if _digest(f"split:{self.operands}") % 128 < TEST_BUCKETS else "train"


def problem_space() -> Iterator[ArithmeticProblem]:
    """Yield all problems of both splits, level by level."""
    shapes = (
        (1, (ONE_DIGIT, ONE_DIGIT)),
        (2, (TWO_DIGITS, ONE_DIGIT)),
        (2, (ONE_DIGIT, TWO_DIGITS)),
        (3, (TWO_DIGITS, TWO_DIGITS)),
        (4, (TWO_DIGITS, ONE_DIGIT, ONE_DIGIT)),
    )
    for level, ranges in shapes:
        for terms in _signed_chains(ranges):
            yield ArithmeticProblem(level, terms)


def _signed_chains(ranges: tuple[range, ...]) -> Iterator[tuple[int, ...]]:
    """Yield all chains with a positive first term, later terms of either sign, and no negative partial sum."""
    chains: list[tuple[int, ...]] = [(first,) for first in ranges[0]]
    for operands in ranges[1:]:
        chains = [
            (*chain, signed)
            for chain in chains
            for operand in operands
            for signed in (operand, -operand)
            if sum(chain) + signed >= 0
        ]
    yield from chains


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def select_problems(split: str) -> list[ArithmeticProblem]:
    """Return the problems of one split in an order that mixes the levels."""
    ranked = sorted(
        (problem for problem in problem_space() if problem.split == split),
        key=lambda problem: _digest(f"order:{problem.text}"),
    )
    chosen: list[ArithmeticProblem] = []
    for level, quota in zip(LEVELS, QUOTAS[split], strict=True):
        of_level = [problem for problem in ranked if problem.level == level]
        if len(of_level) < quota:
            raise SystemExit(f"error: level {level} has {len(of_level)} {split} problems, {quota} are asked for")
        chosen += of_level[:quota]
    return sorted(chosen, key=lambda problem: _digest(f"order:{problem.text}"))


def render_split(split: str) -> str:
    """Return the split as JSON lines."""
    rows = (
        {
            "id": f"arithmetic-{split}-{index:05d}",
            "problem": problem.text,
            "answer": str(problem.answer),
            "source": "arithmetic/make_problems.py",
            "level": problem.level,
        }
        for index, problem in enumerate(select_problems(split))
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def render_digits(split: str) -> str:
    """Return the one-digit problems of one split in mixed order, as JSON lines. A quarter of the operands is `test`."""
    questions = [
        (f"What is {a} {sign} {b}?", value)
        for a in ONE_DIGIT
        for b in ONE_DIGIT
        if (_digest(f"digits:{sorted((a, b))}") % 4 == 0) == (split == "test")
        for sign, value in (("+", a + b), ("-", a - b), ("*", a * b))
        if value >= 0
    ]
    rows = (
        {
            "id": f"arithmetic-digits-{split}-{index:05d}",
            "problem": text,
            "answer": str(value),
            "source": "arithmetic/make_problems.py",
            "level": 1,
        }
        for index, (text, value) in enumerate(sorted(questions, key=lambda question: _digest(f"order:{question[0]}")))
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def main() -> None:
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    output.mkdir(parents=True, exist_ok=True)
    contents = {split: render_split(split) for split in QUOTAS}
    contents |= {f"digits-{split}": render_digits(split) for split in QUOTAS}
    for name, content in contents.items():
        (output / f"{name}.jsonl").write_text(content, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
