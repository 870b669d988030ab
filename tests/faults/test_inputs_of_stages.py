"""Shards that are missing, doubled, foreign, stale, of an older schema, or short of a row: each refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from command_line import files_below, igrpo, make_run
from igrpo_cli.pipeline.frozen_problems import freeze_problems
from igrpo_cli.records import Rollout, Selection
from igrpo_cli.store.completion import commit_shard, input_hashes, read_problems
from igrpo_cli.store.hashing import sha256_file
from igrpo_cli.store.layout import RunDirectory, ShardPath
from igrpo_cli.store.manifest import publish_manifest, read_manifest
from igrpo_cli.store.schema import SCHEMA_OF, VERSION_KEY
from igrpo_cli.store.tables import read_records, write_rows

AFTER = {"draft": "select", "select": "refine", "refine": "update"}
"""The stage that reads the shards of each stage."""


@pytest.fixture
def until(finished_run, tmp_path):
    """`until(stage)`: a run whose second iteration ends with a stage, and the one shard of that stage."""

    def make(stage):
        run = RunDirectory(shutil.copytree(finished_run, tmp_path / "run"))
        shutil.rmtree(run.policy(2))
        for later in ("update", "refine", "select")[: 3 - list(AFTER).index(stage)]:
            shutil.rmtree(run.iteration(1) / later)
        return run, run.shard(1, stage, 0, 1)

    return make


def refused(run: RunDirectory, shard: ShardPath, code: int = 1) -> str:
    """What the next stage says of `shard`; it must name it, publish nothing, and `verify` must see the fault too."""
    before = files_below(run.root)
    result = igrpo(AFTER[shard.stage], run.root, "--iteration", 1)
    assert (result.code, result.stdout) == (code, ""), result.stderr
    assert shard.name in result.stderr or shard.data.stem in result.stderr
    assert "hint: " in result.stderr
    assert files_below(run.root) == before
    assert not run.stage(1, AFTER[shard.stage]).exists() or not list(run.stage(1, AFTER[shard.stage]).glob("*.json"))
    return result.stderr


def verify_says(run: RunDirectory, shard: ShardPath) -> list[str]:
    result = igrpo("verify", run.root, "--json")
    assert result.code == 1
    return [problem["what"] for problem in result.json["problems"] if shard.stage in problem["path"]]


def change_rows(shard: ShardPath, change: Callable[[list[Any]], list[Any]]) -> None:
    """Publish the shard with other rows, its manifest made to fit them."""
    manifest = read_manifest(shard)
    record = Selection if shard.stage == "select" else Rollout
    rows = change(read_records(shard.data, record))
    commit_shard(
        shard,
        manifest.identity,
        lambda again: write_rows(shard.data, SCHEMA_OF[record], [rows], replace=again),
        lambda data: replace(manifest, data=data),
        overwrite=True,
    )


def change_file(shard: ShardPath, table: pa.Table) -> None:
    """Put a table in place of the shard's data, its manifest made to fit the bytes."""
    pq.write_table(table, shard.data)
    manifest = read_manifest(shard)
    data = replace(manifest.data, sha256=sha256_file(shard.data), num_bytes=shard.data.stat().st_size)
    publish_manifest(shard.manifest, replace(manifest, data=data), replace=True)


def let_come_from(shard: ShardPath, *inputs: ShardPath) -> None:
    """Let the manifest of `shard` say that it was made from what `inputs` are now."""
    manifest = read_manifest(shard)
    identity = replace(manifest.identity, inputs=input_hashes(*inputs))
    publish_manifest(shard.manifest, replace(manifest, identity=identity), replace=True)


@pytest.mark.parametrize(("stage", "part"), [("draft", "data"), ("refine", "manifest")])
def test_a_missing_shard(until, stage, part):
    run, shard = until(stage)
    Path(getattr(shard, part)).unlink()
    assert f"hint: {shard.command}" in refused(run, shard, code=3)
    assert igrpo(shard.stage, run.root, "--iteration", 1).code == 0
    assert igrpo("verify", run.root).code == 0


def test_a_shard_of_another_iteration_in_its_place(until):
    run, shard = until("select")
    other = run.shard(0, shard.stage, 0, 1)
    shutil.copy(other.data, shard.data)
    shutil.copy(other.manifest, shard.manifest)
    assert "iteration is 0, but it lies where 1 belongs" in refused(run, shard)
    assert any("iteration is 0" in what for what in verify_says(run, shard))


