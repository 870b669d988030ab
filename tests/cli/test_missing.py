"""`igrpo status --missing`: exactly the shards without a manifest, as `sbatch --array` reads them."""

from __future__ import annotations

import pytest

from command_line import igrpo, make_run

SHARDS = 16
SETTINGS = (f"run.num_shards={SHARDS}", f"data.problems_per_iteration={SHARDS}", "engine.groups_per_block=1")


@pytest.fixture(scope="module")
def some_shards(tmp_path_factory):
    """A run of which the drafts 3, 7 and 12-15 of iteration 1 and one shard of an evaluation have no manifest."""
    run = make_run(tmp_path_factory.mktemp("missing") / "run", *SETTINGS)
    for folder, missing in (("iteration_0001/draft", {3, 7, 12, 13, 14, 15}), ("eval/arithmetic/policy_0000", {5})):
        (run / folder).mkdir(parents=True)
        for shard in range(SHARDS):
            data = run / folder / f"shard-{shard:05d}-of-{SHARDS:05d}.parquet"
            data.touch()
            if shard not in missing:
                data.with_suffix(".json").touch()
    return run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["draft", "--iteration", "1"], "3,7,12-15\n"),
        (["draft"], "0-15\n"),
        (["refine", "--iteration", "1"], "0-15\n"),
        (["update"], "0\n"),
        (["eval", "--bench", "arithmetic"], "5\n"),
        (["eval", "--bench", "arithmetic", "--iteration", "2"], "0-15\n"),
        (["eval", "--bench", "folder/arithmetic.jsonl"], "5\n"),
    ],
)
def test_stdout_is_the_missing_shards_and_nothing_else(some_shards, arguments, expected):
    result = igrpo("status", some_shards, "--missing", *arguments)
    assert (result.code, result.stdout, result.stderr) == (0, expected, "")


@pytest.mark.parametrize("stage", ["draft", "select", "refine", "update"])
def test_nothing_is_printed_when_nothing_is_missing(finished_run, stage):
    result = igrpo("status", finished_run, "--missing", stage)
    assert (result.code, result.stdout, result.stderr) == (0, "", "")


def test_json_is_the_usual_object_and_the_missing_shards(some_shards, finished_run):
    usual = igrpo("status", some_shards, "--iteration", "1", "--json").json
    more = igrpo("status", some_shards, "--iteration", "1", "--missing", "draft", "--json").json
    assert more == usual | {"missing": "3,7,12-15"}
    assert (usual["iteration"], usual["num_shards"], usual["unfinished"]) == (1, SHARDS, [0, 1])
    none = igrpo("status", finished_run, "--missing", "draft", "--json").json
    assert (none["missing"], none["unfinished"]) == ("", [])


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["--missing", "drafts"], "has no stage 'drafts'", "its stages: draft, select, refine, update"),
        (["--missing", "eval"], "eval needs a benchmark", "igrpo status {} --missing eval --bench aime24"),
        (["--bench", "x"], "--bench goes with --missing eval", "igrpo status {} --missing eval --bench x"),
        (["--missing", "draft", "--iteration", "2"], "iteration 2 does not exist: the run has 2", "igrpo status {}"),
        (["--missing", "eval", "--bench", "x", "--iteration", "3"], "policy 3 does not exist", "igrpo status {}"),
    ],
)
def test_what_cannot_be_missing_is_a_usage_error(some_shards, arguments, message, hint):
    result = igrpo("status", some_shards, *arguments)
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert f"hint: {hint.format(some_shards)}" in result.stderr


def test_a_benchmark_that_nothing_is_called_misses_no_shards(some_shards, tmp_path):
    command = ("status", some_shards, "--missing", "eval", "--bench")
    result = igrpo(*command, "arithmetik")
    assert (result.code, result.stdout) == (3, "")
    assert "hint: there are arithmetic" in result.stderr
    assert igrpo(*command, "gsm8k").stdout == "0-15\n"
    (tmp_path / "mine.jsonl").touch()
    assert igrpo(*command, "mine", "--bench-dir", tmp_path).stdout == "0-15\n"


def test_a_plain_grpo_run_misses_no_refinements_but_has_none(tmp_path):
    run = make_run(tmp_path / "run", "run.method=grpo", "draft.num_generations=4")
    result = igrpo("status", run, "--missing", "refine")
    assert result.code == 2
    assert "run.method = \"grpo\" has no stage 'refine'" in result.stderr
    assert "hint: its stages: draft, update" in result.stderr
