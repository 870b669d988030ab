from __future__ import annotations

import os
import random
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from igrpo_cli.errors import ConflictError, DamagedFileError, IgrpoError, MissingInputError
from igrpo_cli.records import Metric, Problem, Rollout, Selection
from igrpo_cli.store.checksummed_json import UnknownSchemaError
from igrpo_cli.store.completion import open_input
from igrpo_cli.store.hashing import sha256_file
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.rows import table_of
from igrpo_cli.store.schema import METRICS, PROBLEMS, ROLLOUTS, SELECTIONS
from igrpo_cli.store.tables import iterate_blocks, iterate_records, read_records, read_table, write_rows, write_tables
from sample_run import draft_shard, group, rollout, selection

BLOCKS = [group(0) + group(1), group(2), group(3, completion="x" * 2000)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "shard.parquet"


def test_each_block_is_a_row_group_with_checksums_and_zstd(path):
    data = write_rows(path, ROLLOUTS, BLOCKS)
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [6, 3, 3]
    columns = [file.metadata.row_group(0).column(i) for i in range(file.metadata.num_columns)]
    assert {column.compression for column in columns} == {"ZSTD"}
    assert file.metadata.metadata[b"igrpo.schema"] == b"rollouts"
    assert (data.schema, data.schema_version, data.rows, data.groups) == ("rollouts", 1, 12, 4)
    assert (data.sha256, data.num_bytes) == (sha256_file(path), path.stat().st_size)


def test_blocks_come_back_one_by_one_and_whole(path):
    write_rows(path, ROLLOUTS, BLOCKS)
    assert list(iterate_records(path, Rollout)) == BLOCKS
    assert read_records(path, Rollout) == [row for block in BLOCKS for row in block]
    assert read_table(path, ROLLOUTS).num_rows == 12


def test_a_file_without_rows_is_a_file(path):
    data = write_rows(path, ROLLOUTS, [])
    assert (data.rows, data.groups) == (0, 0)
    assert read_records(path, Rollout) == []
    assert read_table(path, ROLLOUTS).schema.equals(ROLLOUTS)


def test_an_empty_block_leaves_no_trace(path, tmp_path):
    write_rows(path, ROLLOUTS, [[], group(0), [], group(1), []])
    write_rows(tmp_path / "other", ROLLOUTS, [group(0), group(1)])
    assert path.read_bytes() == (tmp_path / "other").read_bytes()


def test_only_the_columns_asked_for_are_read(path):
    write_rows(path, ROLLOUTS, BLOCKS)
    assert read_table(path, ROLLOUTS, ["reward", "group_id"]).schema.names == ["reward", "group_id"]
    assert [block.num_columns for block in iterate_blocks(path, ROLLOUTS, ["reward"])] == [1, 1, 1]
    with pytest.raises(IgrpoError, match="no column rewards"):
        read_table(path, ROLLOUTS, ["rewards"])


def test_the_same_rows_are_the_same_bytes_in_any_process(path, tmp_path):
    write_rows(path, ROLLOUTS, BLOCKS)
    code = (
        "import sys; from pathlib import Path; from test_tables import *; "
        "write_rows(Path(sys.argv[1]), ROLLOUTS, iter(tuple(block) for block in BLOCKS))"
    )
    other = tmp_path / "other"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(other)], env=environment, check=True)
    assert other.read_bytes() == path.read_bytes()


def test_bytes_do_not_show_how_a_table_was_put_together(path, tmp_path):
    parts = [group(0), group(1, verdict="ungraded"), group(2, verdict="wrong")]
    whole = table_of(ROLLOUTS, [row for part in parts for row in part])
    write_rows(path, ROLLOUTS, [parts[1] + parts[2]])
    write_tables(tmp_path / "sliced", ROLLOUTS, [whole.slice(3)])
    write_tables(tmp_path / "joined", ROLLOUTS, [pa.concat_tables(table_of(ROLLOUTS, part) for part in parts[1:])])
    assert (tmp_path / "sliced").read_bytes() == (tmp_path / "joined").read_bytes() == path.read_bytes()


def test_pages_of_large_blocks_do_not_show_it_either(path, tmp_path):
    rng = random.Random(0)
    rows = [Problem(f"{i}", rng.randbytes(1000).hex(), "1", "s") for i in range(1500)]
    write_rows(path, PROBLEMS, [rows])
    joined = pa.concat_tables(table_of(PROBLEMS, part) for part in (rows[:700], rows[700:]))
    write_tables(tmp_path / "joined", PROBLEMS, [joined])
    assert (tmp_path / "joined").read_bytes() == path.read_bytes()


def test_other_rows_do_not_replace_a_file_unasked(path):
    write_rows(path, ROLLOUTS, BLOCKS)
    assert write_rows(path, ROLLOUTS, BLOCKS).rows == 12
    with pytest.raises(ConflictError):
        write_rows(path, ROLLOUTS, BLOCKS[:1])
    assert write_rows(path, ROLLOUTS, BLOCKS[:1], replace=True).rows == 6
    assert len(read_records(path, Rollout)) == 6