def test_the_data_of_another_shard_under_the_manifest_of_this_one(until):
    run, shard = until("refine")
    shutil.copy(run.shard(0, shard.stage, 0, 1).data, shard.data)
    refused(run, shard)
    assert verify_says(run, shard)


@pytest.mark.parametrize(
    ("stage", "metadata", "complaint"),
    [
        ("draft", None, "was not written by igrpo"),
        ("refine", {b"igrpo.schema": b"metrics", VERSION_KEY: b"1"}, "holds 'metrics', not rollouts"),
    ],
)
def test_a_foreign_file(until, stage, metadata, complaint):
    run, shard = until(stage)
    change_file(shard, pa.table({"group_id": [0]}).replace_schema_metadata(metadata))
    assert complaint in refused(run, shard)
    assert any(complaint in what for what in verify_says(run, shard))


@pytest.mark.parametrize(
    ("stage", "version", "age"),
    [("draft", b"0", "an older"), ("select", b"1", "an older"), ("select", b"4", "a newer")],
)
def test_another_version_of_the_schema(until, stage, version, age):
    run, shard = until(stage)
    table = pq.read_table(shard.data)
    change_file(shard, table.replace_schema_metadata({**table.schema.metadata, VERSION_KEY: version}))
    assert f"was written by {age}" in refused(run, shard)
    assert any(age in what for what in verify_says(run, shard))


def test_another_version_of_the_manifest(until):
    run, shard = until("refine")
    shard.manifest.write_text(shard.manifest.read_text().replace('"manifest_version": 3', '"manifest_version": 0'))
    assert "an older igrpo (manifest_version 0" in refused(run, shard)
    assert verify_says(run, shard)


def without_group(group_id):
    return lambda rows: [row for row in rows if row.group_id != group_id]


@pytest.mark.parametrize(
    ("stage", "change", "complaint"),
    [
        ("draft", lambda rows: rows[:-1], "lacks a draft or holds one twice"),
        ("draft", without_group(7), "group 7 is missing"),
        ("select", without_group(0), "group 0 is missing"),
        ("select", lambda rows: [*rows, rows[-1]], "group 7 does not belong there, or stands twice"),
        ("refine", lambda rows: rows[1:], "sample 0 of group 0 is missing"),
        ("refine", without_group(7), "sample 0 of group 7 is missing"),
        ("refine", lambda rows: [*rows, rows[-1]], "a row too many in group 7"),
    ],
)
def test_a_group_that_lacks_a_member_or_is_missing(until, stage, change, complaint):
    run, shard = until(stage)
    change_rows(shard, change)
    assert complaint in refused(run, shard)


def test_drafts_that_lost_a_row_after_their_selection_are_not_trained_on(until):
    run, _ = until("refine")
    drafts = run.shard(1, "draft", 0, 1)
    change_rows(drafts, lambda rows: [row for row in rows if row.sample_id < 2])
    let_come_from(run.shard(1, "select", 0, 1), drafts)
    result = igrpo("update", run.root, "--iteration", 1)
    assert result.code == 1
    assert f"{drafts.data}: sample 2 of group 0 is missing" in result.stderr


OTHER_DRAFTS = ("--overwrite", "--set", "draft.temperature=0.3")


def done(run: RunDirectory, stage: str, *arguments: object, iteration: int = 1) -> None:
    result = igrpo(stage, run.root, "--iteration", iteration, *arguments)
    assert result.code == 0, result.stderr


def made_from_another(shard: ShardPath, source: ShardPath) -> str:
    return f"{shard.name} was made from another {source.relative} (sha256 "


def test_a_stale_selection_is_not_refined(until):
    run, shard = until("select")
    done(run, "draft", *OTHER_DRAFTS)
    error = refused(run, shard, code=4)
    assert made_from_another(shard, run.shard(1, "draft", 0, 1)) in error
    assert f"hint: `{shard.command} --overwrite` makes it again" in error
    assert any("was made from another" in what for what in verify_says(run, shard))
    done(run, "select", "--overwrite")
    done(run, "refine")
    assert igrpo("verify", run.root).code == 0


