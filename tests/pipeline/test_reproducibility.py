"""Nothing but the settings decides the bytes: not the number of shards, not a restart, not a lost file."""

from __future__ import annotations

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from command_line import files_below, igrpo, make_run, run_to_end

STAGES = ("draft", "select", "refine")


def concatenated(run, iteration, stage):
    """All rows of a stage in order, without what belongs to a file (dictionaries, metadata)."""
    shards = sorted((run / f"iteration_{iteration:04d}" / stage).glob("*.parquet"))
    tables = [pq.read_table(shard) for shard in shards]
    return pa.concat_tables([t.replace_schema_metadata(None) for t in tables]).to_pylist()


def weights(run):
    return {
        name: data for name, data in files_below(run).items() if name.endswith(".safetensors") or "/update/" in name
    }


@pytest.mark.slow
@pytest.mark.parametrize("num_shards", [3, 4])
def test_the_number_of_shards_never_changes_results(tmp_path, finished_run, num_shards):
    run = run_to_end(make_run(tmp_path / "run", f"run.num_shards={num_shards}"))
    assert len(list((run / "iteration_0000/draft").glob("*.parquet"))) == num_shards
    for iteration in (0, 1):
        for stage in STAGES:
            assert concatenated(run, iteration, stage) == concatenated(finished_run, iteration, stage)
    assert weights(run) == weights(finished_run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "lost",
    [
        "iteration_0000/draft/shard-00000-of-00001.parquet",
        "iteration_0001/draft/shard-00000-of-00001.json",
        "iteration_0001/select/shard-00000-of-00001.parquet",
        "iteration_0000/refine",
        "iteration_0000/update",
        "iteration_0001/update/metrics.parquet",
        "policies/0002",
        "policies/0001/model.safetensors",
    ],
)
def test_what_is_deleted_comes_back_with_the_same_bytes(tmp_path, finished_run, lost):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    path = run / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    for iteration in (0, 1):
        for stage in (*STAGES, "update"):
            result = igrpo(stage, run, "--iteration", iteration)
            assert result.code == 0, result.stderr
    assert files_below(run) == files_below(finished_run)
    assert igrpo("verify", run).code == 0


def test_a_finished_command_does_nothing(finished_run):
    def listing():
        return {path: path.stat().st_mtime_ns for path in sorted(finished_run.rglob("*"))}

    before = listing()
    for stage in (*STAGES, "update"):
        for iteration in (0, 1):
            report = igrpo(stage, finished_run, "--iteration", iteration, "--json")
            assert report.code == 0
            assert report.json["skipped"] == report.json["shards"]
    assert listing() == before


@pytest.mark.parametrize("stage", STAGES)
def test_another_setting_is_refused_by_name(finished_run, stage):
    override, expected = {
        "draft": ("draft.temperature=0.8", "draft.temperature 1.0 on disk, 0.8 now"),
        "select": ("select.strategy=worst", 'select.strategy "best" on disk, "worst" now'),
        "refine": ("refine.num_generations=5", "refine.num_generations 3 on disk, 5 now"),
    }[stage]
    result = igrpo(stage, finished_run, "--iteration", 0, "--set", override)
    assert result.code == 4
    assert f"error: {stage} shard 0 of 1 was made with another config ({expected})" in result.stderr
    assert "hint: " in result.stderr
    assert "--overwrite" in result.stderr


@pytest.mark.slow
def test_overwriting_a_stage_makes_the_later_ones_conflict_until_they_follow(tmp_path, finished_run):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    changed = ["--set", "draft.temperature=0.7"]
    assert igrpo("draft", run, "--iteration", 1, "--overwrite", *changed).code == 0
    stale = igrpo("select", run, "--iteration", 1)
    assert stale.code == 4
    assert "was made from another iteration_0001/draft/shard-00000-of-00001.parquet" in stale.stderr
    for stage in ("select", "refine", "update"):
        assert igrpo(stage, run, "--iteration", 1, "--overwrite", *changed).code == 0
    assert igrpo("verify", run).code == 0
    assert files_below(run / "policies/0001") == files_below(finished_run / "policies/0001")
    assert files_below(run / "policies/0002") != files_below(finished_run / "policies/0002")
