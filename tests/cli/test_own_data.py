"""`igrpo init` with problems of the user: mixes and warnings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import SMALL, files_below, igrpo, sets

SUMS = [{"question": f"{a}+{b}=?", "answer": str(a + b)} for a in range(1, 4) for b in range(1, 4)]


@pytest.fixture
def sources(tmp_path) -> str:
    """A JSONL file of three problems, a CSV file of six, and the setting that mixes them."""
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SUMS[:3]))
    lines = "".join(f"{row['question']},{row['answer']}\n" for row in SUMS[3:])
    (tmp_path / "many.csv").write_text(f"q,answer\n{lines}")
    many = f'{{train="{tmp_path}/many.csv", problem_column="q"}}'
    return f'data.mix=[{{train="{tmp_path}/few.jsonl", weight=2}}, {many}]'


def create(run: Path, *overrides: str):
    return igrpo("init", run, "--preset", "arithmetic", *sets(*SMALL, *overrides))


def test_a_mix_is_drawn_by_its_weights(tmp_path, sources):
    made = create(tmp_path / "run", sources)
    assert made.code == 0, made.stderr
    assert "9 problems from few, many" in made.stderr
    assert "few: 3 problems, weight 2, 50.0 % of the draws" in made.stderr
    assert "many: 6 problems, weight 1, 50.0 % of the draws" in made.stderr
    (tmp_path / "few.jsonl").unlink()
    sampled = igrpo("draft", tmp_path / "run")
    assert sampled.code == 0, sampled.stderr
    query = (
        "SELECT DISTINCT group_id, split_part(problem_id, '/', 1) AS name, source FROM rollouts "
        "JOIN problems USING (problem_id) ORDER BY group_id"
    )
    rows = igrpo("sql", query, tmp_path / "run", "--json").json["rows"]
    assert [row["name"] for row in rows] == ["few", "many"] * 4
    assert [row["source"].partition(":")[0] for row in rows] == ["few", "many"] * 4


def test_a_second_init_changes_nothing(tmp_path, sources):
    assert create(tmp_path / "run", sources).code == 0
    before = files_below(tmp_path / "run", (".parquet", ".toml", ".json"))
    assert create(tmp_path / "run", sources).code == 0
    assert files_below(tmp_path / "run", (".parquet", ".toml", ".json")) == before
    other = create(tmp_path / "run", sources.replace("weight=2", "weight=3"))
    assert other.code == 4
    assert "data.mix" in other.stderr


def test_fewer_problems_than_an_iteration_takes_are_a_warning(tmp_path, sources):
    enough = create(tmp_path / "a", sources, "data.problems_per_iteration=9")
    assert "warning" not in enough.stderr
    few = create(tmp_path / "b", sources, "data.problems_per_iteration=10")
    assert few.code == 0
    assert "there are 9, and it takes 10 (data.problems_per_iteration = 10); " in few.stderr
    assert "--set data.problems_per_iteration=9\n" in few.stderr
    spare = ("data.problems_per_iteration=8", "data.spare_problems=4", "update.dynamic_sampling=true")
    few = create(tmp_path / "c", sources, *spare)
    assert "(data.problems_per_iteration = 8 and data.spare_problems = 4)" in few.stderr
    assert "--set data.problems_per_iteration=5\n" in few.stderr
    fitting = create(tmp_path / "d", sources, *spare, "data.problems_per_iteration=5")
    assert "warning" not in fitting.stderr


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    """A run that has sampled 8 of the packaged problems three times each."""
    path = tmp_path_factory.mktemp("earlier") / "run"
    assert create(path).code == 0
    assert igrpo("draft", path).code == 0
    return path


def solve_rates(run: Path) -> dict[str, float]:
    query = (
        "SELECT problem, avg(CASE WHEN verdict = 'correct' THEN 1.0 ELSE 0.0 END) AS rate "
        "FROM rollouts JOIN problems USING (problem_id) GROUP BY problem"
    )
    return {row["problem"]: row["rate"] for row in igrpo("sql", query, run, "--json").json["rows"]}


def problems_of(run: Path) -> list[str]:
    rows = igrpo("sql", "SELECT problem FROM problems", run, "--json").json["rows"]
    return [row["problem"] for row in rows]


def test_problems_are_chosen_by_the_solve_rate_of_an_earlier_run(tmp_path, earlier):
    rates = solve_rates(earlier)
    middle = sorted(rates.values())[len(rates) // 2]
    made = create(tmp_path / "run", f"data.solve_rate_run={earlier}", f"data.max_solve_rate={middle}")
    assert made.code == 0, made.stderr
    kept = {problem for problem, rate in rates.items() if rate <= middle}
    assert set(problems_of(tmp_path / "run")) == kept
    assert f"'solved_too_often': {len(rates) - len(kept)}" in made.stderr or len(kept) == len(rates)
    assert "'no_solve_rate': " in made.stderr
    refused = create(tmp_path / "none", f"data.solve_rate_run={tmp_path}", "data.max_solve_rate=0.5")
    assert refused.code == 3


def test_a_curriculum_begins_with_the_easy_problems(tmp_path, earlier):
    rates = solve_rates(earlier)
    easy = (f"data.solve_rate_run={earlier}", "data.curriculum=easy_first")
    made = create(tmp_path / "run", *easy)
    assert made.code == 0, made.stderr
    problems = problems_of(tmp_path / "run")
    assert len(problems) > len(rates) == 8
    assert [rates[problem] for problem in problems[:8]] == sorted(rates.values(), reverse=True)
    assert igrpo("draft", tmp_path / "run").code == 0
    query = "SELECT DISTINCT group_id, problem FROM rollouts JOIN problems USING (problem_id) ORDER BY group_id"
    sampled = [row["problem"] for row in igrpo("sql", query, tmp_path / "run", "--json").json["rows"]]
    assert sampled == problems[:8]
