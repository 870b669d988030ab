"""What the measurements of the grader say: a defect of the grader, or of a harness, must show in them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from command_line import igrpo, sets
from igrpo_cli.config.rewards import RewardSection
from igrpo_cli.problems.sources import packaged_data
from igrpo_cli.rewards.grading_pool import GradingPool

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def agreement(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("grader_agreement")


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("harness_agreement")


def test_cases_are_counted_by_scope_beside_the_recorded_verdicts_of_math_verify(agreement, capsys):
    rows = [
        {"id": "same", "scope": "equivalence", "gold": "7", "answer": "7.0", "expected": True},
        {"id": "other", "scope": "equivalence", "gold": "7", "answer": "8", "expected": True},
        {"id": "box", "scope": "extraction", "gold": "7", "answer": r"\boxed{7}", "expected": True},
    ]
    recorded = [{**row, "math_verify_0_9_0": row["id"] == "same"} for row in rows]
    with GradingPool(RewardSection(num_workers=1)) as pool:
        equivalence, extraction = agreement.report_cases(recorded, pool)
    assert equivalence == {
        "part": "cases, equivalence",
        "rows": 2,
        "agreed": 1,
        "math_verify_agreed": 1,
        "differing": [["other", "wrong"]],
    }
    assert (extraction["agreed"], extraction["math_verify_agreed"]) == (1, 0)
    assert "differs: other" in capsys.readouterr().out


def test_a_hostile_answer_that_is_rewarded_fails_and_each_row_has_its_seconds_and_memory(agreement):
    rows = [
        {"id": "right", "gold": "42", "must_score": 0, "pred": "42"},
        {"id": "free", "gold": "42", "must_score": None, "pred": "42"},
        {"id": "long", "gold": "42", "must_score": 0, "pred_parts": [[r"\boxed{", 1], ["1+", 3000], ["1}", 1]]},
    ]
    right, free, long = agreement.report_hostile(rows, 2)
    assert [right["failed"], free["failed"], long["failed"]] == [True, False, False]
    assert long["verdict"] == "ungraded"
    assert "longer" in long["reason"]
    for part in (right, free, long):
        assert 0 < part["seconds"] < 60
        assert 20 < part["peak_mb"] < 4096  # a Python with sympy


def test_a_gold_that_differs_from_itself_and_a_blank_one_that_is_rewarded_are_counted(agreement, monkeypatch):
    class EverythingIs:
        def __init__(self, verdict):
            self.verdict = verdict

        def grade(self, pairs):
            return [agreement.Grade(self.verdict, None, 0.0) for _ in pairs]

    assert agreement.report_golds("bench", ["7", "8"], EverythingIs("wrong"), 1)["not_themselves"] == 8
    assert agreement.report_golds("bench", ["7", "8"], EverythingIs("correct"), 1)["not_themselves"] == 0
    assert agreement.report_blank_golds(["5"], EverythingIs("correct"))["failed"] is True
    assert agreement.report_blank_golds(["5"], EverythingIs("no_answer"))["failed"] is False


def test_every_crowded_way_to_grade_says_the_same(agreement):
    pairs = [(r"\boxed{2}", "2"), (r"\boxed{\frac{2}{4}}", "0.5"), ("seven", "7"), (r"\boxed{x+1}", "1+x"), ("", "1")]
    parts = agreement.report_load(pairs, 1, 2)
    assert [part["part"] for part in parts] == [
        "load, one pool of 2 workers",
        "load, 2 threads, one pool of 1",
        "load, 2 processes, a pool of 1 each",
    ]
    assert [(part["rows"], part["changed"], part["failed"]) for part in parts] == [(5, 0, False)] * 3


def test_a_verdict_that_changes_under_load_fails(agreement, monkeypatch, capsys):
    monkeypatch.setattr(agreement, "grade_in_pool", lambda _, pairs: [("correct", gold) for _, gold in pairs])
    monkeypatch.setattr(
        agreement,
        "grade_in_threads",
        lambda _, slices: [[("correct" if gold != "2" else "wrong", gold) for _, gold in each] for each in slices],
    )
    monkeypatch.setattr(
        agreement, "grade_in_processes", lambda _, slices: [[("correct", gold) for _, gold in each] for each in slices]
    )
    pool, threads, processes = agreement.report_load([("a", "1"), ("b", "2"), ("c", "3")], 1, 2)
    assert [part["changed"] for part in (pool, threads, processes)] == [0, 1, 0]
    assert threads["failed"] is True
    assert '["b", "2", "correct", "wrong"]' in capsys.readouterr().out


def test_an_evaluation_is_exported_as_it_was_graded(harness, tmp_path, capsys):
    sampled = igrpo(
        "eval", "--model", packaged_data() / "tiny-policy", "--bench", "arithmetic", "--samples", 2,
        "--output", tmp_path, *sets("eval.limit=3", "eval.max_gen_toks=16", "engine.name=transformers"),
    )  # fmt: skip
    assert sampled.code == 0, sampled.stderr
    (summary,) = tmp_path.glob("eval/*/*/summary.json")
    out = tmp_path / "out.jsonl"
    for again in (False, True):
        harness.export([summary.parent], out, grade_again=again)
        rows = harness.read_rows(out)
        assert [row["id"].split("/")[::2] for row in rows] == [["0", sample] for sample in ("0", "1")] * 3
        assert len({row["problem"] for row in rows}) == 3
        verdicts = json.loads(summary.read_text("utf-8"))["verdicts"]
        assert sum(row["verdict"] == "correct" for row in rows) == verdicts["correct"]
    assert "6 completions" in capsys.readouterr().out


def test_solutions_are_exported_against_their_own_the_next_and_the_extracted_answer(harness, tmp_path):
    texts = {"a": ("1", "so #### 1"), "b": ("2", r"so \boxed{3}"), "c": ("4", "I do not know how to do this at all.")}
    lines = [{"id": id_, "problem": "?", "answer": gold, "solution": text} for id_, (gold, text) in texts.items()]
    lines.append({"id": "d", "problem": "?", "answer": "5", "solution": ""})
    source, out = tmp_path / "solutions.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    exported = {}
    for gold in ("recorded", "next", "extracted"):
        harness.export([source], out, gold)
        exported[gold] = [(row["id"], row["gold"], row["verdict"]) for row in harness.read_rows(out)]
    assert exported == {
        "recorded": [("0/a", "1", "correct"), ("0/b", "2", "wrong"), ("0/c", "4", "no_answer")],
        "next": [("0/a", "2", "wrong"), ("0/b", "4", "wrong"), ("0/c", "1", "no_answer")],
        "extracted": [("0/a", "1", "correct"), ("0/b", "3", "correct")],
    }


def test_a_row_is_shaped_as_the_tasks_read_it(harness):
    row = {"id": "0/p/0", "problem": "What?", "gold": "1,000", "completion": "c", "verdict": "wrong", "answer": None}
    assert harness.as_document(row, "gsm8k")["answer"] == "#### 1,000"
    assert harness.as_document(row, "math500")["solution"] == r"\boxed{1,000}"


def test_every_disagreement_is_counted_and_listed(harness, capsys):
    verdicts = ("correct", "correct", "wrong", "no_answer", "ungraded")
    rows = [{"id": str(n), "gold": "7", "verdict": verdict, "answer": "7"} for n, verdict in enumerate(verdicts)]
    theirs = (True, False, True, False, False)
    harness.report(rows, {"last number": {str(n): (right, f"a{n}") for n, right in enumerate(theirs)}})
    table, *lines = capsys.readouterr().out.split("|---|---|---|---|---|---|\n")[1].splitlines()
    assert table == "| last number | 1 | 2 | 1 | 1 | 0.600 |"
    assert [json.loads(line) for line in lines] == [
        {
            "scorer": "last number", "id": "1", "gold": "7", "theirs": False, "ours": "correct",
            "their_answer": "a1", "our_answer": "7",
        },
        {
            "scorer": "last number", "id": "2", "gold": "7", "theirs": True, "ours": "wrong",
            "their_answer": "a2", "our_answer": "7",
        },
    ]  # fmt: skip
