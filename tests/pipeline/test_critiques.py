"""Runs whose refinements see a critique of their draft in words, by the policy or by a judge."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from command_line import files_below, igrpo, igrpo_process, make_run, sets

pytestmark = pytest.mark.slow

FRAME = "{problem}\\n\\n[draft]\\n{draft}\\n[/draft]\\n"
SHOWN = f'prompts.refine_template="{FRAME}{{critique}}"'
POLICY = (
    "critique.by=policy",
    f'critique.template="{FRAME}{{verdict}} {{answer}}"',
    "critique.max_completion_length=60",
    SHOWN,
    "select.strategy=random",
    "select.all_zero=bare",
    "reward.weights={accuracy=1.0}",  # so that some groups are refined without draft
    "update.refinement_prompt=without_draft",
    "update.baseline=pooled",
    "update.train_on=both",
)


def rows(run: Path, stage: str) -> list[dict]:
    files = sorted((run / "iteration_0000" / stage).glob("*.parquet"))
    return [row for path in files for row in pq.read_table(path).to_pylist()]


def manifests(run: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((run / "iteration_0000/refine").glob("*.json"))]


@pytest.fixture(scope="module")
def critique(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("critiques") / "run", "run.num_iterations=1", *POLICY)
    result = igrpo_process("run", run)
    assert result.code == 0, result.stderr
    return run


def test_refinements_see_the_critique_and_the_update_trains_on_them(critique):
    refined, selected = rows(critique, "refine"), {row["group_id"]: row for row in rows(critique, "select")}
    conditioned = [row for row in refined if selected[row["group_id"]]["action"] == "condition"]
    assert any(row["critique"] for row in conditioned)
    assert any(row["action"] == "bare" for row in selected.values()), "the test needs a group without draft"
    for row in conditioned:
        draft = selected[row["group_id"]]["draft"]
        assert row["prompt"].endswith(f"\n\n[draft]\n{draft}\n[/draft]\n{row['critique']}<|assistant|>")
        assert "<think>" not in row["critique"]
        assert 0 < len(row["critique_ids"]) <= 60
    for row in refined:
        if selected[row["group_id"]]["action"] == "bare":
            assert (row["critique"], row["critique_ids"]) == ("", [])
    assert len({(row["group_id"], row["critique"], tuple(row["critique_ids"])) for row in refined}) == 8
    assert igrpo("verify", critique).code == 0
    trained = pq.read_table(critique / "iteration_0000/update/advantages.parquet").to_pylist()
    assert {row["stage"] for row in trained} == {"draft", "refine"}


def test_tokens_of_critiques_count_as_sampled(critique):
    refined, (manifest,) = rows(critique, "refine"), manifests(critique)
    critiques = {row["group_id"]: row for row in refined if row["draft_sample_id"] is not None}.values()
    tokens = sum(len(row["critique_ids"]) for row in critiques)
    assert tokens > 0
    assert manifest["tokens"] == sum(len(row["completion_ids"]) for row in refined) + tokens
    counts = manifest["counts"]
    assert (counts["critiques"], counts["critique_tokens"]) == (len(critiques), tokens)
    assert counts["empty_critiques"] == sum(not row["critique"] for row in critiques)
    update = json.loads((critique / "iteration_0000/update/manifest.json").read_text())
    assert update["spent"]["refine"]["tokens"] == manifest["tokens"]


def test_critiques_are_shown_and_queried(critique):
    row = next(row for row in rows(critique, "refine") if row["critique"])
    shown = igrpo("show", critique, "--problem", row["problem_id"])
    assert "critique of the draft\n│ " in shown.stdout
    (story,) = igrpo("show", critique, "--problem", row["problem_id"], "--json").json["stories"]
    assert story["critique"] == row["critique"]
    pytest.importorskip("duckdb")
    query = "SELECT stage, count(*) AS n, count(critique) AS c FROM rollouts GROUP BY stage ORDER BY stage"
    found = igrpo("sql", query, critique, "--json").json["rows"]
    assert [tuple(row.values()) for row in found] == [("draft", 24, 0), ("refine", 24, 24)]


def test_critiques_have_the_same_bytes_again_and_in_two_shards(critique, tmp_path):
    before = files_below(critique / "iteration_0000/refine", (".parquet",))
    assert igrpo("refine", critique, "--overwrite", "--iteration", 0).code == 0
    assert files_below(critique / "iteration_0000/refine", (".parquet",)) == before
    halves = make_run(tmp_path / "run", "run.num_iterations=1", "run.num_shards=2", *POLICY)
    for stage in ("draft", "select", "refine"):
        result = igrpo(stage, halves)
        assert result.code == 0, result.stderr
    assert rows(halves, "refine") == rows(critique, "refine")
    assert sum(each["tokens"] for each in manifests(halves)) == manifests(critique)[0]["tokens"]


def test_an_evaluation_with_draft_is_refused(critique):
    result = igrpo("eval", critique, "--bench", "arithmetic", "--with-draft", *sets("eval.limit=2"))
    assert result.code == 2
    assert "a critique of the draft ({critique}), which is written in training only" in result.stderr
    assert "--set critique.by=none" in result.stderr


def test_a_plan_counts_critiques_and_one_that_may_not_fit_is_refused(tmp_path):
    planned = igrpo("init", tmp_path / "run", "--preset", "arithmetic", "--dry-run", "--json", *sets(*POLICY)).json
    plan, config = planned["plan"], planned["config"]
    assert plan["critiques"] == plan["prompts"]
    sampled = plan["drafts"] * config["draft"]["max_completion_length"] + 60 * plan["critiques"]
    assert plan["max_tokens_sampled"] == sampled + plan["refinements"] * config["refine"]["max_completion_length"]
    for tokens, stage in ((400, "refine"), (500, "critique")):
        long = (*POLICY, f"critique.max_completion_length={tokens}", "refine.max_completion_length=60")
        refused = igrpo("init", tmp_path / "run", "--preset", "arithmetic", *sets(*long))
        assert refused.code == 2
        assert f"error: {stage} may need " in refused.stderr
        assert "critique.max_completion_length=" in refused.stderr.splitlines()[-1]
