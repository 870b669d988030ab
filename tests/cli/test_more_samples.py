"""`igrpo eval --samples N` where an evaluation with another number of samples is on disk."""

from __future__ import annotations

import shutil

import pytest

import igrpo_cli.store.completion as completion
from command_line import files_below, igrpo, make_run, sets
from igrpo_cli.errors import IgrpoError
from igrpo_cli.records import Rollout
from igrpo_cli.store.parts import PartStore
from igrpo_cli.store.tables import read_records

LIMIT = sets("eval.limit=5", "eval.max_gen_toks=16")


def request(run, samples, *flags):
    return ["eval", run, "--bench", "arithmetic", "--samples", samples, *LIMIT, "--json", *flags]


def done(run, samples, *flags):
    result = igrpo(*request(run, samples, *flags))
    assert result.code == 0, result.stderr
    return result.json


def rows_of(run, name="policy_0000"):
    """Rows by group and sample, in the order of the files."""
    shards = sorted((run / "eval/arithmetic" / name).glob("*.parquet"))
    rows = [row for shard in shards for row in read_records(shard, Rollout)]
    return {(row.group_id, row.sample_id): row for row in rows}


def run_of(path):
    """Three blocks of at most two groups, in two shards."""
    return make_run(path, "run.num_shards=2")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run that is evaluated with two samples, without and with draft."""
    run = run_of(tmp_path_factory.mktemp("two") / "run")
    done(run, 2)
    done(run, 2, "--with-draft")
    return run


@pytest.fixture
def run(tmp_path, two):
    return shutil.copytree(two, tmp_path / "run")


def test_missing_samples_are_added_and_are_those_of_an_evaluation_from_the_start(tmp_path, run):
    before, figures = rows_of(run), done(run, 5)
    after, whole = rows_of(run), run_of(tmp_path / "whole")
    assert (figures["samples"], figures["problems"]) == (5, 5)
    assert {key: after[key] for key in before} == before
    from_start = done(whole, 5)
    expected = rows_of(whole)
    assert list(after) == list(expected) == [(group, sample) for group in range(5) for sample in range(5)]
    for key, row in after.items():
        assert (row.seed, row.completion_ids, row.verdict) == (
            expected[key].seed,
            expected[key].completion_ids,
            expected[key].verdict,
        )
        # Other completions share the batch, so the last bits may differ.
        assert row.sampling_logprobs == pytest.approx(expected[key].sampling_logprobs, abs=1e-5)
    assert {**figures, "shards": []} == {**from_start, "shards": []}
    assert not list(run.glob("eval/arithmetic/policy_0000/.parts/*/block*"))


def test_a_reward_function_of_whole_groups_is_called_with_old_and_new_samples(tmp_path, monkeypatch):
    module = "def size(completions, **kwargs):\n    number = len(completions)\n"
    module += "    return [number + place / 8 for place in range(number)]\n"
    (tmp_path / "group_size.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "run", 'reward.functions={size="group_size:size"}', "reward.weights={size=1}")
    for samples in (1, 2):
        done(run, samples)
        done(run, samples, "--with-draft")
    for rows in (rows_of(run), rows_of(run, "policy_0000_conditioned")):
        assert {key: row.reward for key, row in rows.items()} == {(g, s): 2 + s / 8 for g in range(5) for s in range(2)}


def test_fewer_samples_than_are_there_sample_nothing(run):
    done(run, 3)
    before = files_below(run)
    result = igrpo(*request(run, 2))
    assert (result.code, result.json["samples"]) == (0, 3)
    assert "arithmetic: 3 samples per problem are there, and 2 were asked for" in result.stderr
    assert files_below(run) == before
    assert done(run, 1, "--overwrite")["samples"] == 1


def test_another_setting_is_still_a_conflict(run):
    result = igrpo(*request(run, 3, *sets("eval.temperature=0.25")))
    assert result.code == 4
    assert "eval.temperature" in result.stderr


def test_tasks_add_to_a_shard_each_and_the_last_one_prints_the_figures(run):
    assert done(run, 4, "--shard", 0)["shards_still_missing"] == 1
    told = (
        f"igrpo eval {run} --bench arithmetic --iteration 0 --samples 4 --set eval.limit=5 --set eval.max_gen_toks=16"
    )
    folder = run / "eval/arithmetic/policy_0000"
    for command in (request(run, 4, "--with-draft"), ["eval", "--compare", folder, folder]):
        refused = igrpo(*command)
        assert refused.code == 4
        assert "different numbers of samples per problem: 4 in shard 0, 2 in shard 1" in refused.stderr
        assert f"hint: `{told}` adds the missing samples" in refused.stderr
    # Without a number the larger one counts, so that the evaluation becomes whole.
    assert done(run, 2, "--shard", 1)["samples"] == 4
    assert igrpo("verify", run, "--json").json["problems"]  # The refinements are of fewer samples.
    refined = rows_of(run, "policy_0000_conditioned")
    assert done(run, 4, "--with-draft")["samples"] == 4
    added = rows_of(run, "policy_0000_conditioned")
    assert {key: added[key] for key in refined} == refined
    assert {row.draft_sample_id for row in added.values()} == {0, 1, 2, 3}
    verified = igrpo("verify", run)
    assert verified.code == 0, verified.stdout


def test_what_was_stopped_is_completed_by_the_same_command(tmp_path, run, monkeypatch):
    undisturbed = shutil.copytree(run, tmp_path / "undisturbed")
    done(undisturbed, 4)
    before, write = rows_of(run), PartStore.write

    def stop(store, block, rows, *proposals):
        if block:
            raise IgrpoError("stopped")
        write(store, block, rows, *proposals)

    with monkeypatch.context() as patch:
        patch.setattr(PartStore, "write", stop)
        assert igrpo(*request(run, 4)).code == 1
    assert rows_of(run) == before, "the samples that are there stay until all are sampled"
    with monkeypatch.context() as patch:
        patch.setattr(completion, "publish_manifest", lambda *_: stop(None, 1, []))
        assert igrpo(*request(run, 4)).code == 1
    assert done(run, 4)["samples"] == 4
    assert list(rows_of(run).values()) == list(rows_of(undisturbed).values())
