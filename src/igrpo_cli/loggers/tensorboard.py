"""TensorBoard: one event file for each entry, published atomically, so that the files show what was sent."""

from __future__ import annotations

import time
from io import BytesIO

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from igrpo_cli.loggers.entries import Entry
from igrpo_cli.loggers.trackers import TrackerSettings
from igrpo_cli.store.atomic import publish_bytes, remove_stale_temporaries


class TensorBoardTracker:
    """Writes event files to the folder `tensorboard`."""

    def __init__(self, settings: TrackerSettings) -> None:
        self._directory = settings.directory / "tensorboard"
        self.where = f"tensorboard --logdir {self._directory}"
        remove_stale_temporaries(self._directory)

    def is_sent(self, key: str) -> bool:
        return any(self._directory.glob(f"events.out.tfevents.*.{_name(key)}"))

    def send(self, entry: Entry) -> bool:
        # TensorBoard reads files in order of their names, and never an earlier one again.
        name = f"events.out.tfevents.{time.time_ns():020d}.{_name(entry.key)}"
        publish_bytes(self._directory / name, _events(entry))
        return True

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def _name(key: str) -> str:
    return key.replace("/", "-")


def _events(entry: Entry) -> bytes:
    """Return the bytes of an event file. It stores values as float32."""
    content = BytesIO()
    writer = RecordWriter(content)
    events = [Event(wall_time=entry.finished, file_version="brain.Event:2")]
    for row in entry.rows:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.values.items()]
        events.append(Event(wall_time=entry.finished, step=row.x, summary=Summary(value=values)))
    for event in events:
        writer.write(event.SerializeToString())
    return content.getvalue()
