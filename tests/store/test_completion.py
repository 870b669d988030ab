from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace

import pytest

from igrpo_cli.errors import ConflictError, DamagedFileError, MissingInputError
from igrpo_cli.records import Rollout
from igrpo_cli.store import completion
from igrpo_cli.store.checksummed_json import UnknownSchemaError
from igrpo_cli.store.completion import (
    adopt_shard,
    commit_manifest,
    commit_shard,
    completed,
    input_hashes,
    open_input,
)
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.manifest import FileHash
from igrpo_cli.store.schema import ROLLOUTS
from igrpo_cli.store.tables import read_records, write_rows
from sample_run import draft_shard, group, identity_of, make_run, manifest_of, publish

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path)


def test_nothing_is_finished_before_its_manifest_is_there(run):
    path = run.shard(0, "draft", 3, 8)
    assert completed(path, identity_of(path)) is None
    write_rows(path.data, ROLLOUTS, [group(0)])
    assert completed(path, identity_of(path)) is None
    path, identity = draft_shard(RunDirectory(run.root / "other"))
    assert completed(path, identity).data.rows == 6


def test_another_config_is_refused_and_nothing_changes(run):
    path, identity = draft_shard(run)
    other = replace(identity, config={"draft": {"temperature": 0.8, "top_k": 0}, "prompts": {"system_prompt": ""}})
    with pytest.raises(ConflictError, match=r"draft.temperature 1.0 on disk, 0.8 now"):
        completed(path, other)
    assert completed(path, identity) is not None


def remove_data(path):
    path.data.unlink()


def cut_data(path):
    os.truncate(path.data, path.data.stat().st_size - 1)


def cut_manifest(path):
    os.truncate(path.manifest, 100)


@pytest.mark.parametrize(
    ("damage", "told"),
    [(remove_data, "is gone"), (cut_data, "bytes"), (cut_manifest, "not valid JSON")],
)
def test_a_damaged_shard_is_told_of_and_made_again_to_the_same_bytes(run, damage, told):
    path, identity = draft_shard(run)
    content = path.data.read_bytes()
    damage(path)
    heard = []
    assert completed(path, identity, heard.append) is None
    assert len(heard) == 1
    assert told in heard[0]
    assert str(run.root) in heard[0]
    assert completed(path, identity) is None
    draft_shard(run)
    assert path.data.read_bytes() == content
    assert completed(path, identity, heard.append) is not None
    assert len(heard) == 1


def test_a_removed_manifest_is_written_again(run):
    path, identity = draft_shard(run)
    path.manifest.unlink()
    draft_shard(run)
    assert completed(path, identity) is not None


def test_a_missing_output_means_not_finished(run):
    path = run.shard(0, "draft", 3, 8)
    identity = identity_of(path)
    (run.root / "more.parquet").touch()
    publish(path, identity, ROLLOUTS, [group(0)], outputs=(FileHash("more.parquet", "1" * 64),))
    assert completed(path, identity) is not None
    (run.root / "more.parquet").unlink()
    assert completed(path, identity) is None


def test_what_a_newer_igrpo_made_is_neither_used_nor_replaced(run):
    path, identity = draft_shard(run)
    path.manifest.write_text(path.manifest.read_text().replace('"manifest_version": 3', '"manifest_version": 4'))
    with pytest.raises(UnknownSchemaError):
        completed(path, identity)


def test_data_left_without_a_manifest_is_replaced(run):
    path = run.shard(0, "draft", 3, 8)
    write_rows(path.data, ROLLOUTS, [group(9)])
    draft_shard(run)
    assert [row.group_id for row in read_records(path.data, Rollout)] == [0, 0, 0, 1, 1, 1]
    open_input(path)


def test_overwriting_replaces_data_and_manifest(run):
    path, identity = draft_shard(run)
    other = replace(identity, policy=None)
    blocks = [group(4)]
    with pytest.raises(ConflictError):
        publish(path, other, ROLLOUTS, blocks)
    commit_shard(
        path,
        other,
        lambda again: write_rows(path.data, ROLLOUTS, blocks, replace=again),
        lambda data: manifest_of(other, data),
        overwrite=True,
    )
    assert open_input(path).identity == other
    assert [row.group_id for row in read_records(path.data, Rollout)] == [4, 4, 4]


def test_a_shard_finished_by_another_task_meanwhile_stands(run):
    path = run.shard(0, "draft", 3, 8)
    identity = identity_of(path)

    def write(replace_it):
        draft_shard(run)
        raise MissingInputError("the parts were cleared by the task that finished first")

    manifest = commit_shard(path, identity, write, lambda data: pytest.fail("no manifest of ours"))
    assert manifest.data.rows == 6
    open_input(path)


def test_parts_that_are_missing_without_a_finished_shard_are_an_error(run):
    path = run.shard(0, "draft", 3, 8)

    def write(replace_it):
        raise MissingInputError("no part")

    with pytest.raises(MissingInputError, match="no part"):
        commit_shard(path, identity_of(path), write, lambda data: pytest.fail("nothing to describe"))


