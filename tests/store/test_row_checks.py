from __future__ import annotations

from dataclasses import replace

import pytest

from igrpo_cli.store.completion import commit_shard, read_problems, write_problems
from igrpo_cli.store.manifest import publish_manifest, read_manifest
from igrpo_cli.store.schema import ROLLOUTS, SELECTIONS
from igrpo_cli.store.verify import MAX_COMPLAINTS
from sample_run import (
    drafts,
    group,
    manifest_of,
    replace_rows,
    selection,
    told,
)


@pytest.mark.parametrize(
    ("blocks", "complaint"),
    [
        (drafts(0, 0), "group 0 stands twice"),
        (drafts(0, 3), "its groups do not count on from 0: group 3 stands in place 1"),
        (drafts(1, 0), "its groups do not count on from 0: group 1 stands in place 0"),
        ([group(0, iteration=1), group(1, iteration=1)[:2]], "group 1 has the samples 0, 1 instead of 0 to 2"),
        ([group(0, iteration=1), group(1, iteration=1)[::-1]], "group 1 has the samples 2, 1, 0 instead of 0 to 2"),
        ([group(0, iteration=1), group(1, iteration=0)], "group 1 has a row with iteration 0 instead of 1"),
        (drafts(0, 1, stage="eval"), "group 0 has a row with stage eval instead of draft"),
        (drafts(0, 1, problem_id="q"), "group 0 is of the problem q, which is not in the problems file"),
        (drafts(0, 1, completion="another"), "group 0 selects draft 1 of group 0, but its text or reward is another"),
    ],
)
def test_rows_that_do_not_fit_are_named(run, blocks, complaint):
    replace_rows(run.shard(1, "draft", 0, 2), ROLLOUTS, blocks)
    assert any(text.endswith(complaint) for text in told(run))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"draft_sample_id": 3}, "group 0 selects draft 3 of group 0, which does not exist"),
        ({"draft_group_id": 9}, "group 0 selects draft 1 of group 9, which does not exist"),
        ({"draft_reward": 0.5}, "group 0 selects draft 1 of group 0, but its text or reward is another"),
        ({"problem_id": "p1"}, "group 0 is of the problem p1, which its drafts are not"),
        ({"action": "drop"}, "group 0 is not one that was selected to be refined"),
        ({"action": "bare"}, "group 0 was refined from draft 1, its selection says None"),
        ({"iteration": 0}, "group 0 is of iteration 0"),
    ],
)
def test_selections_must_fit_their_drafts_and_refinements_their_selections(run, changes, complaint):
    rows = [selection(0, **{"iteration": 1, **changes}), selection(1, iteration=1, action="bare")]
    replace_rows(run.shard(1, "select", 0, 2), SELECTIONS, [rows])
    assert any(text.endswith(complaint) for text in told(run))


def test_a_group_that_was_not_refined_is_missed(run):
    replace_rows(run.shard(1, "refine", 0, 2), ROLLOUTS, drafts(0, stage="refine", draft_sample_id=1))
    assert any("its groups are not those of select: group 1 is missing" in text for text in told(run))


def test_dropped_groups_need_no_refinements(run):
    selections, refinements = run.shard(1, "select", 0, 2), run.shard(1, "refine", 0, 2)
    rows = [selection(0, iteration=1), selection(1, iteration=1, action="drop")]
    replace_rows(selections, SELECTIONS, [rows])
    replace_rows(refinements, ROLLOUTS, drafts(0, stage="refine", draft_sample_id=1))
    assert not any("group" in text for text in told(run))


def test_a_file_that_is_wrong_throughout_is_not_told_of_row_by_row(run):
    blocks = [group(group_id, iteration=1, problem_id="q") for group_id in range(50)]
    replace_rows(run.shard(1, "draft", 0, 2), ROLLOUTS, blocks)
    texts = [text for text in told(run) if text.startswith("iteration_0001/draft/shard-00000-of-00002.parquet")]
    assert len(texts) == MAX_COMPLAINTS + 1
    assert texts[-1].endswith("and more of the kind")


def test_counts_of_the_manifest_are_held_against_the_rows(run):
    path = run.shard(1, "refine", 0, 2)
    manifest = read_manifest(path)
    publish_manifest(path.manifest, replace(manifest, data=replace(manifest.data, groups=3)), replace=True)
    assert "iteration_0001/refine/shard-00000-of-00002.parquet it has 2 groups, its manifest says 3" in told(run)


def test_problems_that_stand_twice_are_counted(run):
    path = run.problems()
    identity = read_manifest(path).identity
    problems = [*read_problems(path), read_problems(path)[0]]
    commit_shard(
        path,
        identity,
        lambda again: write_problems(path, problems, replace=again),
        lambda data: manifest_of(identity, data),
        overwrite=True,
    )
    assert "problems.parquet 1 of 6 problem ids stand twice" in told(run)
