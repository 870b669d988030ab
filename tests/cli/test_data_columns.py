"""Columns of the data in whole commands: in reward functions, in SQL, in prompts and in evaluations."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from command_line import Result, igrpo, sets

FUNCTIONS = """
def by_level(level, verdict):
    return level / 2

def spread(completions, completion_ids, level, source, **kwargs):
    assert len(completions) == len(completion_ids) == len(level) == 3 and set(source) == {"mine"}
    return [level[0] + (ids != min(completion_ids)) / 8 for ids in completion_ids]

def of_subject(subject): return 1.0
"""
WEIGHTS = "reward.weights={accuracy=1, by_level=1, spread=1}"
TARGETS = 'reward.functions={by_level="data_rewards:by_level", spread="data_rewards:spread"}'


@pytest.fixture(scope="module")
def drafted(tmp_path_factory) -> tuple[Path, Result]:
    """A run with drafts in a folder with data, a benchmark and reward functions, and what `igrpo init` said."""
    folder = tmp_path_factory.mktemp("columns")
    (folder / "data_rewards.py").write_text(FUNCTIONS)
    rows = [
        {
            "question": f"{n}+{n}=?",
            "solution": str(2 * n),
            "level": n,
            "source": "mine",
            "system_prompt": "1+1=2" if n % 2 else None,
            "extra": {"n": n} if n else [n],
        }
        for n in range(8)
    ]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "bench.jsonl").write_text('{"problem": "2+3=?", "answer": "5", "system": "2+2=4"}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = igrpo(
            "init",
            "run",
            "--preset",
            "arithmetic",
            *sets("run.num_iterations=1", "data.problems_per_iteration=8", "draft.num_generations=3"),
            *sets("engine.groups_per_block=2", "run.num_shards=2", "reward.num_workers=2", "data.train=mine.jsonl"),
            *sets(WEIGHTS, TARGETS),
        )
        assert made.code == 0, made.stderr
        sampled = igrpo("draft", "run")
        assert sampled.code == 0, sampled.stderr
    return folder, made


def asked(folder: Path, query: str) -> list[dict]:
    result = igrpo("sql", query, folder / "run", "--json")
    assert result.code == 0, result.stderr
    return result.json["rows"]


def test_init_names_the_columns(drafted):
    _, made = drafted
    assert "other columns of the data, for reward functions and SQL: solution, level, source, extra" in made.stderr


def test_functions_of_a_row_and_of_a_group_get_the_columns_of_the_problem(drafted):
    folder, _ = drafted
    rows = [row for path in sorted(folder.glob("run/*/draft/*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 24
    assert "level" not in rows[0], "columns are not repeated in every row"
    for row in rows:
        level = int(row["problem_id"].rpartition("-")[2]) - 1
        group = [each["completion_ids"] for each in rows if each["group_id"] == row["group_id"]]
        assert row["reward_by_level"] == level / 2
        assert row["reward_spread"] == level + (row["completion_ids"] != min(group)) / 8


def test_columns_are_columns_of_problems_in_sql(drafted):
    pytest.importorskip("duckdb", reason="needs igrpo-cli[sql]")
    folder, _ = drafted
    query = (
        "SELECT level, count(*) AS rows, any_value(data_source) AS origin, any_value(extra->>'$.n') AS n, "
        "any_value(solution) AS solution FROM rollouts JOIN problems USING (problem_id) "
        "WHERE level >= 6 GROUP BY level ORDER BY level"
    )
    assert asked(folder, query) == [
        {"level": level, "rows": 3, "origin": "mine", "n": str(level), "solution": str(2 * level)} for level in (6, 7)
    ]
    assert [row["column_name"] for row in asked(folder, "DESCRIBE problems")][-4:] == [
        "solution",
        "level",
        "data_source",
        "extra",
    ]


def test_the_system_prompt_of_a_problem_is_in_its_prompt(drafted):
    folder, _ = drafted
    query = "SELECT problem_id, any_value(prompt) AS prompt FROM rollouts GROUP BY ALL"
    for row in asked(folder, query):
        odd = int(row["problem_id"].rpartition("-")[2]) % 2 == 0  # rows are counted from 1
        assert row["prompt"].count("1+1=2") == odd


def test_a_parameter_that_is_no_column_is_refused_by_init_and_by_stages(drafted, monkeypatch):
    folder, _ = drafted
    monkeypatch.chdir(folder)
    wrong = sets('reward.functions={of_subject="data_rewards:of_subject"}', "reward.weights={accuracy=1, of_subject=1}")
    made = igrpo("init", "other", "--preset", "arithmetic", *sets("data.train=mine.jsonl"), *wrong)
    graded = igrpo("grade", "run", "--stage", "draft", "--scores", "other", *wrong)
    for result in (made, graded):
        assert result.code == 2
        assert "of_subject (data_rewards:of_subject) has the parameter 'subject', which is no column" in result.stderr
        assert "the other columns of the data are solution, level, source, extra" in result.stderr
    assert not (folder / "other" / "run.toml").exists()


def test_scores_of_stored_completions_equal_those_of_the_stage(drafted, monkeypatch):
    folder, _ = drafted
    monkeypatch.chdir(folder)
    graded = igrpo("grade", "run", "--stage", "draft", "--scores", "again", "--json", *sets("reward.num_workers=1"))
    assert graded.code == 0, graded.stderr
    assert graded.json["reward_mean_before"] == graded.json["reward_mean_after"]


def test_a_benchmark_without_the_columns_is_evaluated_without_the_functions(drafted, monkeypatch):
    folder, _ = drafted
    monkeypatch.chdir(folder)
    evaluated = igrpo("eval", "run", "--bench", "bench.jsonl", "--samples", 2, "--json")
    assert evaluated.code == 0, evaluated.stderr
    for name in ("by_level", "spread"):
        assert f"the reward function {name} is not called: bench has no column level" in evaluated.stderr
    assert evaluated.json["verdicts"].get("ungraded", 0) == 0
    rows = [row for path in folder.glob("run/eval/**/shard*.parquet") for row in pq.read_table(path).to_pylist()]
    assert [(row["reward_by_level"], row["reward_spread"]) for row in rows] == [(0.0, 0.0)] * 2
    assert all("2+2=4" in row["prompt"] for row in rows)
