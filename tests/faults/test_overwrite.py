"""`--overwrite` takes nothing away before what comes in its place can be begun."""

from __future__ import annotations

import pytest

from command_line import igrpo, make_run

SHARDS = ("run.num_shards=3", "data.problems_per_iteration=4", "run.num_iterations=1")
"""Two blocks for three shards: one shard has no rows, and needs no engine to sample any."""


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
