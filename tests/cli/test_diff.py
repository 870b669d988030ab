"""`igrpo diff` on iterations that were made by hand: figures, transitions, settings and evaluations."""

from __future__ import annotations

import math

import pytest

from command_line import igrpo
from igrpo_cli.store.checksummed_json import write_summary
from igrpo_cli.store.settings import checksummed_settings
from made_evaluation import make_evaluation
from made_evaluation import make_problems as make_evaluation_problems
from made_iteration import SELECT, Group, make_iteration, make_problems, make_update

# Problems right more often than not: by the drafts p1 and p2 before, p0 and p2 after.
BEFORE = (
    Group(["5", "5"], ["5", "!4"]),
    Group(["!4", "!4"], ["!4", "!4"]),
    Group(["!4", "!4"], ["5", "5"]),
    Group(["5", "5"], ["5", "5"]),
)
AFTER = (
    Group(["!4", "!4"], ["!4", "!4"]),
    Group(["!4", "5"], ["5", "!4"]),
    Group(["!4", "!4"], ["!4", "!4"]),
    Group(["5", "5"], ["5", "5"]),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Iterations 0 and 1 of the same four problems, made with other settings, and evaluations of policies 0 and 1."""
    run = make_problems(tmp_path_factory.mktemp("diff") / "run", 4)
    make_iteration(run, 0, *BEFORE, config={"select": SELECT, "draft": {"temperature": 1.0}})
    make_iteration(run, 1, *AFTER, config={"select": {**SELECT, "strategy": "worst"}, "draft": {"temperature": 1.0}})
    for iteration in (0, 1):
        make_update(run, iteration, {(0, 0, "refine", 0): 0.5})
        summary = {"avg_at_k": 0.25 + iteration / 2, "ci95": [0.1, 0.9]}
        write_summary(run.eval_summary("sums", iteration), summary)
    return run.root


def test_the_figures_of_both_and_their_difference(run):
    result = igrpo("diff", run, 0, 1, "--json")
    assert (result.code, result.stderr) == (0, "")
    compared = result.json
    assert compared["a"] == {"run": str(run), "iteration": 0}
    assert compared["b"] == {"run": str(run), "iteration": 1}
    by_hand = {
        "draft/verdict_correct": (4 / 8, 5 / 8),
        "refine/verdict_correct": (3 / 8, 5 / 8),
        "draft/groups_with_gradient": (0, 1 / 4),
        "refine/groups_with_gradient": (1 / 4, 1 / 4),
        # Refinements of wrong drafts: of p0 and p3 before, of p3 after.
        "refine/fix_rate": (1 / 4, 0),
        # Of right drafts: of p1 and p2 before, of p0, p1 and p2 after.
        "refine/break_rate": (2 / 4, 1 / 6),
        "grad_norm": (0.5, 1.5),
    }
    for name, (a, b) in by_hand.items():
        found = compared["figures"][name]
        assert (found["a"]["value"], found["b"]["value"]) == pytest.approx((a, b)), name
        assert found["difference"] == pytest.approx(b - a), name


def test_the_transitions_of_shared_problems(run):
    problems = igrpo("diff", run, 0, 1, "--json").json["problems"]
    drafts, refinements = problems["draft"], problems["refine"]
    assert {name: drafts[name] for name in ("shared", "solved", "unsolved")} == {
        "shared": 4,
        "solved": 1,
        "unsolved": 1,
    }
    gained = {"problem_id": "p0", "problem": "What is 0 + 0?", "answer": "4", "a": 0.0, "b": 1.0}
    assert drafts["gained"] == [gained]
    assert drafts["lost"] == [{"problem_id": "p1", "problem": "What is 1 + 1?", "answer": "4", "a": 1.0, "b": 0.5}]
    assert [flip["problem_id"] for flip in refinements["gained"]] == ["p2", "p0"]
    assert [flip["problem_id"] for flip in refinements["lost"]] == ["p1"]
    # Differences 1, -1/2, 0, 0: mean 1/8, standard deviation sqrt(19/48), Student's t of 3 degrees of freedom.
    margin = 3.18245 * math.sqrt(19 / 48) / 2
    assert drafts["difference"] == 0.125
    assert drafts["difference_ci95"] == pytest.approx([0.125 - margin, 1.0], abs=1e-5)


def test_settings_are_those_that_the_shards_were_made_with(run):
    assert igrpo("diff", run, 0, 1, "--json").json["settings"] == {"select.strategy": ["best", "worst"]}
    assert igrpo("diff", run, 0, 0, "--json").json["settings"] == {}


def test_the_text(run):
    lines = igrpo("diff", 0, 1, cwd=run).stdout.splitlines()
    assert [line.split() for line in lines[2:4]] == [["A", ".", "0"], ["B", ".", "1"]]
    (accuracy,) = (line for line in lines if line.startswith("accuracy, without draft   "))
    assert accuracy.split()[3:5] == ["50.0", "%"]
    assert accuracy.endswith("+12.5 points")
    assert [line.split() for line in lines if line.startswith("without draft ")] == [
        ["without", "draft", "4", "1", "1", "1", "1"]
    ]
    assert (
        "accuracy, without draft, same problems: difference +12.5 points, 95 % interval -87.6 to +100.0, p = 0.72"
        in lines
    )
    assert any(line.split()[:3] == ["gained,", "without", "draft"] and "What is 0 + 0?" in line for line in lines)
    (evaluated,) = (line for line in lines if line.startswith("sums "))
    assert " ".join(evaluated.split()) == "sums 25.0 % (policy 0) 75.0 % (policy 1) +50.0 points"
    assert lines[-1].split() == ["select.strategy", '"best"', '"worst"']
    assert max(map(len, lines)) <= 110


def test_markdown(run):
    text = igrpo("diff", run, 0, 1, "--markdown").stdout
    assert "| accuracy, without draft | 50.0 % (" in text
    assert '| select.strategy | "best" | "worst" |' in text


def test_runs_iterations_and_policies_by_path(run, tmp_path):
    other = make_problems(tmp_path / "other", 6)
    make_iteration(other, 0, *AFTER, *BEFORE[:2])
    other.run_toml.write_bytes(checksummed_settings(b"[run]\nnum_iterations = 9\n[update]\nlearning_rate = 0.5\n"))
    write_summary(other.eval_summary("sums", 0), {"avg_at_k": 0.5, "ci95": [0.1, 0.9]})
    # The newest that both have is 0: `other` has no more, and its update is not finished.
    runs = igrpo("diff", run, other.root, "--json").json
    assert (runs["a"]["iteration"], runs["b"]["iteration"]) == (0, 0)
    assert runs["problems"]["draft"]["shared"] == 4
    assert runs["settings"]["update.learning_rate"] == [1e-6, 0.5]
    assert [(pair["a"]["policy"], pair["b"]["accuracy"]) for pair in runs["evaluations"]] == [(0, 0.5)]
    for name in ("iteration_0001", "policies/0001"):
        mixed = igrpo("diff", run / name, other.root / "iteration_0000", "--json").json
        assert (mixed["a"]["iteration"], mixed["b"]["iteration"]) == (1, 0)
    assert igrpo("diff", run, other.root, "--iteration", 0, "--json").json == runs


def test_settings_that_differ_between_evaluations_are_named(tmp_path):
    run = make_problems(tmp_path / "run", 4)
    make_evaluation_problems(run.root, "sums", 1)
    for iteration, temperature in ((0, 0.6), (1, 1.0)):
        make_iteration(run, iteration, *BEFORE)
        write_summary(run.eval_summary("sums", iteration), {"avg_at_k": 0.5, "ci95": [0.1, 0.9]})
        make_evaluation(run, "sums", iteration, ["!4"], config={"eval": {"temperature": temperature, "top_p": 1.0}})
    (evaluation,) = igrpo("diff", run.root, 0, 1, "--json").json["evaluations"]
    assert evaluation["settings"] == {"eval.temperature": [0.6, 1.0]}
    text = igrpo("diff", run.root, 0, 1).stdout
    assert "Settings that differ between the evaluations on sums:" in text
    assert "No setting differs." not in text


def test_no_shared_problem_is_said_and_the_rest_is_shown(run, tmp_path):
    elsewhere = make_problems(tmp_path / "elsewhere", 1, text="How many are {} and {}?")
    make_iteration(elsewhere, 0, Group(["!4"], ["!4"]))
    result = igrpo("diff", run, elsewhere.root)
    assert result.code == 0
    assert "No problem was sampled by both sides: there are no pairs to compare." in result.stdout
    assert "accuracy, without draft" in result.stdout


def test_an_unfinished_side_is_told_on_stderr(run, tmp_path):
    other = make_problems(tmp_path / "other", 4)
    make_iteration(other, 0, *BEFORE, num_shards=2, stages=["draft"])
    other.shard(0, "draft", 1, 2).manifest.unlink()
    result = igrpo("diff", run, other.root, "--json")
    assert result.code == 0
    assert "1 of 2 shards are complete" in result.stderr
    assert result.json["problems"]["draft"]["shared"] == 2
    assert result.json["figures"]["refine/fix_rate"]["b"] is None


def test_what_is_missing_or_wrong_says_what_to_type(run, tmp_path):
    empty = make_problems(tmp_path / "empty", 1).root
    for arguments, code, error, hint in [
        ([run], 2, f"'{run}' does not name two iterations or runs", "igrpo diff RUN 3 7"),
        ([run, 0, "x"], 2, f"'{run} 0 x' does not name two", "igrpo diff RUN 3 7"),
        ([run, 0, 1, "--iteration", 0], 2, "--iteration goes with two runs", "igrpo diff RUN 3 7"),
        ([run, 0, 10], 2, f"iteration 10 does not exist: {run} has 9, counted from 0", f"igrpo status {run}"),
        ([run, 0, 5], 3, f"iteration 5 of {run} has no complete draft shard", f"igrpo draft {run} --iteration 5"),
        ([run, empty], 3, f"no iteration was sampled both in {run} and in {empty}", f"igrpo status {run}"),
        ([run, tmp_path], 3, f"{tmp_path} is not a run directory: it has no run.toml", f"igrpo init {tmp_path}"),
        ([run, 0, 1, "--json", "--markdown"], 2, "--json and --markdown exclude each other", "use one of them"),
    ]:
        result = igrpo("diff", *arguments)
        assert (result.code, result.stdout) == (code, ""), arguments
        first, second = result.stderr.splitlines()
        assert first.startswith(f"error: {error}")
        assert second.startswith(f"hint: {hint}")


def test_damage_is_an_error(tmp_path):
    run = make_problems(tmp_path / "run", 4)
    make_iteration(run, 0, *BEFORE)
    make_iteration(run, 1, *AFTER)
    path = run.shard(1, "refine", 0, 1).data
    path.write_bytes(path.read_bytes()[:-9])
    result = igrpo("diff", run.root, 0, 1)
    assert (result.code, result.stdout) == (1, "")
    assert str(path) in result.stderr
