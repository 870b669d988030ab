"""States of stages and names of evaluations, from files laid out by hand."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igrpo_cli.inspection.shard_states import read_evaluations, stage_state
from igrpo_cli.store.layout import RunDirectory, eval_name, read_eval_name


def test_a_stage_that_nobody_has_begun_misses_all(tmp_path):
    state = stage_state(RunDirectory(tmp_path).shards(0, "draft", 3))
    assert (state.total, state.done, state.missing, state.damaged, state.in_progress) == (3, 0, (0, 1, 2), {}, ())


def test_kept_and_claimed_blocks_are_told_apart_and_the_youngest_tells_the_age(tmp_path):
    path = RunDirectory(tmp_path).shard(0, "draft", 1, 3)
    path.parts.mkdir(parents=True)
    names = ("block-000000.parquet", "block-000000.claim", "block-000001.claim", ".block-000001.parquet.tmp")
    for age, name in enumerate(names):
        (path.parts / name).touch()
        os.utime(path.parts / name, (1000 - age, 1000 - age))
    os.utime(path.parts, (10, 10))
    (shard,) = stage_state(RunDirectory(tmp_path).shards(0, "draft", 3)).in_progress
    assert (shard.shard, shard.done, shard.claimed, shard.last_change.timestamp()) == (1, 1, 2, 1000)


def test_evaluations_come_bare_first_and_by_number(tmp_path):
    for name in ("policy_0010", "policy_0002", "policy_0002_conditioned_best", "other--model", ".staged"):
        (tmp_path / "eval/arithmetic" / name).mkdir(parents=True)
    found = read_evaluations(RunDirectory(tmp_path), 2)
    assert [(each.model, each.selection, each.shards.done, each.shards.total) for each in found] == [
        (2, None, 0, 2),
        (10, None, 0, 2),
        ("other--model", None, 0, 2),
        (2, "best", 0, 2),
    ]


@pytest.mark.parametrize("content", ["", "[]", '{"avg_at_k": "x", "ci95": 3}', '{"ci95": [1]}', "\x00"])
def test_a_summary_that_says_nothing_is_none(tmp_path, content):
    directory = tmp_path / "eval/arithmetic/policy_0000"
    directory.mkdir(parents=True)
    (directory / "summary.json").write_text(content)
    (found,) = read_evaluations(RunDirectory(tmp_path), 1)
    assert (found.accuracy, found.ci95) == (None, None)


@given(
    st.one_of(st.integers(0, 99999), st.from_regex(r"[A-Za-z][A-Za-z0-9.-]{0,20}", fullmatch=True)),
    st.sampled_from([None, "each", "majority", "best"]),
)
def test_names_of_evaluations_are_read_as_they_were_made(policy, conditioned):
    assert read_eval_name(eval_name(policy, conditioned)) == (policy, conditioned)
