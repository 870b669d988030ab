"""`run.eval_every`: evaluations of `igrpo run`, and their curve in the report."""

from __future__ import annotations

import pytest

from command_line import files_below, igrpo, make_run

SETTINGS = (
    "data.problems_per_iteration=2",
    "run.eval_every=2",
    "run.eval_bench=arithmetic",
    "eval.limit=3",
    "eval.max_gen_toks=12",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three iterations, of which policies 0, 2 and 3 are evaluated."""
    run = make_run(tmp_path_factory.mktemp("evaluations") / "run", *SETTINGS, "run.num_iterations=3")
    first = igrpo("run", run, "--iterations", 2)
    assert first.code == 0, first.stderr
    assert evaluated(run) == ["policy_0000", "policy_0000_conditioned", "policy_0002", "policy_0002_conditioned"]
    assert igrpo("run", run).code == 0
    return run


def evaluated(run):
    return sorted(path.parent.name for path in run.glob("eval/arithmetic/*/summary.json"))


def test_the_first_the_last_and_every_second_policy_are_evaluated_without_and_with_draft(run):
    policies = ("policy_0000", "policy_0002", "policy_0003")
    assert evaluated(run) == sorted(f"{name}{kind}" for name in policies for kind in ("", "_conditioned"))
    before = files_below(run)
    assert igrpo("run", run).code == 0
    assert files_below(run) == before
    assert files_below(run) == before


def test_the_report_begins_with_the_held_out_curve(run):
    assert igrpo("report", run).code == 0
    page = (run / "report.html").read_text()
    assert page.index("Held-out accuracy: arithmetic") < page.index("At a glance</h2>")
    assert "<dt>method</dt><dd>iGRPO, 3 drafts + 3 refinements of each problem</dd>" in page


def test_an_evaluation_that_cannot_be_made_is_refused_before_anything_is_sampled(tmp_path):
    without = igrpo("init", tmp_path / "none", "--preset", "arithmetic", "--set", "run.eval_every=2")
    assert (without.code, "run.eval_every needs run.eval_bench" in without.stderr) == (2, True)
    run = make_run(tmp_path / "run", *SETTINGS)
    assert igrpo("set", run, "run.eval_bench=aritmetic").code == 0
    refused = igrpo("run", run)
    assert (refused.code, "aritmetic" in refused.stderr) == (3, True), refused.stderr
    assert not run.joinpath("iteration_0000").exists()


def test_two_runs_are_told_apart_by_what_differs(run, tmp_path):
    other = make_run(
        tmp_path / "other", "data.problems_per_iteration=2", "select.strategy=worst", "run.num_iterations=1"
    )
    assert igrpo("run", other).code == 0
    assert igrpo("report", run, other, "--output", tmp_path / "both.html").code == 0
    page = (tmp_path / "both.html").read_text()
    assert "<td>select.strategy</td><td>&#34;best&#34;</td><td>&#34;worst&#34;</td>" in page
    assert "<td>update.dtype</td>" not in page


def test_old_policies_are_removed_when_they_are_evaluated(tmp_path):
    run = make_run(tmp_path / "run", *SETTINGS, "run.num_iterations=4", "policy.keep=2")
    for iteration in range(4):
        for stage in ("draft", "select", "refine", "update"):
            assert igrpo(stage, run, "--iteration", iteration).code == 0
    assert policies(run) == [0, 2, 3, 4]  # no evaluation yet: 2 is on the schedule, 1 is not
    assert igrpo("run", run).code == 0
    assert evaluated(run)[::2] == ["policy_0000", "policy_0002", "policy_0004"]
    assert igrpo("extend", run, "--iterations", 5).code == 0
    assert igrpo("run", run).code == 0
    assert policies(run) == [0, 4, 5]
    for reader in ("verify", "status", "report"):
        assert igrpo(reader, run).code == 0
    assert igrpo("fork", run, tmp_path / "new", "--from", 4).code == 0
    assert igrpo("verify", tmp_path / "new").code == 0
    missing = igrpo("draft", run, "--iteration", 2)
    assert (missing.code, "policies/0002" in missing.stderr) == (3, True), missing.stderr


def policies(run):
    return sorted(int(path.name) for path in run.joinpath("policies").iterdir())
