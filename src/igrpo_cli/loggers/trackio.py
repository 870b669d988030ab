"""trackio: SQLite on this machine, or the Space or server in its environment variables."""

from __future__ import annotations

import warnings
from contextlib import redirect_stdout
from io import StringIO

import trackio

from igrpo_cli.errors import IgrpoError
from igrpo_cli.loggers.entries import Entry, SentEntries
from igrpo_cli.loggers.trackers import TrackerSettings


class TrackioTracker:
    """A run of a trackio project. `flush` sends the entries."""

    def __init__(self, settings: TrackerSettings) -> None:
        self._settings = settings
        self._sent = SentEntries(settings.directory / "trackio.json")
        # trackio resumes runs by name. Two runs with one name must stay separate.
        self._name = f"{settings.run_name}-{self._sent.run_id}"
        self.where = f"trackio show --project {settings.project}, run {self._name}"
        self._entries: list[Entry] = []

    def is_sent(self, key: str) -> bool:
        return key in self._sent

    def send(self, entry: Entry) -> bool:
        self._entries.append(entry)
        return True

    def flush(self) -> None:
        if not self._entries:
            return
        # It prints on stdout, which is for data, and reports failures as warnings in a thread.
        with redirect_stdout(StringIO()), warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            run = trackio.init(
                self._settings.project,
                self._name,
                config=self._settings.config,
                resume="allow",
                auto_log_gpu=False,
                auto_log_cpu=False,
                embed=False,
            )
            for entry in self._entries:
                for row in entry.rows:
                    run.log({row.axis: row.x, **row.values}, step=row.x)
            trackio.finish()  # type: ignore[no-untyped-call]
        failures = [text for text in (str(each.message) for each in found) if "ould not" in text or "failed" in text]
        if failures:
            raise IgrpoError(f"trackio: {failures[0]}")
        for entry in self._entries:
            self._sent.add(entry.key)
        self._entries = []
        self._sent.save()

    def close(self) -> None:
        pass