def test_a_manifest_never_stays_beside_data_that_it_does_not_describe(run):
    path = run.shard(0, "draft", 3, 8)
    identity = identity_of(path)
    data = write_rows(path.data, ROLLOUTS, [group(0)])
    write_rows(path.data, ROLLOUTS, [group(1)], replace=True)
    with pytest.raises(ConflictError, match="replaced by another task"):
        commit_manifest(path, manifest_of(identity, data))
    assert not path.manifest.exists()


def test_a_manifest_that_another_task_took_away_again_is_a_conflict(run, monkeypatch):
    path = run.shard(0, "draft", 3, 8)
    data = write_rows(path.data, ROLLOUTS, [group(0)])

    def lose_to_one_that_is_gone(*_):
        raise ConflictError("exists already")

    monkeypatch.setattr(completion, "publish_manifest", lose_to_one_that_is_gone)
    with pytest.raises(ConflictError, match="replaced by another task"):
        commit_manifest(path, manifest_of(identity_of(path), data))
    assert not path.manifest.exists()


def test_a_manifest_that_goes_while_it_is_looked_for_is_one_that_is_not_there(run, monkeypatch):
    read = completion.read_manifest

    def take_away_first(path):
        path.manifest.unlink(missing_ok=True)
        return read(path)

    monkeypatch.setattr(completion, "read_manifest", take_away_first)
    path, identity = draft_shard(run)
    assert completed(path, identity) is None
    path, identity = draft_shard(run)
    with pytest.raises(MissingInputError, match="is not finished") as caught:
        open_input(path)
    assert caught.value.hint == path.command


def _publish_variant(root, me, barrier):
    path = RunDirectory(root).shard(0, "draft", 3, 8)
    barrier.wait(30)
    try:
        publish(path, identity_of(path), ROLLOUTS, [group(me)])
    except ConflictError:
        os._exit(4)
    os._exit(0)


def test_tasks_that_race_with_different_bytes_never_leave_an_unsound_shard(tmp_path):
    for trial in range(8):
        barrier, root = FORK.Barrier(2), tmp_path / f"{trial}"
        processes = [FORK.Process(target=_publish_variant, args=(root, me, barrier)) for me in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(30)
        codes = sorted(process.exitcode for process in processes)
        assert codes in ([0, 0], [0, 4], [4, 4])
        path = RunDirectory(root).shard(0, "draft", 3, 8)
        if path.manifest.exists():
            open_input(path)
        else:
            assert 4 in codes


def test_a_task_that_replaced_the_data_of_a_finished_shard_takes_its_manifest_away(run):
    path, identity = draft_shard(run)
    data = write_rows(path.data, ROLLOUTS, [group(5)], replace=True)
    with pytest.raises(ConflictError, match="replaced by another task"):
        commit_manifest(path, manifest_of(identity, data))
    assert completed(path, identity) is None


def test_an_input_is_checked_before_it_is_read(run):
    path, _ = draft_shard(run)
    assert open_input(path).data.groups == 2
    content = bytearray(path.data.read_bytes())
    content[len(content) // 2] ^= 1
    path.data.write_bytes(content)
    with pytest.raises(DamagedFileError, match="SHA-256") as caught:
        open_input(path)
    assert caught.value.hint == f"`igrpo draft {run.root} --iteration 0 --shard 3 --overwrite` makes it again"


def test_a_missing_input_names_the_command_that_makes_it(run):
    path = run.shard(0, "draft", 3, 8)
    for call in (open_input, input_hashes):
        with pytest.raises(MissingInputError, match="draft shard 3 of 8 is not finished") as caught:
            call(path)
        assert caught.value.hint == f"igrpo draft {run.root} --iteration 0 --shard 3"
    path, _ = draft_shard(run)
    path.data.unlink()
    with pytest.raises(MissingInputError, match="is gone"):
        open_input(path)


def test_a_shard_of_the_same_identity_is_copied_from_another_run(run):
    other = RunDirectory(run.root / "other")
    theirs, identity = draft_shard(other)
    path = RunDirectory(run.root / "mine").shard(0, "draft", 3, 8)
    manifest = adopt_shard(path, identity, [run.root / "empty", other.root])
    assert manifest == completed(path, identity) == completed(theirs, identity)
    assert path.data.read_bytes() == theirs.data.read_bytes()
    assert path.data.stat().st_ino != theirs.data.stat().st_ino


def test_a_shard_of_another_identity_or_a_damaged_one_is_not_copied(run):
    other = RunDirectory(run.root / "other")
    theirs, identity = draft_shard(other)
    path = RunDirectory(run.root / "mine").shard(0, "draft", 3, 8)
    assert adopt_shard(path, replace(identity, policy=None), [other.root]) is None
    content = theirs.data.read_bytes()
    theirs.data.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    assert adopt_shard(path, identity, [other.root]) is None
    assert not path.manifest.exists()
    assert not path.data.exists()


def test_an_update_is_not_copied_because_it_has_more_files_than_its_data(run):
    theirs = make_run(run.root / "other").update(0).shard
    path = RunDirectory(run.root / "mine").update(0).shard
    manifest = open_input(theirs)
    assert adopt_shard(path, manifest.identity, [theirs.root]) is None
    assert not path.manifest.parent.exists()
