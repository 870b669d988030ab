"""An evaluation as it lies on disk: its rollouts, checked against their manifests, and what was found out of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from igrpo_cli.errors import DamagedFileError, MissingInputError
from igrpo_cli.records import Rollout
from igrpo_cli.store.checksummed_json import read_summary
from igrpo_cli.store.completion import open_input
from igrpo_cli.store.conflicts import require_same_settings
from igrpo_cli.store.layout import SUMMARY, ShardPath


@dataclass(frozen=True)
class EvalResults:
    """All rollouts of an evaluation."""

    directory: Path
    rollouts: list[Rollout]
    shards: list[str]
    """SHA-256 of its shards, in order."""

    @property
    def known_consensus(self) -> dict[str, float] | None:
        """cons@k by k, if the summary beside the shards is of these very shards: comparing answers takes time."""
        try:
            summary = read_summary(self.directory / SUMMARY)
        except (MissingInputError, DamagedFileError):
            return None
        return summary.get("cons_at") if summary.get("shards") == self.shards else None


def read_results(paths: Sequence[ShardPath]) -> EvalResults:
    """All shards of an evaluation.

    Raises MissingInputError where one is missing, DamagedFileError as they do, ConflictError where they were sampled
    with different settings.
    """
    from igrpo_cli.store.tables import read_records

    rollouts: list[Rollout] = []
    manifests = {path: open_input(path) for path in paths}
    require_same_settings(manifests)
    for path in paths:
        rollouts += read_records(path.data, Rollout)
    return EvalResults(paths[0].data.parent, rollouts, [manifest.data.sha256 for manifest in manifests.values()])
