"""The figures of an evaluation, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from igrpo_cli.config import RunConfig
from igrpo_cli.config.files import check_config
from igrpo_cli.errors import DamagedFileError
from igrpo_cli.evaluation.consensus import consensus
from igrpo_cli.evaluation.shards import shown_drafts
from igrpo_cli.evaluation.summary import (
    MAX_SAMPLES_FOR_EVERY_K,
    PAPER_BENCHES,
    correct_matrix,
    macro_average,
    majorities,
    paired_figures,
    refinement_figures,
    summarise,
)
from igrpo_cli.pipeline.session import Session
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.ui.console import Console
from igrpo_cli.ui.tables import summary_text
from made_evaluation import sample, samples

MODEL = {"name": "by hand"}


def test_every_figure_of_two_problems_with_three_samples():
    rollouts = samples(["!4", "!4", "5"], ["6", "7", ""])
    rollouts[2] = replace(rollouts[2], finish_reason="length", completion_ids=[7] * 8)
    figures = summarise(rollouts, "sums", MODEL, {"1": 0.25, "2": 0.5, "3": 0.75})
    assert (figures["problems"], figures["samples"]) == (2, 3)
    assert figures["avg_at_k"] == pytest.approx(1 / 3)
    assert figures["pass_at"] == pytest.approx({"1": 1 / 3, "2": 1 / 2, "3": 1 / 2})
    # Two of three: 4 and 4, or 4 and 5 (half of two ties); in the other problem nothing is right.
    assert figures["maj_at"] == pytest.approx({"1": 1 / 3, "2": 1 / 3, "3": 1 / 2})
    assert (figures["pass_at_k"], figures["maj_at_k"], figures["cons_at_k"]) == (0.5, 0.5, 0.75)
    assert figures["verdicts"] == {"correct": 2, "wrong": 3, "no_answer": 1, "ungraded": 0}
    assert figures["no_answer_fraction"] == figures["truncated_fraction"] == pytest.approx(1 / 6)
    assert (figures["ungraded_fraction"], figures["mean_completion_tokens"]) == (0.0, 3.0)
    low, high = figures["ci95"]
    assert 0 <= low < 1 / 3 < high <= 1


def test_one_problem_has_no_interval_and_answers_may_be_uncompared():
    figures = summarise(samples(["!4", "5"]), "sums", MODEL, None)
    assert (figures["ci95"], figures["cons_at_k"], figures["cons_at"]) == (None, None, None)


def test_problems_with_different_numbers_of_samples_are_damage():
    with pytest.raises(DamagedFileError, match="between 1 and 2 samples"):
        correct_matrix(samples(["!4", "5"], ["5"]))


def test_problems_come_in_the_order_of_their_groups():
    rollouts = [sample(1, 0, "!4"), sample(0, 0, "5"), sample(1, 1, "5"), sample(0, 1, "6")]
    assert correct_matrix(rollouts) == [[0.0, 0.0], [1.0, 0.0]]


def test_beyond_a_limit_only_the_majority_of_all_samples_is_told():
    number = MAX_SAMPLES_FOR_EVERY_K + 1
    assert majorities([["4"] * number], [[1.0] * number], number) == {str(number): 1.0}
    assert len(majorities([["4"] * 8], [[1.0] * 8], 8)) == 8


def ungraded(rollout):
    return replace(rollout, verdict="ungraded", extracted_answer=None)


def test_samples_that_could_not_be_graded_count_in_no_accuracy():
    rollouts = samples(["!4", "5", "5"], ["!6", "!6", "7"], ["8", "8", "8"])
    rollouts = [
        ungraded(row) if (row.group_id, row.sample_id) in {(0, 2), (2, 0), (2, 1), (2, 2)} else row for row in rollouts
    ]
    figures = summarise(rollouts, "sums", MODEL, None)
    # One of two in the first problem, two of three in the second; the third has no sample that counts.
    assert figures["avg_at_k"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert figures["pass_at"] == pytest.approx({"1": (1 / 2 + 2 / 3) / 2, "2": 1.0, "3": 1.0})
    assert figures["maj_at"]["3"] == pytest.approx((1 / 2 + 1) / 2)
    assert (figures["problems"], figures["samples"]) == (3, 3)
    assert figures["ungraded_fraction"] == pytest.approx(4 / 9)


def test_an_evaluation_in_which_nothing_was_graded_has_no_accuracy():
    figures = summarise([ungraded(row) for row in samples(["4"], ["5"])], "sums", MODEL, {})
    assert [figures[name] for name in ("avg_at_k", "ci95", "pass_at_k", "maj_at_k", "cons_at_k")] == [None] * 5
    assert figures["ungraded_fraction"] == 1.0
    assert "–" in summary_text({**figures, "model": {"name": "by hand", "policy": "0"}})
    assert paired_figures([[]], [[1.0]])["difference"] is None


def test_a_pair_that_was_not_graded_on_one_side_is_left_out():
    assert paired_figures([[1.0], [], [0.0]], [[0.0], [1.0], [0.0]])["difference"] == -0.5


def test_what_refining_did_by_hand():
    bare = samples(["!4", "5"], ["6", "!4"])
    refined = [
        sample(0, 0, "5", draft_sample_id=0),  # broken
        sample(0, 1, "!4", draft_sample_id=1),  # fixed
        sample(1, 0, "6", draft_sample_id=0),  # copied
        sample(1, 1, "!4", draft_sample_id=1),  # copied
    ]
    figures = refinement_figures(refined, bare)
    assert (figures["bare_avg_at_k"], figures["difference"], figures["p_value"]) == (0.5, 0.0, 1.0)
    assert {name: figures[name] for name in ("draft_accuracy", "fix_rate", "break_rate", "copy_rate")} == {
        "draft_accuracy": 0.5,
        "fix_rate": 0.5,
        "break_rate": 0.5,
        "copy_rate": 0.5,
    }
    # Both wrong drafts have a correct sample beside them; one of them was fixed.
    assert (figures["retry_rate"], figures["fix_gain"]) == (1.0, -0.5)


def test_a_fix_counts_against_new_samples_of_the_same_problem():
    bare = samples(["5", "6", "!4"], ["5", "", "7"], ["!4", "!4", "!4"])
    refined = [
        sample(group, index, answer, draft_sample_id=index)
        for group, row in enumerate((["!4", "5", "5"], ["!4", "!4", "5"], ["5"] * 3))
        for index, answer in enumerate(row)
    ]
    figures = refinement_figures(refined, bare)
    # Five refinements of wrong drafts, three of them correct. Of the other samples of the first problem a half is
    # correct, of those of the second none.
    assert figures["fix_rate"] == pytest.approx(3 / 5)
    assert figures["retry_rate"] == pytest.approx((2 * 0.5 + 3 * 0.0) / 5)
    assert figures["fix_gain"] == pytest.approx(0.4)
    low, high = figures["fix_gain_ci95"]
    assert (low + high) / 2 == pytest.approx(0.4)


def test_one_draft_for_all_refinements_counts_once_for_each():
    bare = samples(["!4", "5", "5"], ["6", "7", "8"])
    refined = [
        sample(g, s, a, draft_sample_id=0) for g, row in enumerate((["!4"] * 3, ["5"] * 3)) for s, a in enumerate(row)
    ]
    figures = refinement_figures(refined, bare)
    assert figures["draft_accuracy"] == 0.5
    assert figures["difference"] == pytest.approx(1 / 3)
    assert (figures["fix_rate"], figures["break_rate"], figures["copy_rate"]) == (0.0, 0.0, 0.5)


def test_paired_figures_take_other_numbers_of_samples():
    figures = paired_figures([[0, 1], [1, 1]], [[1], [1]])
    assert figures["difference"] == 0.25
    single = paired_figures([[0, 1]], [[1]])
    assert single == {"difference": 0.5, "difference_ci95": None, "p_value": None}


def test_the_macro_average_needs_all_six_benchmarks_of_the_paper():
    summaries = [{"bench": bench, "avg_at_k": 0.1 * number} for number, bench in enumerate(PAPER_BENCHES)]
    assert macro_average(summaries) == pytest.approx(0.25)
    assert macro_average([*summaries, {"bench": "aime26", "avg_at_k": 1.0}]) == pytest.approx(0.25)
    assert macro_average(summaries[1:]) is None
    assert macro_average([*summaries[1:], {"bench": PAPER_BENCHES[0]}]) is None


HALVES = samples(["1/2", "0.5", "!2"], ["3", "3", "!4"])


@pytest.fixture
def session(tmp_path):
    session = Session(RunDirectory(tmp_path), RunConfig(), Console())
    yield session
    session.close()


def test_the_consensus_of_equal_answers_differs_from_the_majority_of_texts(session):
    figures = summarise(HALVES, "sums", MODEL, consensus(session, HALVES, "answers"))
    # Three texts with a vote each, of which one is right; but two of the three answers are a half.
    assert figures["maj_at_k"] == pytest.approx((1 / 3 + 0) / 2)
    assert figures["cons_at_k"] == 0.0
    assert figures["cons_at"]["1"] == figures["maj_at"]["1"] == figures["avg_at_k"] == pytest.approx(1 / 3)


def test_no_grader_starts_where_nothing_is_to_be_compared(session, monkeypatch):
    monkeypatch.setattr(session, "grader", lambda: pytest.fail("a grader was started"))
    assert consensus(session, samples(["!4", "!4.0", "5", ""]), "answers")["4"] == 1.0


def test_reward_functions_of_the_user_are_not_called_to_compare_answers(session, monkeypatch):
    config = check_config(
        {"reward": {"weights": {"accuracy": 1, "broken": 1}, "functions": {"broken": "math:nothing"}}}, "test"
    )
    with_functions = Session(session.run, config, session.console)
    monkeypatch.setattr(with_functions, "grader", lambda: pytest.fail("the graders with functions were started"))
    assert consensus(with_functions, HALVES, "answers")["3"] == 0.0


def test_a_sample_that_could_not_be_graded_is_no_draft_of_the_others():
    rows = [replace(ungraded(sample(0, 0, "5")), reward=2.0), sample(0, 1, "6"), sample(0, 2, "!4")]
    assert [draft.sample_id for draft, _ in shown_drafts(rows, "best")] == [2]
    assert [draft.sample_id for draft, _ in shown_drafts(rows, "majority")] == [1]
    only_ungraded = [ungraded(sample(0, number, "5")) for number in range(2)]
    assert [list(ids) for _, ids in shown_drafts(only_ungraded, "best")] == [[0, 1]]
