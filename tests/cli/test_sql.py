"""`igrpo sql`: what it answers, what it refuses, and that a query reaches nothing but the run."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import threading
from pathlib import Path

import pytest

from command_line import igrpo, sets

QUERIES = re.findall(r"^```sql\n(.*?)^```", (Path(__file__).parents[2] / "docs/sql.md").read_text("utf-8"), re.M | re.S)


def rows(run, query):
    result = igrpo("sql", query, run, "--json")
    assert result.code == 0, result.stderr
    return result.json["rows"]


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory) -> Path:
    """A finished run in a directory that needs quoting, with an evaluation and scores that have a part more."""
    run = tmp_path_factory.mktemp('it\'s "here" %41 $x') / "run; DROP"
    shutil.copytree(finished_run, run)
    evaluated = igrpo("eval", run, "--bench", "arithmetic", "--iteration", "0", "--samples", 2, *sets("eval.limit=3"))
    graded = igrpo("grade", run, "--stage", "draft", "--iteration", "1", "--reward", "length=0.5", "--scores", "short")
    assert (evaluated.code, graded.code) == (0, 0), evaluated.stderr + graded.stderr
    return run


def test_every_table_has_the_rows_of_its_finished_files(run):
    counts = {
        "rollouts": 2 * (24 + 24),  # 2 iterations of 8 problems, 3 drafts and 3 refinements of each
        "selections": 2 * 8,
        "advantages": 2 * (24 + 24),
        "scores": 24,
        "evals": 3 * 2,
    }
    for name, expected in counts.items():
        assert rows(run, f"SELECT count(*) AS n FROM {name}") == [{"n": expected}], name
    tables = {row["name"] for row in rows(run, "SHOW TABLES")}
    assert tables == {*counts, "metrics", "problems"}


def test_the_values_are_those_that_the_update_recorded(run):
    asked = "SELECT avg(reward_accuracy) AS value FROM rollouts WHERE iteration = 1 AND stage = 'refine'"
    recorded = "SELECT value FROM metrics WHERE iteration = 1 AND name = 'refine/accuracy_mean'"
    assert rows(run, asked)[0]["value"] == pytest.approx(rows(run, recorded)[0]["value"])


def test_scores_and_evals_say_which_they_are(run):
    assert rows(run, "SELECT DISTINCT name, stage, iteration FROM scores") == [
        {"name": "short", "stage": "draft", "iteration": 1}
    ]
    assert rows(run, "SELECT DISTINCT bench, policy FROM evals WHERE policy = 'policy_0000'") == [
        {"bench": "arithmetic", "policy": "policy_0000"}
    ]
    assert rows(run, "SELECT count(*) AS n FROM scores WHERE reward_length IS NULL OR name <> 'short'") == [{"n": 0}]


def test_a_part_of_the_reward_that_not_all_files_have_is_null_in_the_others(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    refined = igrpo(
        *("refine", copy, "--iteration", "1", "--overwrite"), *sets("reward.weights={accuracy=1.0, length=0.5}")
    )
    assert refined.code == 0, refined.stderr
    found = rows(copy, "SELECT stage, iteration, count(reward_length) AS n FROM rollouts GROUP BY ALL ORDER BY ALL")
    assert [row["n"] for row in found] == [0, 0, 0, 24]


def test_what_has_no_manifest_does_not_count(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "iteration_0001/refine/shard-00000-of-00001.json").unlink()
    (copy / "iteration_0001/update/manifest.json").unlink()
    assert rows(copy, "SELECT stage, count(*) AS n FROM rollouts GROUP BY stage ORDER BY n") == [
        {"stage": "refine", "n": 24},
        {"stage": "draft", "n": 48},
    ]
    assert rows(copy, "SELECT max(iteration) AS last FROM metrics") == [{"last": 0}]


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.split(maxsplit=1)[0] + str(len(query)))
def test_each_query_of_the_guide_runs(run, query):
    result = igrpo("sql", query, run)
    assert result.code == 0, result.stderr


def test_the_guide_has_ten_queries_and_its_copy_rate_is_the_recorded_one(run):
    assert len(QUERIES) == 10
    copies = next(query for query in QUERIES if "AS copies" in query)
    recorded = "SELECT iteration, value AS copies FROM metrics WHERE name = 'refine/copy_rate' ORDER BY iteration"
    assert rows(run, copies) == rows(run, recorded)


def test_the_table_is_bounded_and_says_how_many_rows_it_leaves_out(run):
    result = igrpo("sql", "SELECT range AS n, repeat('x', 100000) AS long FROM range(50)", run, env={"COLUMNS": "60"})
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["n", "long"]
    assert len(lines) == 2 + 40 + 1
    assert max(map(len, lines)) == 60
    assert lines[-1] == "… 10 more rows: --rows 0, --json or --csv"
    assert lines[2].endswith("x…")
    assert len(igrpo("sql", "SELECT * FROM range(50)", run, "--rows", 0).stdout.splitlines()) == 52


def test_texts_of_a_model_do_not_reach_the_terminal_as_they_are(run):
    hostile = "SELECT 'a' || chr(27) || '[31m' || chr(8238) || chr(10) || chr(9) || 'z' AS c"
    result = igrpo("sql", hostile, run)
    assert result.stdout.splitlines()[2] == r"a\x1b[31m\u202e\n\tz"


def test_json_and_csv_keep_values_as_they_are(run):
    query = "SELECT 1.5 AS d, sum(2::HUGEINT) AS h, DATE '2026-02-09' AS day, [1, NULL] AS l, 'é,\"' AS t, NULL AS n"
    assert rows(run, query) == [{"d": 1.5, "h": 2, "day": "2026-02-09", "l": [1, None], "t": 'é,"', "n": None}]
    printed = list(csv.reader(io.StringIO(igrpo("sql", query, run, "--csv").stdout)))
    assert printed == [["d", "h", "day", "l", "t", "n"], ["1.5", "2", "2026-02-09", "[1, None]", 'é,"', ""]]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT * FROM rollout", "Did you mean"),
        ("SELECT rewards FROM rollouts", '"rewards"'),
        ("SELECT 'a'::INT", "Could not convert"),
        ("", "the query is empty"),
    ],
)
def test_a_query_that_cannot_be_answered_exits_2_with_duckdbs_message(run, query, message):
    result = igrpo("sql", query, run)
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "hint: " in result.stderr
    assert "Traceback" not in result.stderr


def test_two_columns_of_one_name_are_refused_where_they_would_be_lost(run):
    query = "SELECT a.iteration, b.iteration FROM rollouts a, rollouts b LIMIT 1"
    assert igrpo("sql", query, run).code == 0
    result = igrpo("sql", query, run, "--json")
    assert result.code == 2
    assert "two columns have the name iteration" in result.stderr


@pytest.mark.parametrize(
    "query",
    [
        "COPY rollouts TO '{here}/stolen.csv'",
        "COPY (SELECT 1) TO '{here}/stolen.parquet'",
        "EXPORT DATABASE '{here}/stolen'",
        "ATTACH '{here}/stolen.db'",
        "SELECT * FROM read_text('{here}/secret.csv')",
        "SELECT * FROM '{here}/secret.csv'",
        "SELECT * FROM glob('{here}/*')",
        "SELECT * FROM 'https://example.com/x.parquet'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "SELECT * FROM tables",  # a variable of the code that asks
    ],
)
def test_a_query_has_no_way_out_of_the_run(run, tmp_path, query):
    (tmp_path / "secret.csv").write_text("a\n1\n")
    result = igrpo("sql", query.format(here=tmp_path), run)
    assert result.code == 2, result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


def test_ctrl_c_ends_a_query_that_would_take_years(run):
    forever = "SELECT count(*) FROM range(100000000) a, range(100000000) b WHERE a.range * b.range % 7 = 3"
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert igrpo("sql", forever, run).code == 130


def test_a_damaged_page_is_no_answer(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shard = copy / "iteration_0000/draft/shard-00000-of-00001.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    result = igrpo("sql", "SELECT * FROM rollouts", copy)
    assert (result.code, result.stdout) == (1, "")
    assert "hint: igrpo verify" in result.stderr


def test_a_run_without_a_single_row_has_all_tables(run, tmp_path):
    shutil.copy(run / "run.toml", tmp_path)
    assert rows(tmp_path, "SELECT count(*) AS n, sum(reward) AS r FROM rollouts JOIN selections USING (group_id)") == [
        {"n": 0, "r": None}
    ]


def test_no_run_says_what_to_type(tmp_path, run):
    assert igrpo("sql", "SELECT 1", tmp_path).code == 3
    swapped = igrpo("sql", run, "SELECT 1")
    assert (swapped.code, "the query comes first" in swapped.stderr) == (2, True)
    assert igrpo("sql", "SELECT 1", run, "--json", "--csv").code == 2


def test_the_json_of_no_rows_names_the_columns(run):
    result = igrpo("sql", "SELECT problem_id FROM problems WHERE false", run, "--json")
    assert json.loads(result.stdout) == {"columns": ["problem_id"], "rows": []}
