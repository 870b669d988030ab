"""Write `train.jsonl` and `test.jsonl`: add two numbers of 16 digits column by column, without carries.
Needs only the standard library.

    python make_problems.py [OUTPUT_DIRECTORY]

The problems are drawn with `random.Random(123)`, first those of train, then those of test. Of 7 * 10**31 problems no
one is drawn twice. Python keeps the sequence of `random.Random.random`, but does not promise that of `choice`.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

NUM_DIGITS = 16
DIGITS = "0123456789"
SIZES = {"train": 2000, "test": 400}


@dataclass(frozen=True)
class ColumnProblem:
    """Represents a sum without carries. For `47` and `85` it would be `22`: 4 + 8 and 7 + 5 both end in 2."""

    first: str
    second: str

    @property
    def text(self) -> str:
        return f"no carry: {self.first}+{self.second}"

    @property
    def answer(self) -> str:
        return "".join(str((int(a) + int(b)) % 10) for a, b in zip(self.first, self.second, strict=True))


def draw_problem(rng: random.Random) -> ColumnProblem:
    """Draw a problem. Neither summand and no answer begins with 0, because a number loses leading zeros."""
    while True:
        first, second = ("".join(rng.choice(DIGITS) for _ in range(NUM_DIGITS)) for _ in range(2))
        problem = ColumnProblem(first, second)
        if "0" not in (first[0], second[0], problem.answer[0]):
            return problem


def render_splits() -> dict[str, str]:
    """Return the splits as JSON lines."""
    rng = random.Random(123)
    contents = {}
    for split, size in SIZES.items():
        problems = [draw_problem(rng) for _ in range(size)]
        rows = (
            {
                "id": f"columns-{split}-{index:05d}",
                "problem": problem.text,
                "answer": problem.answer,
                "source": "columns/make_problems.py",
                "level": 1,
            }
            for index, problem in enumerate(problems)
        )
        contents[split] = "".join(json.dumps(row) + "\n" for row in rows)
    return contents


def main() -> None:
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    output.mkdir(parents=True, exist_ok=True)
    for split, content in render_splits().items():
        (output / f"{split}.jsonl").write_text(content, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
