"""An idle task takes over blocks of slower shards; claims order the work and can never hold it up."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest

from command_line import files_below, igrpo, make_run, sets
from igrpo_cli.store.parts import PartStore

TWO_SHARDS = ("run.num_shards=2", "run.num_iterations=1")
"""Blocks 0 and 1 are shard 0, blocks 2 and 3 shard 1."""


@pytest.fixture(scope="module")
def drafted(tmp_path_factory):
    """The drafts of two tasks that each did their own."""
    run = make_run(tmp_path_factory.mktemp("runs") / "drafted", *TWO_SHARDS)
    assert igrpo("draft", run).code == 0
    return run / "iteration_0000/draft"


def parts(run, shard):
    return sorted(path.name for path in run.glob(f"iteration_0000/draft/.parts/shard-0000{shard}-of-00002/*.parquet"))


class Killed(BaseException):
    """Ends a command as a signal would."""


@contextmanager
def killed_after_a_block():
    """Let the first block that is written be kept, and end the command then."""
    write = PartStore.write

    def once(self, block, rows, *proposals):
        write(self, block, rows, *proposals)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartStore, "write", once)
        yield


def parts_of_one_shard(run):
    return sorted(run.glob("iteration_0000/draft/.parts/*/*.parquet"))


def test_a_task_that_is_done_samples_what_another_has_not_begun(tmp_path, drafted):
    run = make_run(tmp_path / "run", *TWO_SHARDS)
    assert igrpo("draft", run, "--shard", 0, "--take-over").code == 0
    assert [path.name for path in sorted((run / "iteration_0000/draft").glob("*.json"))] == [
        "shard-00000-of-00002.json"
    ]
    assert parts(run, 1) == ["block-000002.parquet", "block-000003.parquet"]
    result = igrpo("draft", run, "--shard", 1)
    assert result.code == 0, result.stderr
    assert files_below(run / "iteration_0000/draft") == files_below(drafted)
    assert not (run / "iteration_0000/draft/.parts/shard-00001-of-00002").exists()


def test_without_the_flag_a_task_keeps_to_its_shards(tmp_path):
    run = make_run(tmp_path / "run", *TWO_SHARDS)
    assert igrpo("draft", run, "--shard", 0).code == 0
    assert parts(run, 1) == []


def test_what_another_task_has_claimed_is_left_to_it(tmp_path):
    run = make_run(tmp_path / "run", *TWO_SHARDS)
    claims = run / "iteration_0000/draft/.parts/shard-00001-of-00002"
    claims.mkdir(parents=True)
    (claims / "block-000002.claim").touch()
    assert igrpo("draft", run, "--shard", 0, "--take-over").code == 0
    assert parts(run, 1) == ["block-000003.parquet"]


def test_the_claim_of_a_dead_task_holds_nothing_up(tmp_path, drafted):
    run = make_run(tmp_path / "run", *TWO_SHARDS)
    claims = run / "iteration_0000/draft/.parts/shard-00000-of-00002"
    claims.mkdir(parents=True)
    for block in (0, 1):
        (claims / f"block-00000{block}.claim").touch()
    assert igrpo("draft", run).code == 0
    assert files_below(run / "iteration_0000/draft") == files_below(drafted)


def test_nothing_is_left_to_help_with_where_all_shards_are_finished(tmp_path):
    run = make_run(tmp_path / "run", *TWO_SHARDS)
    assert igrpo("draft", run).code == 0
    result = igrpo("draft", run, "--shard", 0, "--take-over", "--json")
    assert result.code == 0
    assert result.json["skipped"] == 1


def test_an_overwrite_with_other_settings_leaves_the_shards_of_other_tasks_alone(tmp_path):
    run = make_run(tmp_path / "run", *TWO_SHARDS)
    assert igrpo("draft", run).code == 0
    other = run / "iteration_0000/draft/shard-00001-of-00002.parquet"
    before = other.read_bytes()
    changed = *sets("draft.temperature=0.5"), "--overwrite", "--take-over"
    result = igrpo("draft", run, "--shard", 0, *changed)
    assert result.code == 0, result.stderr
    assert other.read_bytes() == before


def test_a_stopped_overwrite_keeps_the_blocks_of_its_new_settings(tmp_path):
    run = make_run(tmp_path / "run", "run.num_iterations=1")
    assert igrpo("draft", run).code == 0
    changed = sets("draft.temperature=0.5")
    again = make_run(tmp_path / "again", "run.num_iterations=1")
    shutil.copytree(run / "policies", again / "policies", dirs_exist_ok=True)
    with killed_after_a_block(), pytest.raises(Killed):
        igrpo("draft", run, *changed, "--overwrite")
    kept = parts_of_one_shard(run)
    assert len(kept) > 0
    times = {path: path.stat().st_mtime_ns for path in kept}
    with killed_after_a_block(), pytest.raises(Killed):
        igrpo("draft", run, *changed, "--overwrite")
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert igrpo("draft", run, *changed, "--overwrite").code == 0
    assert igrpo("draft", again, *changed).code == 0
    assert files_below(run / "iteration_0000/draft") == files_below(again / "iteration_0000/draft")
