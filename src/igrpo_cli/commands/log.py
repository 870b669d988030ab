"""`igrpo log`: send the metrics of a run to trackers. Nothing is sent twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.loggers.trackers import MAX_WAIT_SECONDS, TrackerSettings, open_tracker, send_new
from igrpo_cli.pipeline.session import Session, open_session
from igrpo_cli.store.layout import LOG
from igrpo_cli.store.locks import locked
from igrpo_cli.ui.console import Console

NOT_SENT: dict[str, Any] = {"log": True, "judge": {"endpoint"}, "engine": {"endpoints"}}
"""Settings that are not sent to a tracker: addresses of servers are private."""


def run(path: Path, trackers: list[str], sets: list[str], *, follow: bool, console: Console) -> None:
    """Send to each of `trackers`, or of `log.report_to`. With `follow`, send again at each line of stdin."""
    requested = [f"log.report_to={json.dumps(trackers)}"] if trackers else []
    with open_session(path, [*sets, *requested], console) as session:
        names = list(dict.fromkeys(session.config.log.report_to))
        if not names:
            raise UsageError("no tracker is named", hint="igrpo log RUN --to tensorboard, or trackio, or wandb")
        session.require_extras()
        sent = {name: _send(session, name, follow=follow) for name in names}
    console.data({"run": str(path), "trackers": sent}, "\n".join(_text(name, each) for name, each in sent.items()))


def _send(session: Session, name: str, *, follow: bool) -> dict[str, Any]:
    settings = _settings(session)
    with locked(settings.directory / f"{name}.lock", MAX_WAIT_SECONDS) as is_only:
        if not is_only:
            raise IgrpoError(
                f"another process is sending this run to {name}", hint="it sends new metrics after its next update"
            )
        with open_tracker(name, settings) as tracker:
            sent = send_new(session.run, tracker)
            if follow:
                for _ in sys.stdin:
                    sent += send_new(session.run, tracker)
            return {"sent": sent, "where": tracker.where}


def _settings(session: Session) -> TrackerSettings:
    section, root = session.config.log, session.run.root
    name = section.run_name or session.run.name
    return TrackerSettings(
        project=section.project,
        run_name=name,
        directory=root.resolve() / LOG if section.logging_dir is None else Path(section.logging_dir).resolve() / name,
        config=session.config.model_dump(mode="json", exclude=NOT_SENT),
    )


def _text(name: str, sent: dict[str, Any]) -> str:
    evaluations = sum(key.startswith("eval/") for key in sent["sent"])
    updates = len(sent["sent"]) - evaluations
    return f"{name}: {updates} updates and {evaluations} evaluations sent; {sent['where']}"
