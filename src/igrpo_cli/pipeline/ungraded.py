"""Completions that could not be graded: notes on stderr, and the limit of their share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from igrpo_cli.errors import IgrpoError
from igrpo_cli.records import Rollout, StageReport
from igrpo_cli.store.layout import ShardPath

NOTES_PER_REASON = 3
"""How often one reason for an ungraded row is printed per shard."""
NOTES_PER_SHARD = 12
"""How many reasons are printed per shard: an exception may have another text at each row."""


class UngradedNotes:
    """Prints which rows of a shard could not be graded, and why, at most `NOTES_PER_REASON` times for one reason and
    `NOTES_PER_SHARD` times in all.

    The manifest counts all of them.
    """

    def __init__(self, path: ShardPath, note: Callable[[str], None]) -> None:
        self._shard = path.name
        self._note = note
        self._seen: Counter[str] = Counter()
        self._num_notes = 0

    def __call__(self, row: Rollout, reason: str) -> None:
        """Print a line about one row."""
        self._seen[reason] += 1
        if self._seen[reason] <= NOTES_PER_REASON and self._num_notes < NOTES_PER_SHARD:
            self._num_notes += 1
            which = f"sample {row.sample_id} of group {row.group_id} (problem {row.problem_id})"
            self._note(f"{self._shard}: {which} is ungraded: {reason}")


def refuse_ungraded(report: StageReport, threshold: float, command: str) -> None:
    """Raise IgrpoError where more than the fraction `threshold` of a stage's rows could not be graded.

    `command` makes the rows again.
    """
    ungraded = report.details.get("verdict_ungraded", 0)
    assert isinstance(ungraded, int)
    share = ungraded / max(report.rows, 1)
    if share > threshold:
        raise IgrpoError(
            f"{ungraded} of {report.rows} completions of {report.stage} could not be graded "
            f"({share:.1%}, more than reward.max_ungraded_share = {threshold:.1%})",
            hint=f"fix what was noted when they were graded, then `{command}`; "
            "or raise the threshold: --set reward.max_ungraded_share=1.0",
        )
