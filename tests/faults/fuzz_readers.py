"""The readers of what others may have written, and bytes to drive them with: what the fuzz tests and `just fuzz` share.

Whatever the bytes, a reader returns something or raises an IgrpoError.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from igrpo_cli.config.files import apply_overrides, check_config, read_preset, read_toml, write_config
from igrpo_cli.errors import IgrpoError
from igrpo_cli.inspection.run_state import iteration_costs
from igrpo_cli.problems.loading import load_problems
from igrpo_cli.records import Rollout
from igrpo_cli.store.checksummed_json import checksummed_bytes
from igrpo_cli.store.completion import open_input
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.manifest import read_manifest
from igrpo_cli.store.policies import read_policy
from igrpo_cli.store.schema import ROLLOUTS
from igrpo_cli.store.tables import file_schema, iterate_records, read_records, write_rows
from igrpo_cli.store.verify import verify_run
from sample_run import draft_shard, drafts, rollout

Read = Callable[[Path, bytes], Any]


def read_config(root: Path, data: bytes) -> None:
    (root / "run.toml").write_bytes(data)
    config = check_config(read_toml(root / "run.toml"), "run.toml")
    (root / "run.toml").write_bytes(write_config(config))
    assert check_config(read_toml(root / "run.toml"), "run.toml") == config


def read_override(root: Path, data: bytes) -> None:
    check_config(apply_overrides(read_preset("arithmetic"), [data.decode("utf-8", "surrogateescape")]), "--set")


def read_problem_lines(root: Path, data: bytes) -> None:
    (root / "problems.jsonl").write_bytes(data)
    loaded = load_problems(str(root / "problems.jsonl"), skip_bad_rows=True)
    assert loaded.counts["rows"] == sum(number for kind, number in loaded.counts.items() if kind != "rows")
    assert loaded.counts["kept"] == len(loaded.problems)


def read_problem_array(root: Path, data: bytes) -> None:
    (root / "problems.json").write_bytes(data)
    load_problems(str(root / "problems.json"), skip_bad_rows=True)


def read_problem_table(root: Path, data: bytes) -> None:
    (root / "problems.parquet").write_bytes(data)
    load_problems(str(root / "problems.parquet"), skip_bad_rows=True)


def read_shard_manifest(root: Path, data: bytes) -> None:
    path = RunDirectory(root).shard(0, "draft", 3, 8)
    path.manifest.parent.mkdir(parents=True, exist_ok=True)
    path.manifest.write_bytes(data)
    if iteration_costs(RunDirectory(root), 0, ["draft"]).unreadable:
        read_manifest(path)
    open_input(path)


def read_pointer(root: Path, data: bytes) -> None:
    run = RunDirectory(root)
    run.policy(0).mkdir(parents=True, exist_ok=True)
    (run.policy(0) / "pointer.json").write_bytes(data)
    read_policy(run, 0)


def read_shard(root: Path, data: bytes) -> None:
    path = root / "shard.parquet"
    path.write_bytes(data)
    try:
        file_schema(path, ROLLOUTS)
    except IgrpoError:
        read_records(path, Rollout)
    assert sum(map(len, iterate_records(path, Rollout))) == len(read_records(path, Rollout))


def verify_damaged_run(root: Path, data: bytes) -> None:
    run = RunDirectory(root)
    path = run.shard(0, "draft", 0, 1)
    path.data.parent.mkdir(parents=True, exist_ok=True)
    path.data.write_bytes(data)
    path.manifest.write_bytes(data)
    assert verify_run(run).problems


def sound_files(root: Path) -> dict[str, bytes]:
    """A sound file for each reader."""
    path, _ = draft_shard(RunDirectory(root / "run"))
    write_rows(root / "rows.parquet", ROLLOUTS, [*drafts(0, 1), [rollout(2)]])
    problems = [{"id": n, "problem": f"{n} + 1?", "answer": n + 1, "level": None} for n in range(4)]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(problems), buffer)
    lines = "".join(f"{json.dumps(row)}\n" for row in problems).encode()
    pointer = {"policy_version": 2, "policy_id": f"sha256:{'0' * 64}", "model": "m", "revision": None, "path": "x"}
    shard = (root / "rows.parquet").read_bytes()
    return {
        "config": write_config(check_config(read_preset("arithmetic"), "arithmetic")),
        "override": b"draft.temperature = 0.5",
        "problem lines": lines,
        "problem array": json.dumps(problems).encode(),
        "problem table": buffer.getvalue(),
        "manifest": path.manifest.read_bytes(),
        "pointer": checksummed_bytes({**pointer, "files": {"config.json": "0" * 64}}),
        "shard": shard,
        "verify": shard,
    }


READERS: dict[str, Read] = {
    "config": read_config,
    "override": read_override,
    "problem lines": read_problem_lines,
    "problem array": read_problem_array,
    "problem table": read_problem_table,
    "manifest": read_shard_manifest,
    "pointer": read_pointer,
    "shard": read_shard,
    "verify": verify_damaged_run,
}

SNIPPETS = st.sampled_from(
    (
        *(b'"', b"{", b"[" * 2000, b"\x00", b"\xff", b"null", b"NaN", b"1e999", b"-1", b"9" * 5000, b"\\ud800", b"../"),
        *(b"\n", b"\xef\xbb\xbf", b"true", b'{"a": 1, "a": 2}', b"PAR1", b"\x1b[2J", "\u202e".encode(), b"0.1", b"="),
    )
)


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """`sound` with a few pieces removed, doubled, flipped or replaced; now and then bytes of no origin at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=200))
    data = sound
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(len(data), start + 40)))
        middle = draw(st.one_of(st.binary(max_size=8), SNIPPETS, st.just(data[start:stop] * 2)))
        if draw(st.booleans()) and start < len(data):
            middle, stop = bytes([data[start] ^ (1 << draw(st.integers(0, 7)))]), start + 1
        data = data[:start] + middle + data[stop:]
    return data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data


def drive(name: str, root: Path, data: bytes) -> None:
    """Give `data` to a reader; any error but an IgrpoError comes out."""
    with suppress(IgrpoError):
        READERS[name](root, data)