def test_a_row_that_does_not_fit_leaves_no_file(path):
    with pytest.raises(IgrpoError, match="column reward"):
        write_rows(path, ROLLOUTS, [group(0), [rollout(reward=float("nan"))]])
    with pytest.raises(IgrpoError, match="cannot share"):
        write_rows(path, ROLLOUTS, [group(0), group(1, reward_parts={"accuracy": 1.0, "format": 1.0, "judge": 0.0})])
    assert list(path.parent.iterdir()) == []


def test_another_kind_of_file_is_named(path, tmp_path):
    write_rows(path, SELECTIONS, [[selection()]])
    with pytest.raises(UnknownSchemaError, match="holds 'selections', not rollouts"):
        read_table(path, ROLLOUTS)
    pq.write_table(pa.table({"problem": ["1 + 1"]}), tmp_path / "foreign.parquet")
    with pytest.raises(UnknownSchemaError, match=r"foreign\.parquet was not written by igrpo"):
        read_table(tmp_path / "foreign.parquet", ROLLOUTS)
    with pytest.raises(MissingInputError, match=r"none\.parquet does not exist"):
        read_table(tmp_path / "none.parquet", ROLLOUTS)


@pytest.mark.parametrize(("version", "age"), [(b"2", "a newer"), (b"0", "an older"), (b"x", "an older or unknown")])
def test_another_version_is_named_and_not_called_damage(path, version, age):
    metadata = {**METRICS.metadata, b"igrpo.schema_version": version}
    pq.write_table(METRICS.with_metadata(metadata).empty_table(), path)
    with pytest.raises(UnknownSchemaError, match=f"written by {age}.* igrpo .metrics version") as caught:
        read_records(path, Metric)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("schema", "column"),
    [
        (SELECTIONS.remove(4), "draft"),
        (SELECTIONS.append(pa.field("more", pa.int8())), "more"),
        (SELECTIONS.set(5, pa.field("draft_reward", pa.float64(), nullable=False)), "draft_reward"),
        (SELECTIONS.set(5, pa.field("draft_reward", pa.float32())), "draft_reward"),
    ],
    ids=["missing", "further", "another type", "nullable"],
)
def test_columns_that_are_not_those_of_the_schema_are_damage(path, schema, column):
    pq.write_table(schema.empty_table(), path)
    with pytest.raises(DamagedFileError, match=f"the column {column} is not that of selections"):
        read_records(path, Selection)


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_no_flipped_bit_gets_past_the_manifest(tmp_path):
    path, _ = draft_shard(RunDirectory(tmp_path))
    content = path.data.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(content)), 64):
        path.data.write_bytes(flipped(content, bit))
        with pytest.raises(DamagedFileError):
            open_input(path)


def test_flipped_bits_of_the_pages_are_found_without_a_manifest(path):
    """The checksums cover page bodies, which are nearly all of a shard; for headers and footer there is the SHA-256."""
    rng = random.Random(1)
    rows = [rollout(0, i, completion=rng.randbytes(1000).hex()) for i in range(64)]
    write_rows(path, ROLLOUTS, [rows])
    content = path.read_bytes()
    silently_wrong = 0
    for bit in rng.sample(range(8 * len(content)), 96):
        path.write_bytes(flipped(content, bit))
        try:
            silently_wrong += read_records(path, Rollout) != rows
        except DamagedFileError:
            continue
    assert silently_wrong <= 1


def test_a_truncated_file_is_damaged_wherever_it_ends(path):
    write_rows(path, ROLLOUTS, BLOCKS)
    content = path.read_bytes()
    for length in random.Random(0).sample(range(len(content)), 40):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedFileError, match=r"shard\.parquet"):
            read_table(path, ROLLOUTS)


def test_reading_is_by_block_so_only_the_damaged_one_is_lost(path):
    blocks = [*BLOCKS[:2], group(3, completion=random.Random(0).randbytes(4000).hex())]
    write_rows(path, ROLLOUTS, blocks)
    last = pq.ParquetFile(path).metadata.row_group(2)
    column = next(last.column(i) for i in range(last.num_columns) if last.column(i).path_in_schema == "completion")
    start = column.dictionary_page_offset or column.data_page_offset
    path.write_bytes(flipped(path.read_bytes(), 8 * (start + column.total_compressed_size // 2)))
    found = iterate_records(path, Rollout)
    assert [next(found), next(found)] == BLOCKS[:2]
    with pytest.raises(DamagedFileError):
        next(found)


def test_errors_of_whoever_uses_the_blocks_are_their_own(path):
    write_rows(path, ROLLOUTS, BLOCKS)

    def use(block):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        list(map(use, iterate_blocks(path, ROLLOUTS)))
