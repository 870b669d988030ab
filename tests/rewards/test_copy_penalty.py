"""The copy penalty: the overlap of a refinement with its draft."""

from __future__ import annotations

from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_line import igrpo, make_run, sets
from igrpo_cli.records import Grade, Problem
from igrpo_cli.rewards.scorer import Scorer, ScoringInput, copy_reward


@pytest.mark.parametrize(
    ("completion", "draft", "value"),
    [
        ("12 * 3 = 36", "12 * 3 = 36", -1.0),
        ("12*3=36\n", "12 * 3 = 36", -1.0),
        ("36", "35", 0.0),
        ("", "", -1.0),
        ("a", None, 0.0),
        # Five words and two marks on each side make seven runs; the last word is part of three of them.
        ("12 * 3 = 36", "12 * 3 = 35", -4 / 7),
        # Runs of a b: (,,a) (,a,b) (a,b,) (b,,); of a b c: (,,a) (,a,b) (a,b,c) (b,c,) (c,,).
        ("a b", "a b c", -2 * 2 / (4 + 5)),
        # A run that occurs once in the draft is shared once.
        ("a a a a a", "a a a", -2 * 5 / (7 + 5)),
    ],
)
def test_overlap_by_hand(completion, draft, value):
    assert copy_reward(completion, draft) == pytest.approx(value)


@given(st.text(max_size=40), st.text(max_size=40))
def test_the_penalty_is_symmetric_and_at_most_1(first, second):
    value = copy_reward(first, second)
    assert -1 <= value <= 0
    assert copy_reward(second, first) == value
    assert copy_reward(first, first) == -1


def test_the_part_has_its_weight_and_is_0_without_draft():
    pool = SimpleNamespace(
        signatures={},
        submit=lambda pairs, contexts, groups: SimpleNamespace(
            result=lambda: [Grade("correct", "4", 0.0)] * len(pairs)
        ),
    )
    scorer = Scorer(pool, {"accuracy": 1.0, "copy": 0.5})
    problem = Problem("p", "2+2?", "4", "s:1")
    refined, draft = scorer.score([ScoringInput(problem, "", "4", 1, 9, "stop", text) for text in ("4", None)])
    assert (refined.parts["copy"], refined.reward) == (-1.0, 0.5)
    assert (draft.parts["copy"], draft.reward) == (0.0, 1.0)
    (other,) = Scorer(pool, {"accuracy": 1.0}).score([ScoringInput(problem, "", "4", 1, 9, "stop", "4")] * 2)[:1]
    assert "copy" not in other.parts


def test_a_run_and_its_scores_have_the_part(tmp_path):
    weights = "reward.weights={accuracy=1.0, format=1.0, copy=0.25}"
    run = make_run(tmp_path / "run", weights, "run.num_iterations=1", "prompts.draft_view=answer_only")
    assert igrpo("run", run).code == 0
    drafts, refined = (
        pq.read_table(next(run.glob(f"iteration_0000/{stage}/*.parquet"))).to_pylist() for stage in ("draft", "refine")
    )
    selected = pq.read_table(next(run.glob("iteration_0000/select/*.parquet"))).to_pylist()
    shown = {row["group_id"]: row["draft"] for row in selected}
    assert {row["reward_copy"] for row in drafts} == {0.0}
    for row in refined:
        # The whole draft counts, also where the prompt shows its answer alone.
        assert row["reward_copy"] == pytest.approx(copy_reward(row["completion"], shown[row["group_id"]]))
        parts = row["reward_accuracy"] + row["reward_format"] + 0.25 * row["reward_copy"]
        assert row["reward"] == pytest.approx(parts)
    result = igrpo("grade", run, "--stage", "refine", "--iteration", 0, "--reward", "copy", "--scores", "copies")
    assert result.code == 0, result.stderr
    scores = pq.read_table(next(run.glob("iteration_0000/refine/scores/copies/*.parquet"))).to_pylist()
    assert [row["reward_copy"] for row in scores] == [row["reward_copy"] for row in refined]
    assert igrpo("eval", run, "--bench", "arithmetic", *sets("eval.limit=2")).code == 0
    assert igrpo("eval", run, "--bench", "arithmetic", "--with-draft", *sets("eval.limit=2")).code == 0
    bare, with_draft = (
        [row["reward_copy"] for row in pq.read_table(path).to_pylist()]
        for path in sorted(run.glob("eval/arithmetic/*/*.parquet"))
    )
    assert set(bare) == {0.0}
    assert min(with_draft) < 0
    assert igrpo("verify", run).code == 0


@pytest.mark.parametrize("setting", ["run.method=grpo", "select.strategy=none"])
def test_a_penalty_without_drafts_is_refused(tmp_path, setting):
    overrides = sets("reward.weights={accuracy=1.0, copy=0.5}", setting)
    result = igrpo("init", tmp_path / "run", "--preset", "arithmetic", *overrides)
    assert result.code == 2
    assert "reward.weights has copy" in result.stderr
