"""Conditioned evaluations: which draft the refinements see, and what becomes of the bare samples."""

from __future__ import annotations

import json
import shutil

import pytest

from command_line import igrpo, make_run, sets
from igrpo_cli.algo.estimates import paired_difference
from igrpo_cli.evaluation.summary import by_problem, correct_matrix
from igrpo_cli.records import Rollout
from igrpo_cli.store.checksummed_json import read_summary
from igrpo_cli.store.tables import read_records

PROBLEMS, SAMPLES = 8, 3
BENCH = ("--bench", "arithmetic", "--samples", SAMPLES)
LIMIT = f"eval.limit={PROBLEMS}"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run whose initial policy is evaluated bare and with each selection of drafts."""
    run = make_run(tmp_path_factory.mktemp("conditioned") / "run", "run.num_shards=2")
    bare = igrpo("eval", run, *BENCH, *sets(LIMIT), "--json")
    assert bare.code == 0, bare.stderr
    return run


def conditioned(run, selection):
    result = igrpo("eval", run, *BENCH, *sets(LIMIT, f"eval.selection={selection}"), "--with-draft", "--json")
    assert result.code == 0, result.stderr
    return result.json


def groups(run, name):
    """[problems, samples] of an evaluation of policy 0."""
    shards = sorted((run / "eval/arithmetic" / name).glob("*.parquet"))
    return by_problem([row for shard in shards for row in read_records(shard, Rollout)])


def shown(run, name):
    """The sample ids of the drafts that each problem's refinements saw."""
    return [[row.draft_sample_id for row in group] for group in groups(run, name)]


def test_each_sample_is_the_draft_of_one_refinement(evaluated):
    summary = conditioned(evaluated, "each")
    assert shown(evaluated, "policy_0000_conditioned") == [list(range(SAMPLES))] * PROBLEMS
    assert summary["draft_accuracy"] == summary["bare_avg_at_k"]


def test_all_refinements_see_the_first_sample_with_the_most_frequent_answer(evaluated):
    conditioned(evaluated, "majority")
    expected = []
    for group in groups(evaluated, "policy_0000"):
        answers = [row.extracted_answer for row in group]
        votes = {answer: answers.count(answer) for answer in answers if answer is not None}
        leaders = [answer for answer, number in votes.items() if number == max(votes.values())]
        expected.append([answers.index(leaders[0]) if leaders else 0] * SAMPLES)
    assert shown(evaluated, "policy_0000_conditioned_majority") == expected
    assert len({row[0] for row in expected}) > 1, "or else the first sample would do"


def test_all_refinements_see_the_sample_with_the_highest_reward(evaluated):
    summary = conditioned(evaluated, "best")
    bare = groups(evaluated, "policy_0000")
    rewards = [[row.reward for row in group] for group in bare]
    expected = [[row.index(max(row))] * SAMPLES for row in rewards]
    assert shown(evaluated, "policy_0000_conditioned_best") == expected
    assert summary["draft_accuracy"] == summary["bare"]["pass_at_k"], "an oracle finds a right draft wherever one is"
    for of_problem, (draft, *_), refined in zip(
        bare, expected, groups(evaluated, "policy_0000_conditioned_best"), strict=True
    ):
        assert all(of_problem[draft].completion in row.prompt for row in refined)


def test_the_figures_are_those_of_the_rows(evaluated):
    summary = conditioned(evaluated, "each")
    bare, refined = groups(evaluated, "policy_0000"), groups(evaluated, "policy_0000_conditioned")
    pairs = [(b, r) for before, after in zip(bare, refined, strict=True) for b, r in zip(before, after, strict=True)]
    wrong = [r.verdict == "correct" for b, r in pairs if b.verdict != "correct"]
    right = [r.verdict != "correct" for b, r in pairs if b.verdict == "correct"]
    assert summary["fix_rate"] == pytest.approx(sum(wrong) / len(wrong))
    assert summary["break_rate"] == pytest.approx(sum(right) / len(right))
    assert summary["copy_rate"] == pytest.approx(sum(b.completion == r.completion for b, r in pairs) / len(pairs))
    matrices = [correct_matrix([row for group in side for row in group]) for side in (bare, refined)]
    paired = paired_difference(*matrices)
    assert summary["difference"] == pytest.approx(summary["avg_at_k"] - summary["bare_avg_at_k"])
    assert summary["difference_ci95"] == pytest.approx(list(paired.ci95))
    assert summary["p_value"] == pytest.approx(paired.p_value)
    written = read_summary(evaluated / "eval/arithmetic/policy_0000/summary.json")
    assert summary["bare"] == written


def test_all_selections_lie_side_by_side_and_verify(evaluated):
    for selection in ("each", "majority", "best"):
        assert conditioned(evaluated, selection)["selection"] == selection
    assert sorted(path.name for path in (evaluated / "eval/arithmetic").glob("policy_*")) == [
        "policy_0000",
        "policy_0000_conditioned",
        "policy_0000_conditioned_best",
        "policy_0000_conditioned_majority",
    ]
    verified = igrpo("verify", evaluated)
    assert verified.code == 0, verified.stdout


def test_bare_samples_do_not_depend_on_the_selection_and_refinements_do(evaluated):
    conditioned(evaluated, "best")
    bare = igrpo("eval", evaluated, *BENCH, *sets(LIMIT, "eval.selection=best"), "--json")
    assert (bare.code, bare.stderr) == (0, ""), "finished shards are found finished"
    directory = evaluated / "eval/arithmetic"
    of_bare, of_refined = (
        json.loads((directory / name / "shard-00000-of-00002.json").read_text())["identity"]["config"]["eval"]
        for name in ("policy_0000", "policy_0000_conditioned_best")
    )
    assert "selection" not in of_bare
    assert of_refined == {**of_bare, "selection": "best"}


def test_a_moved_directory_is_not_taken_for_another_selection(tmp_path, evaluated):
    conditioned(evaluated, "best")
    run = tmp_path / "run"
    shutil.copytree(evaluated, run)
    folder = run / "eval/arithmetic"
    shutil.rmtree(folder / "policy_0000_conditioned_majority", ignore_errors=True)
    (folder / "policy_0000_conditioned_best").rename(folder / "policy_0000_conditioned_majority")
    result = igrpo("eval", run, *BENCH, *sets(LIMIT, "eval.selection=majority"), "--with-draft")
    assert result.code == 4
    assert 'eval.selection "best" on disk, "majority" now' in result.stderr


def test_more_refinements_than_samples_without_draft_are_a_conflict(evaluated):
    more = ("--bench", "arithmetic", "--samples", "5", *sets(LIMIT))
    result = igrpo("eval", evaluated, *more, "--with-draft")
    assert result.code == 4
    assert f"are {PROBLEMS * SAMPLES} completions, not {PROBLEMS * 5}" in result.stderr
    assert "hint: first the same command without --with-draft, which samples the missing ones" in result.stderr


def test_without_bare_samples_there_is_nothing_to_refine(evaluated):
    result = igrpo("eval", evaluated, "--bench", "builtin:arithmetic/digits-test", *sets(LIMIT), "--with-draft")
    assert result.code == 3
    assert "its evaluation without draft is not complete" in result.stderr


def test_an_unknown_selection_is_refused_by_name(evaluated):
    result = igrpo("eval", evaluated, *BENCH, *sets(LIMIT, "eval.selection=first"), "--with-draft")
    assert result.code == 2
    assert "eval.selection = 'first'" in result.stderr
