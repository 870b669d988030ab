from __future__ import annotations

import os
import random

import pyarrow.parquet as pq
import pytest

from igrpo_cli.errors import DamagedFileError, IgrpoError, MissingInputError
from igrpo_cli.records import Proposals, Rollout
from igrpo_cli.store import atomic, parts
from igrpo_cli.store.parts import BLOCK_KEY, CONTENT_KEY, IDENTITY_KEY, PROPOSALS_KEY, PartStore
from igrpo_cli.store.rows import rows_of
from igrpo_cli.store.schema import ROLLOUTS
from igrpo_cli.store.tables import write_rows, write_tables
from igrpo_cli.store.temporaries import is_temporary
from sample_run import group

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


def test_the_proposals_of_all_blocks_are_counted_also_of_those_sampled_before_a_restart(store, tmp_path):
    store.write(4, BLOCKS[4], Proposals(100, 40))
    store.write(5, BLOCKS[5], Proposals(20, 0))
    resumed = PartStore(store.directory, MINE)
    resumed.write(6, BLOCKS[6], Proposals())
    resumed.write(7, BLOCKS[7], Proposals(5, 5))
    resumed.assemble(tmp_path / "with.parquet", BLOCKS)
    assert resumed.proposal_counts == {"proposed_tokens": 125, "accepted_tokens": 45}


def test_a_shard_without_proposals_has_no_counts_of_them_and_the_same_bytes(store, tmp_path):
    fill(store, BLOCKS)
    store.assemble(tmp_path / "without.parquet", BLOCKS)
    assert store.proposal_counts == {}
    other = PartStore(tmp_path / "other", MINE)
    for block, rows in BLOCKS.items():
        other.write(block, rows, Proposals(9, 3))
    other.assemble(tmp_path / "with.parquet", BLOCKS)
    assert (tmp_path / "without.parquet").read_bytes() == (tmp_path / "with.parquet").read_bytes()


def test_a_number_of_proposals_that_is_none_is_damage(store):
    store.write(4, BLOCKS[4], Proposals(100, 40))
    path = store.path(4)
    path.write_bytes(path.read_bytes().replace(b"100 40", b"1x0 40"))
    with pytest.raises(DamagedFileError):
        store.read(4)
    assert PROPOSALS_KEY == "igrpo.proposals"


def test_a_part_is_kept_though_other_tasks_clear_the_parts_while_it_is_written(store, monkeypatch):
    fill(store, [4])

    def cleared_on_the_way(path, schema, tables, **options):
        def interrupted():
            for _ in range(100):
                store.clear()
            assert [is_temporary(name) for name in names(store)] == [True]
            yield from tables

        return write_tables(path, schema, interrupted(), **options)

    monkeypatch.setattr(parts, "write_tables", cleared_on_the_way)
    fill(store, [5])
    assert not store.has(4)
    assert rows_of(store.read(5), Rollout) == BLOCKS[5]
    store.clear()
    assert not store.directory.exists()


def test_a_part_is_kept_though_its_directory_is_removed_before_it_is_written(store, monkeypatch):
    made, clearings = atomic._made, iter([True])

    def cleared_after(path):
        parts_made = made(path)
        if next(clearings, False):
            store.clear()
        return parts_made

    monkeypatch.setattr(atomic, "_made", cleared_after)
    fill(store, [4])
    assert next(clearings, None) is None
    assert rows_of(store.read(4), Rollout) == BLOCKS[4]


def test_a_claim_that_loses_its_directory_is_one_that_was_not_made(store, monkeypatch):
    made = atomic._made

    def cleared_after(path):
        parts_made = made(path)
        store.clear()
        return parts_made

    monkeypatch.setattr(atomic, "_made", cleared_after)
    assert store.claim(4) is False


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


def require_found_or_harmless(store, whole, table, bits):
    """Each of `bits` flipped alone: the part does not count and goes away, or its rows are what was written."""
    path = store.path(4)
    num_harmless = 0
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        if store.has(4):
            assert store.read(4).equals(table), bit
            num_harmless += 1
        else:
            assert not path.exists(), bit
    return num_harmless


@pytest.fixture
def small_part(store):
    """(its bytes, its rows, where its footer begins), in bytes: of a part with nulls, lists and choices."""
    store.write(4, group(4)[:2])
    whole = store.path(4).read_bytes()
    return whole, store.read(4), len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")


@pytest.mark.slow
def test_a_flipped_bit_of_each_byte_of_the_footer_is_found_or_harmless(store, small_part):
    whole, table, footer = small_part
    bits = [8 * byte + byte % 8 for byte in range(footer, len(whole))]
    assert 0 < require_found_or_harmless(store, whole, table, bits) < len(bits) / 2


def test_flipped_bits_anywhere_are_found_or_harmless(store, small_part):
    whole, table, footer = small_part
    chance = random.Random(0)
    require_found_or_harmless(store, whole, table, chance.sample(range(8 * footer), 400))
    require_found_or_harmless(store, whole, table, chance.sample(range(8 * footer, 8 * len(whole)), 400))


@pytest.mark.parametrize("key", [IDENTITY_KEY, BLOCK_KEY, CONTENT_KEY, "igrpo.schema", "igrpo.schema_version"])
def test_metadata_that_is_no_text_is_damage(store, key):
    fill(store, [4])
    path = store.path(4)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, key.encode(): b"\xff\xfe"}), path)
    with pytest.raises(DamagedFileError, match=r"block-000004\.parquet"):
        store.read(4)
    assert not store.has(4)


@pytest.mark.parametrize("change", [lambda rows: rows.slice(0, 5), lambda rows: rows.slice(0, 0), lambda rows: rows])
@pytest.mark.parametrize("keeps_hash", [True, False])
def test_a_part_counts_by_the_hash_of_its_rows(store, change, keeps_hash):
    fill(store, [4])
    table = pq.read_table(store.path(4))
    metadata = {
        key: table.schema.metadata[key] for key in table.schema.metadata if keeps_hash or key != b"igrpo.content"
    }
    rows = change(table)
    pq.write_table(rows.replace_schema_metadata(metadata), store.path(4))
    assert store.has(4) == (keeps_hash and rows.num_rows == table.num_rows)


def test_nothing_is_put_together_from_parts_that_are_refused(store, tmp_path):
    fill(store, BLOCKS)
    seen = {}

    def check(block, found):
        seen[block] = list(found)
        if block == 7:
            raise IgrpoError("not so")

    with pytest.raises(IgrpoError, match="not so"):
        store.assemble(tmp_path / "shard.parquet", BLOCKS, check=check)
    assert [path.name for path in tmp_path.iterdir()] == ["draft"]
    assert seen == {block: [(row.group_id, row.sample_id) for row in rows] for block, rows in BLOCKS.items()}


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
