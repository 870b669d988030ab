"""A simulated judge with a known error rate, as a reward function: 1 for a correct answer and 0 for any other.

On a given share of the completions it says the opposite. Which ones follows from the text alone, so that the judge is
consistent: a wrong answer that it takes for a correct one earns 1 every time.
"""

from __future__ import annotations

import hashlib


def errs_on_10_percent(problem: str, completion: str, verdict: str) -> float:
    """Return the score of a judge that errs on 10 % of the completions."""
    return _score(problem, completion, verdict, 0.1)


def errs_on_20_percent(problem: str, completion: str, verdict: str) -> float:
    """Return the score of a judge that errs on 20 % of the completions."""
    return _score(problem, completion, verdict, 0.2)


def _score(problem: str, completion: str, verdict: str, error_rate: float) -> float:
    digest = hashlib.sha256(f"{problem}\n{completion.strip()}".encode()).digest()
    errs = int.from_bytes(digest[:8], "big") < error_rate * 2**64
    return float((verdict == "correct") != errs)
