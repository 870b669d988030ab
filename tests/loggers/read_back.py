"""What trackers hold of a run, read from their own files: {name: [(x, value), …]} in the order of the record."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from pathlib import Path

Curves = dict[str, list[tuple[int, float]]]
AXES = ("iteration", "train/global_step")


def tensorboard_curves(directory: Path) -> Curves:
    """With TensorBoard's own reader; values are float32."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={SCALARS: 0})
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def read_trackio(database: Path, run: str) -> list[tuple[int, dict]]:
    """(step, values) of the one run whose name begins with `run`."""
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY rowid").fetchall()
    ours = [row for row in rows if row[0].rpartition("-")[0] == run]
    assert len({name for name, _, _ in ours}) == 1
    return [(step, json.loads(values)) for _, step, values in ours]


def trackio_curves(rows: list[tuple[int, dict]]) -> Curves:
    assert all(step == next(values[axis] for axis in AXES if axis in values) for step, values in rows)
    return curves_of([values for _, values in rows])


def wandb_records(directory: Path) -> list:
    """All records of the offline runs below `directory`, oldest first: protobuf in LevelDB's log format.

    A file has a header of 7 bytes and blocks of 32 KiB; a piece has 4 bytes of checksum, 2 of length, 1 of kind
    (1 whole, 2 first, 3 middle, 4 last), and no piece begins in the last 6 bytes of a block.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    records = []
    for file in sorted(directory.glob("wandb/offline-run-*/*.wandb")):
        content, place, pieces = file.read_bytes(), 7, b""
        while place + 7 <= len(content):
            if 32768 - place % 32768 < 7:
                place += 32768 - place % 32768
            length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
            pieces += content[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):
                records.append(Record.FromString(pieces))
                pieces = b""
    return records


def wandb_curves(directory: Path) -> Curves:
    rows = []
    for record in wandb_records(directory):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append({name: value for name, value in items.items() if not name.startswith("_")})
    return curves_of(rows)


def curves_of(rows: list[dict[str, float]]) -> Curves:
    curves: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in rows:
        (axis,) = (axis for axis in AXES if axis in row)
        for name, value in row.items():
            if name != axis:
                curves[name].append((row[axis], value))
    return dict(curves)
