"""`--overwrite` takes nothing away before what comes in its place can be begun."""

from __future__ import annotations

import os
import shutil

import pytest

from command_line import igrpo, make_run, run_to_end, sets

SHARDS = ("run.num_shards=3", "data.problems_per_iteration=6", "run.num_iterations=1")


def everything_below(run):
    return {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize("is_finished", [True, False])
def test_an_engine_that_cannot_start_costs_no_shard(tmp_path, is_finished, monkeypatch):
    run = make_run(tmp_path / "run", *SHARDS)
    assert igrpo("draft", run).code == 0
    if not is_finished:
        for path in (run / "iteration_0000" / "draft").glob("*.json"):
            path.unlink()
    before = everything_below(run)
    result = igrpo("draft", run, "--overwrite", "--engine", "server", "--endpoint", "no-url")
    assert result.code == 2, result.stderr
    assert "no-url" in result.stderr
    assert everything_below(run) == before


def test_an_engine_that_cannot_start_costs_no_finished_block(tmp_path):
    run = make_run(tmp_path / "run", "engine.groups_per_block=1", *SHARDS)
    assert igrpo("draft", run).code == 0
    parts = run / "iteration_0000" / "draft" / ".parts" / "shard-00000-of-00003"
    parts.mkdir(parents=True)
    (parts / "block-000000.parquet").write_bytes(b"as good as any")
    before = everything_below(run)
    assert igrpo("draft", run, "--overwrite", "--engine", "server", "--endpoint", "no-url").code == 2
    assert everything_below(run) == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two iterations."""
    return run_to_end(make_run(tmp_path_factory.mktemp("overwrite") / "run", "data.problems_per_iteration=4"))


def test_what_followed_from_a_stage_is_stale_to_all_commands_until_it_is_removed(finished, tmp_path):
    run, other = shutil.copytree(finished, tmp_path / "run"), sets("select.strategy=worst")
    made = igrpo("select", run, "--iteration", 0, "--overwrite", *other)
    assert made.code == 0
    places = "iteration_0000/refine, iteration_0000/update, policies/0001, policies/0002, iteration_0001"
    again = f"igrpo select {run} --iteration 0 --cascade --set select.strategy=worst"
    assert f"made from the earlier select, and stale now: {places}; `{again}` removes them" in made.stderr
    status = igrpo("status", run, "--json").json
    assert (status["finished"], status["unfinished"]) == (False, [0, 1])
    assert any("was made from another iteration_0000/select" in fault for fault in status["faults"])
    stopped = igrpo("run", run)
    assert stopped.code == 4
    assert "refine shard 0 of 1 was made from another iteration_0000/select" in stopped.stderr
    assert igrpo("verify", run).code == 1
    removed = igrpo("select", run, "--iteration", 0, "--cascade", *other)
    assert f"removed what followed from the earlier select: {places}" in removed.stderr
    assert igrpo("verify", run).code == 0
    assert igrpo("status", run, "--json").json["unfinished"] == [0, 1]
    assert [path.name for path in (run / "policies").iterdir()] == ["0000"]


def test_a_stage_that_is_made_again_with_the_same_bytes_leaves_nothing_stale(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    before = everything_below(run)
    made = igrpo("select", run, "--iteration", 0, "--overwrite", "--cascade")
    assert (made.code, "stale" in made.stderr, "removed" in made.stderr) == (0, False, False)
    assert everything_below(run).keys() == before.keys()
    assert igrpo("status", run, "--json").json["finished"]


def test_another_update_leaves_the_iterations_after_it_stale(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "policies" / "0001")  # An update is made again where its policy was removed.
    made = igrpo("update", run, "--iteration", 0, "--overwrite", "--cascade", *sets("update.learning_rate=0.01"))
    assert made.code == 0
    assert "removed what followed from the earlier update: policies/0002, iteration_0001" in made.stderr
    assert igrpo("verify", run).code == 0


def test_files_with_other_times_are_not_stale(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    for path in run.rglob("*.json"):
        os.utime(path, ns=(0, 0))
    assert igrpo("status", run, "--json").json["finished"]
    assert igrpo("run", run).code == 0
