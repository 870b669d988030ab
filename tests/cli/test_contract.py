"""The contract of the command line: streams, exit codes, errors with a hint, keys of `--json`."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from command_line import SMALL, igrpo, igrpo_process, make_run, sets
from igrpo_cli.cli.app import app
from igrpo_cli.store.checksummed_json import read_summary

STAGE_KEYS = {"stage", "iteration", "shards", "rows", "groups", "tokens", "seconds", "skipped"}
EVAL_KEYS = {
    *("bench", "problems", "samples", "avg_at_k", "ci95", "pass_at_k", "maj_at_k"),
    *("verdicts", "mean_completion_tokens", "truncated_fraction", "model"),
}


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["draft", "--iteraton", "3"], "--iteration", "igrpo draft --help"),
        (["drft"], "'draft'", "igrpo --help"),
        (["draft", "--iteration", "x"], "integer", "igrpo draft --help"),
        (["init", "RUN", "--preset", "quikstart"], "did you mean quickstart?", "known: arithmetic, base, paper"),
        (
            ["init", "RUN", "--set", "draft.temprature=1"],
            "did you mean draft.temperature?",
            "`igrpo init RUN --dry-run`",
        ),
        (["eval"], "eval needs a benchmark", "igrpo eval --bench aime24"),
    ],
)
def test_wrong_usage_exits_2_names_the_nearest_and_says_what_to_type(tmp_path, arguments, message, hint):
    result = igrpo_process(*arguments, cwd=tmp_path)
    assert result.code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert lines[1].startswith(f"hint: {hint}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["draft", "select", "refine", "update", "run", "status", "verify"])
def test_a_directory_that_is_no_run_exits_3(tmp_path, command):
    result = igrpo(command, cwd=tmp_path)
    assert result.code == 3
    assert "is not a run directory" in result.stderr
    assert "hint: igrpo init" in result.stderr


@pytest.mark.slow
def test_the_stages_in_order_are_one_iteration(tmp_path):
    run = make_run(tmp_path / "run", "run.num_iterations=1")
    for name in ("draft", "select", "refine", "update"):
        result = igrpo_process(name, "--json", cwd=run)
        assert result.code == 0, result.stderr
        report = result.json
        assert report.keys() >= STAGE_KEYS
        assert (report["stage"], report["iteration"], report["skipped"]) == (name, 0, 0)
        if name in ("draft", "refine"):
            assert (report["rows"], report["groups"]) == (24, 8)
    assert (run / "policies/0001/model.safetensors").exists()
    again = igrpo("update", "--json", cwd=run)
    assert (again.code, again.json["skipped"]) == (0, 1)


def test_a_stage_before_its_input_exits_3_and_names_the_command(tmp_path):
    run = make_run(tmp_path / "run")
    result = igrpo("refine", run)
    assert result.code == 3
    assert "select shard 0 of 1 is not finished" in result.stderr
    assert f"hint: igrpo select {run} --iteration 0 --shard 0" in result.stderr


def test_dry_run_prints_config_arithmetic_and_missing_shards_and_writes_nothing(tmp_path):
    run = make_run(tmp_path / "run", "run.num_shards=4")
    before = sorted(run.rglob("*"))
    result = igrpo("draft", run, "--dry-run")
    assert result.code == 0
    assert "temperature = 1.0" in result.stdout
    assert "8 prompts x 3 drafts + 8 prompts x 3 refinements = 48 completions" in result.stdout
    assert "missing shards: 0-3" in result.stdout
    plan = igrpo("draft", run, "--dry-run", "--json").json
    assert plan.keys() >= STAGE_KEYS
    assert (plan["missing_shards"], plan["plan"]["completions"]) == ("0-3", 48)
    assert igrpo("refine", run, "--dry-run", "--json").json["missing_shards"] == "0-3"
    assert sorted(run.rglob("*")) == before


def test_the_slurm_task_is_the_shard(tmp_path):
    run = make_run(tmp_path / "run", "run.num_shards=4")
    result = igrpo("draft", run, "--json", env={"SLURM_ARRAY_TASK_ID": "2"})
    assert result.code == 0, result.stderr
    assert [path.name for path in (run / "iteration_0000/draft").glob("*.parquet")] == ["shard-00002-of-00004.parquet"]
    drafts = igrpo("status", run, "--json").json["stages"]["draft"]
    assert (drafts["done"], drafts["total"], drafts["missing"]) == (1, 4, "0-1,3")


def test_a_slurm_task_without_a_shard_says_where_its_number_comes_from(tmp_path):
    run = make_run(tmp_path / "run", "run.num_shards=2")
    task = {"SLURM_ARRAY_TASK_ID": "5"}
    for command in (["draft", run], ["eval", run, "--bench", "arithmetic"]):
        result = igrpo(*command, env=task)
        assert result.code == 2
        error, hint = result.stderr.splitlines()
        assert error == "error: shard 5 of 2 does not exist; the number comes from SLURM_ARRAY_TASK_ID=5"
        assert "`--shard all`" in hint
        assert "--array=0-1" in hint
    result = igrpo("draft", run, "--shard", "all", "--json", env=task)
    assert (result.code, result.json["shards"]) == (0, 2)
    assert "SLURM" not in igrpo("draft", run, "--shard", "7", env=task).stderr
    assert "SLURM" not in igrpo("update", run, env=task).stderr


def test_unknown_shards_and_iterations_are_usage_errors(finished_run):
    assert igrpo("draft", finished_run, "--shard", "7").code == 2
    beyond = igrpo("draft", finished_run, "--iteration", "9")
    assert beyond.code == 2
    assert "iteration 9 does not exist: the run has 2" in beyond.stderr


def test_what_was_fixed_when_the_run_was_made_cannot_be_overridden(finished_run):
    result = igrpo("draft", finished_run, "--set", "run.num_shards=3")
    assert result.code == 4
    assert "run.num_shards was fixed when the run was created (1 in" in result.stderr


def test_quiet_says_nothing_and_stdout_is_data_alone(finished_run):
    result = igrpo("draft", finished_run, "-q", "--json")
    assert result.stderr == ""
    assert json.loads(result.stdout)["skipped"] == 1


def test_status_of_a_finished_run(finished_run):
    status = igrpo("status", finished_run, "--json").json
    assert status.keys() >= {"run", "iteration", "stages", "policy"}
    assert status["finished"] is True
    assert status["policy"].endswith("policies/0002")
    assert all(stage["missing"] == "" for stage in status["stages"].values())


def test_verify_of_a_finished_run_is_clean(finished_run):
    result = igrpo("verify", finished_run, "--json")
    assert result.code == 0, result.stdout
    report = result.json
    assert (report["ok"], report["problems"]) == (True, [])
    assert report["checked"] >= 9


def test_verify_names_a_damaged_file_and_exits_1(tmp_path, finished_run):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    shard = run / "iteration_0001/refine/shard-00000-of-00001.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    result = igrpo("verify", run, "--json")
    assert result.code == 1
    assert any("iteration_0001/refine" in problem["path"] for problem in result.json["problems"])
    assert igrpo("update", run, "--iteration", "1", "--overwrite").code == 1


def test_a_plain_grpo_run_has_no_selection(tmp_path):
    run = make_run(tmp_path / "run", "run.method=grpo", "draft.num_generations=4", "run.num_iterations=1")
    assert igrpo("run", run).code == 0
    assert sorted(path.name for path in (run / "iteration_0000").iterdir()) == ["draft", "update"]
    result = igrpo("refine", run)
    assert result.code == 2
    assert 'run.method = "grpo" has no stage refine' in result.stderr


def test_eval_of_a_run_bare_and_conditioned(tmp_path, finished_run):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    request = ["eval", run, "--bench", "arithmetic", "--samples", "2", *sets("eval.limit=6"), "--json"]
    assert igrpo(*request, "--with-draft").code == 3
    plan = igrpo(*request, "--dry-run").json
    assert (plan.keys() >= EVAL_KEYS, plan["problems"], plan["samples"]) == (True, 6, 2)
    bare = igrpo(*request)
    assert bare.code == 0, bare.stderr
    summary = bare.json
    assert summary.keys() >= EVAL_KEYS
    assert (summary["problems"], summary["samples"], sum(summary["verdicts"].values())) == (6, 2, 12)
    low, high = summary["ci95"]
    assert 0 <= low <= summary["avg_at_k"] <= high <= 1
    assert summary["avg_at_k"] <= summary["pass_at_k"]
    written = run / "eval/arithmetic/policy_0002/summary.json"
    assert read_summary(written) == summary
    conditioned = igrpo(*request, "--with-draft").json
    assert conditioned["bare_avg_at_k"] == summary["avg_at_k"]
    assert igrpo("verify", run).code == 0
    assert igrpo(*request, "--set", "eval.temperature=0.3").code == 4


def test_eval_without_a_known_bench_says_how_to_name_one(finished_run, tmp_path):
    result = igrpo("eval", finished_run, "--bench", "aime42", "--bench-dir", tmp_path)
    assert result.code == 3
    assert "aime" in result.stderr
    assert "hint: " in result.stderr


def test_grade_prints_a_line_per_row(tmp_path):
    rows = [{"gold": "42", "answer": "\\boxed{42}"}, {"gold": "42", "answer": "41"}, {"gold": "7", "answer": ""}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = igrpo("grade", file)
    assert result.code == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["verdict"] for line in lines] == ["correct", "wrong", "no_answer"]
    assert [line["reward"] for line in lines] == [1.0, 0.0, 0.0]
    file.write_text('{"gold": "42"}\n')
    broken = igrpo("grade", file)
    assert broken.code == 1
    assert "row 1 is not a JSON object with the texts" in broken.stderr


def test_init_again_changes_nothing_and_with_other_settings_conflicts(tmp_path):
    run = make_run(tmp_path / "run")
    before = (run / "run.toml").read_bytes()
    make_run(run)
    assert (run / "run.toml").read_bytes() == before
    other = igrpo("init", run, "--preset", "arithmetic", *sets(*SMALL, "run.seed=5"))
    assert other.code == 4
    assert "is already a run, with other settings (run.seed 0 on disk, 5 now)" in other.stderr


def test_init_refuses_bad_rows_by_file_and_number_or_counts_them(tmp_path):
    rows = ['{"problem": "1+1=?", "answer": "2"}', '{"problem": "2+2=?", "answer": ""}', "not json"]
    problems = tmp_path / "mine.jsonl"
    problems.write_text("\n".join(rows) + "\n")
    common = ["init", tmp_path / "run", "--preset", "arithmetic", *sets(f"data.train={problems}")]
    refused = igrpo(*common)
    assert refused.code == 1
    assert "mine.jsonl row 2" in refused.stderr
    assert "--skip-bad-rows" in refused.stderr
    assert not (tmp_path / "run/run.toml").exists()
    skipped = igrpo(*common, "--skip-bad-rows", "--json")
    assert skipped.code == 0, skipped.stderr
    counts = skipped.json["counts"]
    assert (counts["rows"], counts["kept"]) == (3, 1)


def examples() -> list[str]:
    """The example in the help of every command, in the order of the commands."""
    return [
        re.search(r"Example: (igrpo .*)", command.callback.__doc__ or "").group(1)
        for command in app.registered_commands
    ]


@pytest.mark.slow
def test_the_example_in_the_help_of_every_command_works(tmp_path):
    rows = [{"gold": "42", "answer": "42"}]
    (tmp_path / "answers.jsonl").write_text(json.dumps(rows[0]) + "\n")
    commands = examples()
    assert len(commands) == len(app.registered_commands)
    for command in commands:
        result = igrpo(*shlex.split(command)[1:], cwd=tmp_path)
        assert result.code == 0, f"{command}: {result.stderr}"


def test_init_needs_no_preset(tmp_path):
    result = igrpo("init", tmp_path / "run")
    assert (result.code, result.stderr.count("error")) == (0, 0), result.stderr


@pytest.mark.parametrize(
    ("problems", "block", "hint"),
    [(16, 16, "--set engine.groups_per_block=2, or --set run.num_shards=1"), (6, 1, "--set run.num_shards=6")],
)
def test_more_shards_than_blocks_are_refused_before_the_model_is_read(tmp_path, problems, block, hint):
    settings = (f"data.problems_per_iteration={problems}", f"engine.groups_per_block={block}", "run.num_shards=8")
    result = igrpo("init", tmp_path / "run", "--preset", "arithmetic", *sets(*settings, "policy.model=no/such/model"))
    assert result.code == 2
    assert f"the {problems} problems of an iteration are {problems // block} blocks of {block}" in result.stderr
    assert f"hint: {hint}" in result.stderr


def test_a_stage_with_nothing_to_do_loads_no_arrays():
    """Loading numpy, pyarrow or torch takes longer than finding out that a stage is complete."""
    names = ", ".join(f"igrpo_cli.commands.{name}" for name in ("stage", "draft", "refine", "update", "status"))
    code = f"import sys, {names}; print({{'numpy', 'pyarrow', 'torch'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
