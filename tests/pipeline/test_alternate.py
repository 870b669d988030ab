"""Iterations that solve and iterations that refine, in turn."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from command_line import files_below, igrpo, make_run, run_to_end, sets

ALTERNATE = (
    "update.train_on=alternate",
    "update.keep_optimizer_states=0",
    "run.num_iterations=3",
    "draft.num_generations=3",
    "refine.num_generations=2",
)


@pytest.fixture(scope="module")
def alternating(tmp_path_factory):
    return run_to_end(make_run(tmp_path_factory.mktemp("alternating") / "run", *ALTERNATE))


def group_sizes(run, iteration, stage):
    tables = [pq.read_table(path) for path in run.glob(f"iteration_{iteration:04d}/{stage}/*.parquet")]
    counts = [table["group_id"].value_counts().to_pylist() for table in tables]
    return {count["counts"] for found in counts for count in found}


def test_even_iterations_solve_with_all_samples_and_odd_ones_refine(alternating):
    assert [group_sizes(alternating, number, "draft") for number in range(3)] == [{5}, {3}, {5}]
    assert [group_sizes(alternating, number, "refine") for number in range(3)] == [set(), {2}, set()]
    assert [(alternating / f"iteration_000{number}/select").exists() for number in range(3)] == [False, True, False]
    for number, stage in enumerate(["draft", "refine", "draft"]):
        trained = pq.read_table(alternating / f"iteration_000{number}/update/advantages.parquet")
        assert set(trained["stage"].to_pylist()) == {stage}
    manifest = json.loads(next(alternating.glob("iteration_0000/draft/*.json")).read_text())
    assert manifest["identity"]["config"]["draft"]["num_generations"] == 5


def test_every_command_knows_which_stages_an_iteration_has(alternating):
    for command in ("verify", "show", "report"):
        result = igrpo(command, alternating)
        assert result.code == 0, result.stderr
    status = igrpo("status", alternating, "--json").json
    assert status["finished"]
    assert list(status["stages"]) == ["draft", "update"]
    assert status["spent"]["refine"]["tokens"] > 0
    assert igrpo("status", alternating, "--missing", "refine", "--iteration", 0).stdout == ""
    before = files_below(alternating)
    assert igrpo("run", alternating).code == 0
    assert igrpo("select", alternating, "--iteration", 0).code == 0
    assert files_below(alternating) == before


def test_single_stages_make_the_same_files(alternating, tmp_path):
    run = make_run(tmp_path / "run", *ALTERNATE)
    for _ in range(2):
        for stage in ("draft", "select", "refine", "update"):
            result = igrpo(stage, run)
            assert result.code == 0, result.stderr
    ours, theirs = files_below(run), files_below(alternating)
    assert ours == {name: content for name, content in theirs.items() if name in ours}
    assert any(name.startswith("iteration_0001/refine") for name in ours)


def test_the_plan_says_what_both_kinds_of_iterations_sample(tmp_path):
    result = igrpo("init", tmp_path / "run", "--preset", "arithmetic", "--dry-run", *sets(*ALTERNATE))
    assert "iterations 0, 2, …: sample: 32 prompts x 5 drafts = 160 completions" in result.stdout
    assert "iterations 1, 3, …: sample: 32 prompts x 3 drafts + 32 prompts x 2 refinements" in result.stdout