def test_a_stale_selection_behind_refinements_is_not_trained_on(until):
    run, refinements = until("refine")
    selections = run.shard(1, "select", 0, 1)
    done(run, "draft", *OTHER_DRAFTS)
    for stage in ("update", "refine"):
        result = igrpo(stage, run.root, "--iteration", 1)
        assert result.code == 4
        assert made_from_another(selections, run.shard(1, "draft", 0, 1)) in result.stderr
    done(run, "select", "--overwrite")
    assert made_from_another(refinements, selections) in refused(run, refinements, code=4)
    done(run, "refine", "--overwrite")
    done(run, "update")
    assert igrpo("verify", run.root).code == 0


def test_stale_refinements(until):
    run, shard = until("refine")
    done(run, "select", "--overwrite", "--set", "select.strategy=worst")
    error = refused(run, shard, code=4)
    assert made_from_another(shard, run.shard(1, "select", 0, 1)) in error
    assert f"hint: `{shard.command} --overwrite` makes it again" in error
    assert any("was made from another" in what for what in verify_says(run, shard))


def test_stale_drafts(tmp_path):
    run = RunDirectory(make_run(tmp_path / "run", "run.num_iterations=1"))
    shard = run.shard(0, "draft", 0, 1)
    done(run, "draft", iteration=0)
    problems = [replace(problem, answer="7") for problem in read_problems(run.problems())]
    freeze_problems(run.problems(), problems, {"data": {}}, {"kept": len(problems)}, overwrite=True)
    result = igrpo("select", run.root)
    assert result.code == 4
    assert made_from_another(shard, run.problems()) in result.stderr
    assert not run.stage(0, "select").exists()
    assert any("was made from another problems.parquet" in what for what in verify_says(run, shard))
    for stage in ("draft", "select", "refine", "update"):
        done(run, stage, "--overwrite", iteration=0)
    assert igrpo("verify", run.root).code == 0


def test_an_update_made_from_stale_shards_is_not_carried_on(until):
    run, _ = until("refine")
    done(run, "draft", *OTHER_DRAFTS, iteration=0)
    result = igrpo("update", run.root, "--iteration", 1)
    assert result.code == 4
    assert made_from_another(run.shard(0, "select", 0, 1), run.shard(0, "draft", 0, 1)) in result.stderr
    assert f"hint: `igrpo select {run.root} --iteration 0 --shard 0 --overwrite`" in result.stderr
    assert not run.update(1).directory.exists()


def test_settings_of_a_finished_shard_that_differ_are_told_before_what_lies_behind_it(until):
    run, shard = until("refine")
    done(run, "draft", *OTHER_DRAFTS)
    result = igrpo("refine", run.root, "--iteration", 1, "--set", "refine.temperature=0.3")
    assert result.code == 4
    assert f"{shard.name} was made with another config (refine.temperature" in result.stderr


def test_drafts_that_were_removed_to_save_room_are_not_missed(until):
    run, _ = until("select")
    shutil.rmtree(run.stage(1, "draft"))
    shutil.rmtree(run.stage(0, "draft"))
    done(run, "refine")


def test_a_carried_update_does_not_need_its_drafts(until):
    run, _ = until("refine")
    shutil.rmtree(run.stage(0, "draft"))
    done(run, "update")


def test_a_shard_twice(tmp_path):
    run = RunDirectory(make_run(tmp_path / "run", "run.num_iterations=1", "run.num_shards=2"))
    for stage, following in AFTER.items():
        done(run, stage, iteration=0)
        first, second = run.shards(0, stage, 2)
        kept = second.data.read_bytes(), second.manifest.read_bytes()
        shutil.copy(first.data, second.data)
        shutil.copy(first.manifest, second.manifest)
        result = igrpo(following, run.root)
        assert result.code == 1
        assert f"{second.manifest}: shard is 0, but it lies where 1 belongs" in result.stderr
        assert f"hint: `{second.command} --overwrite` makes it again" in result.stderr
        assert not run.update(0).directory.exists()
        assert not run.shard(0, following, 1, 2).manifest.exists()
        assert any("it lies where 1 belongs" in what for what in verify_says(run, second))
        second.data.write_bytes(kept[0])
        second.manifest.write_bytes(kept[1])


def test_a_selection_of_another_problem_than_that_of_its_group(until):
    run, shard = until("select")
    change_rows(shard, lambda rows: [*rows[:-1], replace(rows[-1], problem_id=rows[0].problem_id)])
    assert "group 7 is of problem " in refused(run, shard, code=4)
    assert verify_says(run, shard)
