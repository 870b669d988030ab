"""Measure `igrpo select` over many drafts: rows per second and peak memory.

    python benchmarks/selection.py [--rows 10000 100000 1000000] [--shards 64] [--samples 8] [--tokens 64]

Writes a run of each size into a temporary folder; all blocks contain the same random drafts under different group ids.
A new process then runs the selection. Prints one line of JSON per size.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from igrpo_cli.config.blocks import block_range
from igrpo_cli.config.files import apply_overrides, check_config, read_preset, write_config
from igrpo_cli.store.completion import commit_shard
from igrpo_cli.store.layout import RunDirectory, ShardPath
from igrpo_cli.store.manifest import DataFile, Identity, Manifest, utc_now
from igrpo_cli.store.rows import table_of
from igrpo_cli.store.schema import ROLLOUTS
from igrpo_cli.store.settings import checksummed_settings
from igrpo_cli.store.tables import write_tables
from report import GROUPS_PER_BLOCK, SAMPLING, rollout


def make_drafts(root: Path, groups: int, arguments: argparse.Namespace) -> None:
    """Write a run of `groups` problems with all drafts."""
    sizes = {"run.num_shards": arguments.shards, "data.problems_per_iteration": groups}
    sizes |= {"draft.num_generations": arguments.samples, "engine.groups_per_block": GROUPS_PER_BLOCK}
    settings = apply_overrides(read_preset("arithmetic"), [f"{key}={value}" for key, value in sizes.items()])
    root.mkdir()
    (root / "run.toml").write_bytes(checksummed_settings(write_config(check_config(settings, "arithmetic"))))
    chance = random.Random(0)
    ids = [(group, sample) for group in range(GROUPS_PER_BLOCK) for sample in range(arguments.samples)]
    block = table_of(ROLLOUTS, [rollout("draft", *place, arguments.tokens, chance) for place in ids])
    for path in RunDirectory(root).shards(0, "draft", arguments.shards):
        publish(path, block, groups, arguments.samples)


def publish(path: ShardPath, block: pa.Table, groups: int, samples: int) -> None:
    """Publish the draft shard at `path` with its share of the groups."""
    identity = Identity("draft", 0, path.shard, path.num_shards, {"run": {"seed": 0}})

    def blocks() -> Iterator[pa.Table]:
        for number in block_range(-(-groups // GROUPS_PER_BLOCK), path.shard, path.num_shards):
            ids = range(number * GROUPS_PER_BLOCK, min((number + 1) * GROUPS_PER_BLOCK, groups))
            rows = block.slice(0, len(ids) * samples)
            place = rows.schema.get_field_index("group_id")
            column = pa.array([group for group in ids for _ in range(samples)], pa.int32())
            yield rows.set_column(place, rows.schema.field(place), column)

    def describe(data: DataFile) -> Manifest:
        return Manifest(identity, data, SAMPLING, {}, "host", "cpu", utc_now(), utc_now(), 1.0, 1000, 0.0)

    def write(replace: bool) -> DataFile:
        return write_tables(path.data, ROLLOUTS, blocks(), replace=replace)

    commit_shard(path, identity, write, describe)


def measure(rows: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Measure the selection from `rows` drafts, rounded down to whole groups."""
    groups = rows // arguments.samples
    with tempfile.TemporaryDirectory() as folder:
        make_drafts(Path(folder, "run"), groups, arguments)
        command = [sys.executable, "-m", "igrpo_cli", "select", str(Path(folder, "run")), "--iteration", "0", "--json"]
        started = time.monotonic()
        with subprocess.Popen([*command, "-q"], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            result = json.loads(process.stdout.read())
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - started
    assert process.returncode == 0
    assert result["rows"] == groups
    return {
        "rows": groups * arguments.samples,
        "shards": arguments.shards,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "rows_per_second": round(groups * arguments.samples / result["seconds"]),
        "peak_mib": round(used.ru_maxrss / 2**10),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    for name, default in {"shards": 64, "samples": 8, "tokens": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    for rows in arguments.rows:
        print(json.dumps(measure(rows, arguments)), flush=True)


if __name__ == "__main__":
    main()
