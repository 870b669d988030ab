from __future__ import annotations

import os

import pytest
from sample_run import group

from igrpo_cli.errors import DamagedFileError, IgrpoError, MissingInputError
from igrpo_cli.records import Rollout
from igrpo_cli.shards import parts
from igrpo_cli.shards.parts import PartStore
from igrpo_cli.shards.rows import rows_of
from igrpo_cli.shards.schema import ROLLOUTS
from igrpo_cli.shards.tables import write_rows, write_tables

BLOCKS = {4: group(4) + group(5), 5: group(6, verdict="no_answer"), 6: [], 7: group(8, finish_reason="length")}
MINE, OTHER = "1" * 64, "2" * 64


@pytest.fixture
def store(tmp_path):
    return PartStore(tmp_path / "draft" / ".parts" / "shard-00001-of-00002", MINE)


def fill(store, blocks):
    for block in blocks:
        store.write(block, BLOCKS[block])


def names(store):
    return sorted(path.name for path in store.directory.iterdir())


def test_a_part_is_there_once_it_is_written(store):
    assert not store.has(4)
    fill(store, BLOCKS)
    assert all(store.has(block) for block in BLOCKS)
    assert not store.has(8)
    assert names(store) == [f"block-00000{block}.parquet" for block in BLOCKS]
    assert rows_of(store.read(4), Rollout) == BLOCKS[4]
    assert store.read(6).num_rows == 0


def test_the_shard_does_not_remember_in_how_many_goes_it_was_made(store, tmp_path):
    fill(store, BLOCKS)
    store.assemble(tmp_path / "at once.parquet", BLOCKS)
    again = PartStore(tmp_path / "again", MINE)
    fill(again, [7, 4])
    resumed = PartStore(tmp_path / "again", MINE)
    fill(resumed, [block for block in BLOCKS if not resumed.has(block)])
    data = resumed.assemble(tmp_path / "resumed.parquet", BLOCKS)
    write_rows(tmp_path / "without parts.parquet", ROLLOUTS, BLOCKS.values())
    assert data.rows == 12
    assert data.groups == 4
    assert len({(tmp_path / f"{name}.parquet").read_bytes() for name in ("at once", "resumed", "without parts")}) == 1


def test_a_part_is_kept_though_another_task_clears_the_parts_while_it_is_written(store, monkeypatch):
    clearings = iter([True, True])

    def cleared_on_the_way(path, schema, tables, **options):
        def interrupted():
            if next(clearings, False):
                store.clear()
            yield from tables

        return write_tables(path, schema, interrupted(), **options)

    monkeypatch.setattr(parts, "write_tables", cleared_on_the_way)
    fill(store, [4])
    assert rows_of(store.read(4), Rollout) == BLOCKS[4]
    clearings = iter([True] * parts.MOST_CLEARINGS)
    with pytest.raises(IgrpoError, match=r"cannot write .*block-000005.parquet"):
        fill(store, [5])


def test_parts_of_another_identity_do_not_count_and_go_away(store):
    fill(PartStore(store.directory, OTHER), [4, 5])
    with pytest.raises(DamagedFileError, match="another shard or config"):
        store.read(4)
    assert not store.has(4)
    assert names(store) == ["block-000005.parquet"]
    fill(store, [5])
    assert store.has(5)


def test_a_part_under_the_name_of_another_block_does_not_count(store):
    fill(store, [4])
    os.rename(store.path(4), store.path(5))
    assert not store.has(5)


@pytest.mark.parametrize("length", [0, 4, 500, -1])
def test_a_damaged_part_does_not_count_and_is_made_again(store, length):
    fill(store, [4])
    whole = store.path(4).read_bytes()
    store.path(4).write_bytes(whole[:length])
    assert not store.has(4)
    assert names(store) == []
    fill(store, [4])
    assert store.path(4).read_bytes() == whole


def test_the_rows_kept_first_stand(store):
    fill(store, [4])
    store.write(4, group(4, completion="another draw") + group(5))
    assert rows_of(store.read(4), Rollout) == BLOCKS[4]


def test_a_shard_with_a_missing_part_is_not_assembled(store, tmp_path):
    fill(store, [4, 5])
    with pytest.raises(MissingInputError, match="block-000006"):
        store.assemble(tmp_path / "shard.parquet", BLOCKS)
    assert not (tmp_path / "shard.parquet").exists()


def test_blocks_with_other_columns_cannot_become_one_shard(store, tmp_path):
    fill(store, [4])
    store.write(5, group(6, reward_parts={"accuracy": 1.0, "format": 1.0, "judge": 0.5}))
    with pytest.raises(IgrpoError, match="other columns"):
        store.assemble(tmp_path / "shard.parquet", [4, 5])


def test_clearing_removes_the_parts_of_this_shard_only(store):
    neighbour = PartStore(store.directory.parent / "shard-00000-of-00002", MINE)
    fill(store, [4])
    fill(neighbour, [4])
    store.clear()
    store.clear()
    assert not store.directory.exists()
    assert neighbour.has(4)
    neighbour.clear()
    assert list(store.directory.parent.iterdir()) == []
