"""A judge in whole commands: its scores select and train, and a judge that goes away costs no reward."""

from __future__ import annotations

import json

import pyarrow.parquet as pq

from command_line import files_below, igrpo, make_run, sets

KEY = "key-that-nobody-may-see"


def judged_run(path, *overrides):
    weights = ("reward.weights={accuracy=0.5, judge=2}", "judge.model=judge", "judge.max_retries=1")
    return make_run(path, "run.num_iterations=1", *weights, *overrides)


def rows_of(run, stage):
    return [
        row for file in sorted(run.glob(f"iteration_0000/{stage}/*.parquet")) for row in pq.read_table(file).to_pylist()
    ]


def everything(run):
    return {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_an_iteration_goes_by_the_scores_of_the_judge(server, tmp_path):
    server.api_key = KEY
    run = judged_run(tmp_path / "run")
    result = igrpo("run", run, *sets(f"judge.endpoint={server.url}"), env={"OPENAI_API_KEY": KEY})
    assert result.code == 0, result.stderr
    rows = rows_of(run, "draft")
    assert {row["reward_judge"] for row in rows} == {0.0, 1.0}
    for row in rows:
        assert row["reward"] == 0.5 * row["reward_accuracy"] + 2 * row["reward_judge"]
    for row in rows_of(run, "select"):
        assert row["draft_reward"] == max(each["reward"] for each in rows if each["group_id"] == row["group_id"])
    assert not [file for file, content in everything(run).items() if KEY.encode() in content]
    assert KEY not in result.stdout + result.stderr
    assert igrpo("verify", run).code == 0
    asked = len(server.asked)
    again = igrpo(
        "draft",
        run,
        "--iteration",
        0,
        "--overwrite",
        *sets(f"judge.endpoint={server.url}"),
        env={"OPENAI_API_KEY": KEY},
    )
    assert again.code == 0, again.stderr
    assert len(server.asked) == asked, "what was judged is not asked for again"


def test_a_judge_that_goes_away_stops_the_stage_and_invents_nothing(server, tmp_path):
    judged, twin = judged_run(tmp_path / "run"), judged_run(tmp_path / "twin")
    there = sets(f"judge.endpoint={server.url}")
    assert igrpo("draft", twin, *there).code == 0
    expected = files_below(twin)
    server.faults = [*[None] * 5, *["drop"] * 1000]
    stopped = igrpo("draft", judged, *there)
    assert stopped.code == 75, stopped.stderr
    assert "the judge does not answer, after 2 attempts" in stopped.stderr
    assert server.url in stopped.stderr
    assert not list(judged.glob("iteration_0000/draft/*.json")), "no shard is finished"
    server.faults = []
    resumed = igrpo("draft", judged, *there)
    assert resumed.code == 0, resumed.stderr
    assert files_below(judged) == expected


def test_a_budget_that_is_spent_fails_and_is_raised_by_name(server, tmp_path):
    run = judged_run(tmp_path / "run", "judge.max_calls=3")
    there = sets(f"judge.endpoint={server.url}")
    stopped = igrpo("draft", run, *there)
    assert stopped.code == 1
    assert "judge.max_calls" in stopped.stderr
    assert server.num_answered == 3
    assert igrpo("draft", run, *there, *sets("judge.max_calls=1000")).code == 0
    kept = [json.loads(line) for file in run.glob("judge/*.jsonl") for line in file.read_text().splitlines()]
    assert len({line["key"] for line in kept}) == len(kept) == server.num_answered


def test_without_an_endpoint_it_says_what_to_set(tmp_path):
    result = igrpo("draft", judged_run(tmp_path / "run"))
    assert result.code == 2
    assert "judge.endpoint is not set" in result.stderr


def test_completions_on_disk_are_judged_later(server, tmp_path):
    run = make_run(tmp_path / "run", "run.num_iterations=1")
    assert igrpo("draft", run).code == 0
    judge = sets(f"judge.endpoint={server.url}", "judge.model=judge")
    result = igrpo("grade", run, "--stage", "draft", "--reward", "judge", "--json", *judge)
    assert result.code == 0, result.stderr
    scores = pq.read_table(next((run / "iteration_0000/draft/scores/judge").glob("*.parquet"))).to_pylist()
    assert [row["reward"] for row in scores] == [row["reward_judge"] for row in scores]
    assert igrpo("select", run, "--scores", "judge").code == 0


CRITICISED = (
    "critique.by=judge",
    "judge.model=judge",
    "judge.max_retries=1",
    'critique.template="Problem {problem}, draft {draft}, answer {answer}."',
    'prompts.refine_template="{problem}\\n\\n[draft]\\n{draft}\\n[/draft]\\n{critique}"',
    "critique.max_completion_length=5",
)


def test_refinements_see_the_critiques_of_the_judge_which_are_paid_for_once(server, tmp_path):
    run = make_run(tmp_path / "run", "run.num_iterations=1", *CRITICISED)
    without = igrpo("refine", run)
    assert without.code == 3, "the drafts come first"
    for stage in ("draft", "select"):
        assert igrpo(stage, run).code == 0
    missing = igrpo("refine", run)
    assert missing.code == 2
    assert 'critique.by = "judge", but judge.endpoint is not set' in missing.stderr
    there = sets(f"judge.endpoint={server.url}")
    server.reply = lambda prompt: "<think>hm</think> 12345678"
    server.faults = [*[None] * 2, *["drop"] * 1000]
    assert igrpo("refine", run, *there).code == 75
    server.faults, answered = [], server.num_answered
    done = igrpo("refine", run, *there)
    assert done.code == 0, done.stderr
    selected = {row["group_id"]: row for row in rows_of(run, "select")}
    for row in rows_of(run, "refine"):
        assert row["prompt"].endswith("[/draft]\n12345<|assistant|>"), "without its thought, and cut to 5 tokens"
        assert (row["critique"], row["critique_ids"]) == ("12345", [])
    asked = {body["messages"][0]["content"] for body in server.asked}
    drafts = {row["draft"].replace("<", "< ") for row in selected.values()}
    assert {prompt.partition(", draft ")[2].rpartition(", answer ")[0] for prompt in asked} == drafts
    assert server.num_answered == len(asked), f"{answered} of them before the judge went away"
    before = files_below(run)
    assert igrpo("refine", run, "--overwrite", *there).code == 0
    assert (files_below(run), server.num_answered) == (before, len(asked))
    assert igrpo("verify", run).code == 0
    kept = [json.loads(line) for file in run.glob("judge/*.jsonl") for line in file.read_text().splitlines()]
    assert {line["text"] for line in kept} == {"<think>hm</think> 12345678"}


def test_a_critique_that_the_judge_refuses_is_empty_and_counted(server, tmp_path):
    run = make_run(tmp_path / "run", "run.num_iterations=1", *CRITICISED)
    for stage in ("draft", "select"):
        assert igrpo(stage, run).code == 0
    first, *others = rows_of(run, "select")
    server.poison = {first["draft"].replace("<", "< "): 400}
    refused = [row["group_id"] for row in (first, *others) if row["draft"] == first["draft"]]
    server.reply = lambda prompt: "wrong"
    done = igrpo("refine", run, *sets(f"judge.endpoint={server.url}"))
    assert done.code == 0, done.stderr
    for row in rows_of(run, "refine"):
        assert row["critique"] == ("" if row["group_id"] in refused else "wrong")
    (manifest,) = (json.loads(file.read_text()) for file in run.glob("iteration_0000/refine/*.json"))
    assert (manifest["counts"]["critiques"], manifest["counts"]["empty_critiques"]) == (8, len(refused))
    assert manifest["counts"]["critique_tokens"] == 0
