"""Shards of one stage that were made with different settings: whoever reads them together refuses them by name."""

from __future__ import annotations

import shutil

import pytest

from command_line import files_below, igrpo, make_run, sets

EVAL = ("--bench", "arithmetic", "--samples", 1, *sets("eval.limit=4", "eval.max_gen_toks=8"))


@pytest.fixture(scope="module")
def unsampled(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "two-shards", "run.num_shards=2", "data.problems_per_iteration=4")


@pytest.fixture
def run(unsampled, tmp_path):
    return shutil.copytree(unsampled, tmp_path / "run")


def done(*arguments):
    result = igrpo(*arguments)
    assert result.code == 0, result.stderr
    return result


def refused(run, *arguments):
    before = files_below(run)
    result = igrpo(*arguments)
    assert (result.code, result.stdout) == (4, "")
    assert files_below(run) == before
    return result.stderr


def test_an_update_refuses_drafts_of_different_settings(run):
    done("draft", run, "--shard", 0)
    done("draft", run, "--shard", 1, *sets("draft.num_generations=4"))
    done("select", run)
    done("refine", run)
    stderr = refused(run, "update", run)
    assert "draft.num_generations is 4, but 3 in draft shard 0 of 2" in stderr
    assert "draft shard 1 of 2" in stderr
    assert f"hint: make one of both again: igrpo draft {run} --iteration 0 --shard 1 --overwrite, or" in stderr
    for stage in ("draft", "select", "refine"):
        done(stage, run, "--shard", 1, "--overwrite")
    done("update", run)


def test_an_update_refuses_selections_of_different_settings(run):
    done("draft", run)
    done("select", run, "--shard", 0)
    done("select", run, "--shard", 1, *sets("select.strategy=random"))
    done("refine", run)
    assert "select.strategy is 'random', but 'best' in select shard 0 of 2" in refused(run, "update", run)


def test_a_selection_of_all_drafts_refuses_drafts_of_different_settings(run):
    done("draft", run, "--shard", 0)
    done("draft", run, "--shard", 1, *sets("draft.temperature=0.5"))
    stderr = refused(run, "select", run, *sets("select.strategy=shuffled"))
    assert "draft.temperature is 0.5, but 1.0 in draft shard 0 of 2" in stderr
    assert "draft shard 1 of 2" in stderr
    done("select", run)


def test_scores_of_different_weights_make_no_set(run):
    done("draft", run)
    grade = ("grade", run, "--stage", "draft", "--iteration", 0, "--scores", "own")
    done(*grade, "--shard", 0, "--reward", "accuracy=1")
    done(*grade, "--shard", 1, "--reward", "accuracy=5")
    by_scores = sets("select.strategy=shuffled", "select.scores=own")
    stderr = refused(run, "select", run, *by_scores)
    assert "scores shard 1 of 2" in stderr
    assert "{'accuracy': 5.0}, but {'accuracy': 1.0}" in stderr
    verified = igrpo("verify", run)
    assert verified.code == 1
    assert "{'accuracy': 5.0}, but {'accuracy': 1.0}" in verified.stdout


def test_samples_of_different_settings_have_no_summary(run):
    done("eval", run, *EVAL, "--shard", 0)
    result = igrpo("eval", run, *EVAL, "--shard", 1, *sets("eval.temperature=0.2"))
    assert (result.code, result.stdout) == (4, "")
    assert "eval.temperature is 0.2, but" in result.stderr
    assert f"hint: make one of both again: igrpo eval {run} --bench arithmetic --iteration 0 --shard 1" in result.stderr
    assert not list(run.rglob("summary.json"))
    refused(run, "eval", run, *EVAL, "--with-draft")
    done("eval", run, *EVAL, "--shard", 1, "--overwrite")
    assert list(run.rglob("summary.json"))
