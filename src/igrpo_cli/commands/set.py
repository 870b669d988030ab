"""`igrpo set`: change settings of a run from an iteration on, for all commands that follow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from igrpo_cli.config.files import read_toml, refuse_fixed
from igrpo_cli.inspection.run_config import described_changes
from igrpo_cli.pipeline.changes import changed_config, changed_settings, first_possible, record
from igrpo_cli.pipeline.plan import require_possible
from igrpo_cli.pipeline.session import Session, open_session
from igrpo_cli.ui.console import Console, printable


def run(path: Path, texts: Sequence[str], from_iteration: int | None, *, dry_run: bool, console: Console) -> None:
    """Record the settings `texts` (`section.key=value`) from an iteration on, and print what changes.

    Without `texts`, print the changes of the run. Raises ConflictError where shards that exist would conflict,
    and UsageError for settings that cannot work.
    """
    with open_session(path, [], console) as session:
        if not texts:
            _print_changes(session)
            return
        refuse_fixed(read_toml(session.run.run_toml), texts, session.run.run_toml)
        settings = changed_settings(session.run_config.latest, texts)
        first = from_iteration if from_iteration is not None else first_possible(session, settings)
        require_possible(changed_config(session.run_config, first, settings).changed(first))
        record(session, first, settings, texts, dry_run=dry_run)


def _print_changes(session: Session) -> None:
    config = session.run_config
    lines = [f"from iteration {first}: {what}" for first, what in described_changes(config)]
    payload = {"run": str(session.run.root), "changes": [each.model_dump() for each in config.changes]}
    session.console.data(payload, printable("\n".join(lines) or "no setting was changed since igrpo init"))
