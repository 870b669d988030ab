"""Runs whose refinements state the verdict on their draft (Self-Verification), or see it (Critique-GRPO)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from command_line import files_below, igrpo, igrpo_process, make_run, sets
from igrpo_cli.config import RunConfig
from igrpo_cli.prompts import refined_problem
from igrpo_cli.records import Problem, Selection
from igrpo_cli.rewards.grading import grade_answer

TEMPLATE = 'prompts.refine_template="{problem}\\n\\n[draft]\\n{draft}\\n[/draft]'
TEXTS = 'prompts.verdict_texts={correct="1", wrong="0"}'
VERIFICATION = ("reward.refinements=verdict", "select.strategy=random", TEXTS, f'{TEMPLATE}\\n1 or 0?"')
CRITIQUE = (
    "select.strategy=random",
    'prompts.verdict_texts={correct="1", wrong="0"}',
    f'{TEMPLATE}\\n{{verdict}}"',
    "update.refinement_prompt=without_draft",
    "update.baseline=pooled",
)


def rows(run: Path, *place: str) -> list[dict]:
    files = sorted(run.joinpath("iteration_0000", *place).glob("*.parquet"))
    return [row for path in files for row in pq.read_table(path).to_pylist()]


def completed_run(path: Path, *settings: str) -> Path:
    run = make_run(path, "run.num_iterations=1", *settings)
    result = igrpo_process("run", run)
    assert result.code == 0, result.stderr
    return run


@pytest.fixture(scope="module")
def verification(tmp_path_factory):
    return completed_run(tmp_path_factory.mktemp("verdicts") / "run", *VERIFICATION)


@pytest.fixture(scope="module")
def critique(tmp_path_factory):
    return completed_run(tmp_path_factory.mktemp("critiques") / "run", *CRITIQUE)


def texts_of_drafts(run: Path) -> dict[int, str]:
    """The text for the verdict on the draft of each group, as the draft shard has it."""
    verdicts = {(row["group_id"], row["sample_id"]): row["verdict"] for row in rows(run, "draft")}
    chosen = rows(run, "select")
    for row in chosen:
        assert row["draft_verdict"] == verdicts[row["group_id"], row["draft_sample_id"]]
    return {row["group_id"]: "1" if row["draft_verdict"] == "correct" else "0" for row in chosen}


def metrics_of(run: Path) -> dict[str, float]:
    return {
        row["name"]: row["value"] for row in pq.read_table(run / "iteration_0000/update/metrics.parquet").to_pylist()
    }


@pytest.mark.parametrize(
    ("draft_verdict", "completion", "verdict"),
    [
        ("correct", "<think>fine</think><answer>right</answer>", "correct"),
        ("correct", "\\boxed{false}", "wrong"),
        ("wrong", "<answer>False</answer>", "correct"),
        ("no_answer", "The answer is false.", "correct"),
        ("wrong", "<answer>12</answer>", "wrong"),  # the answer to the problem is no verdict
        ("wrong", "<answer>false or right</answer>", "wrong"),
        ("wrong", "<think>false", "no_answer"),
        ("ungraded", "<answer>false</answer>", "ungraded"),
    ],
)
def test_a_verification_is_graded_against_the_verdict_on_its_draft(draft_verdict, completion, verdict):
    config = RunConfig(
        reward={"refinements": "verdict"},
        select={"strategy": "random"},
        prompts={"verdict_texts": {"correct": "right", "wrong": "false"}},
    )
    selection = Selection(0, 0, "p", "condition", 0, 1, "d", "12", 1.0, 1, 0.5, 0.5, draft_verdict=draft_verdict)
    problem = refined_problem(Problem("p", "7+5=?", "12", "s:1"), selection, config)
    assert grade_answer(completion, problem.answer, problem=problem.problem).verdict == verdict
    bare = Selection(0, 0, "p", "bare", 0, 1, "d", "12", 1.0, 1, 0.5, 0.5, draft_verdict=draft_verdict)
    assert refined_problem(problem, bare, config) is problem, "a refinement without draft answers the problem"


def test_verifications_are_rewarded_for_the_verdict_on_their_draft(verification):
    right, answers = texts_of_drafts(verification), {row["problem_id"]: row for row in rows(verification, "draft")}
    for row in rows(verification, "refine"):
        assert row["prompt"].endswith("[/draft]\n1 or 0?<|assistant|>")
        assert row["reward_accuracy"] == float(row["extracted_answer"] == right[row["group_id"]])
        assert row["reward"] == row["reward_accuracy"] + row["reward_format"]
        assert row["problem_id"] in answers
    assert igrpo("verify", verification).code == 0


def test_scores_use_the_texts_of_the_verdicts(verification):
    """The most frequent answer to verifications of wrong drafts is right if it is the text for wrong."""
    wrong = {group for group, text in texts_of_drafts(verification).items() if text == "0"}
    refined = rows(verification, "refine")
    given = Counter(row["extracted_answer"] for row in refined if row["group_id"] in wrong and row["extracted_answer"])
    text, number = given.most_common(1)[0]
    grade = ("grade", verification, "--stage", "refine", "--iteration", 0, "--reward", "accuracy", "--scores")
    result = igrpo(*grade, "again")
    assert result.code == 0, result.stderr
    again = [row["reward_accuracy"] for row in rows(verification, "refine", "scores", "again")]
    assert again == [row["reward_accuracy"] for row in refined]
    result = igrpo(*grade, "other", *sets(f'prompts.verdict_texts={{correct="1", wrong="{text}"}}'))
    assert result.code == 0, result.stderr
    other = [row for row in rows(verification, "refine", "scores", "other") if row["group_id"] in wrong]
    assert sum(row["reward_accuracy"] for row in other) >= number


def test_metrics_of_verifications_have_names_of_their_own(verification):
    metrics, refined = metrics_of(verification), rows(verification, "refine")
    assert metrics["verify/verdict_correct"] == pytest.approx(sum(row["reward_accuracy"] for row in refined) / 24)
    assert metrics["verify/reward_mean"] == pytest.approx(sum(row["reward"] for row in refined) / 24)
    assert not [name for name in metrics if name.startswith("refine/")]
    assert metrics["entropy/draft"] > 0, "both stages are trained on"
    assert metrics["entropy/refine"] > 0
    shown = igrpo("show", verification, "--limit", 0).stdout
    assert "verdicts on it correct" in shown
    assert "; fixed" not in shown
    assert "; broken" not in shown
    for command in ("status", "report"):
        assert igrpo(command, verification).code == 0


def test_refinements_see_the_verdict_on_their_draft(critique):
    told = texts_of_drafts(critique)
    assert set(told.values()) == {"0", "1"}
    for row in rows(critique, "refine"):
        assert row["prompt"].endswith(f"[/draft]\n{told[row['group_id']]}<|assistant|>")
        assert row["reward_accuracy"] == float(row["verdict"] == "correct")
    assert "refine/verdict_correct" in metrics_of(critique)
    assert igrpo("verify", critique).code == 0


@pytest.mark.parametrize("name", ["verification", "critique"])
def test_a_stage_that_is_made_again_has_the_same_bytes(name, request):
    run = request.getfixturevalue(name)
    before = files_below(run, (".parquet",))
    for stage in ("select", "refine"):
        assert igrpo(stage, run, "--overwrite", "--iteration", 0).code == 0
    assert files_below(run, (".parquet",)) == before


@pytest.mark.parametrize(("name", "why"), [("verification", "state a verdict"), ("critique", "reference answer")])
def test_an_evaluation_with_draft_is_refused_and_one_of_another_prompt_is_not(name, why, request):
    run = request.getfixturevalue(name)
    command = ("eval", run, "--bench", "arithmetic", *sets("eval.limit=2"))
    assert igrpo(*command).code == 0
    result = igrpo(*command, "--with-draft")
    assert result.code == 2
    assert why in result.stderr
    assert "hint: evaluate without --with-draft" in result.stderr
    plain = igrpo(*command, "--with-draft", *sets("reward.refinements=answer", f'{TEMPLATE}"'))
    assert plain.code == 0, plain.stderr
    assert "with draft" in plain.stdout
