"""The stories of an iteration, made by hand: what belongs together, and what fixed, broken and no gradient mean."""

from __future__ import annotations

import pytest

from igrpo_cli.errors import ConflictError, DamagedFileError
from igrpo_cli.inspection.stories import read_stories, selection_settings
from made_iteration import SELECT, Group, make_iteration, make_problems, make_update

FIXED = Group(["4", "5"], ["!4", "4"])
BROKEN = Group(["5", "!4"], ["4", "!4"], selected=1)
COPIED = Group(["!4", "!4"], ["!4", "!4"])
BARE = Group(["4", "5"], ["!4", "5"], action="bare")


@pytest.fixture
def run(tmp_path):
    return make_problems(tmp_path / "run", 4)


def test_the_stages_of_a_group_come_together_whatever_the_shards(run):
    make_iteration(run, 0, FIXED, BROKEN, COPIED, BARE, num_shards=1)
    make_iteration(run, 1, FIXED, BROKEN, COPIED, BARE, num_shards=3)
    for iteration in (0, 1):
        stories = list(read_stories(run, iteration))
        assert [story.group_id for story in stories] == [0, 1, 2, 3]
        assert [story.problem.problem_id for story in stories] == ["p0", "p1", "p2", "p3"]
        broken = stories[1]
        assert [draft.completion for draft in broken.drafts] == ["5", "4"]
        assert [(row.stage, row.completion) for row in broken.refinements] == [("refine", "4"), ("refine", "4")]
        assert broken.selection is not None
        assert (broken.selection.draft_sample_id, broken.draft_shown, broken.draft_verdict) == (1, "4", "correct")
    assert selection_settings(run, 1) == SELECT


def test_fixed_broken_and_without_gradient(run):
    make_iteration(run, 0, FIXED, BROKEN, COPIED, BARE)
    told = [(story.is_fixed, story.is_broken, story.has_reward_variance) for story in read_stories(run, 0)]
    # The refinements of the last group saw no draft: there is nothing that they could fix.
    assert told == [(True, False, True), (False, True, True), (False, False, False), (False, False, True)]


def test_a_verification_neither_fixes_nor_breaks_its_draft(run):
    make_iteration(run, 0, FIXED, BROKEN, config={"select": SELECT, "reward": {"refinements": "verdict"}})
    for story in read_stories(run, 0):
        assert (story.is_fixed, story.is_broken, story.has_verifications) == (False, False, True)


def test_a_draft_of_another_group_is_judged_by_its_own_verdict(run):
    shuffled = Group(["5", "5"], ["!4", "5"], selected=1, shown_group=0)
    make_iteration(run, 0, Group(["5", "!4"], ["!4"]), shuffled, num_shards=2)
    story = list(read_stories(run, 0))[1]
    assert (story.draft_verdict, story.is_broken, story.is_fixed) == ("correct", True, False)


def test_advantages_are_those_of_the_latest_step(run):
    make_iteration(run, 0, FIXED, COPIED)
    assert [story.advantages for story in read_stories(run, 0)] == [{}, {}]
    make_update(run, 0, {(1, 0, "refine", 0): 1.5, (0, 0, "refine", 0): 0.5, (0, 0, "refine", 1): -0.5})
    first, second = read_stories(run, 0)
    assert first.advantages == {("refine", 0): 1.5, ("refine", 1): -0.5}
    assert second.advantages == {}


def test_an_iteration_is_told_as_far_as_it_has_come(run):
    make_iteration(run, 0, FIXED, BROKEN, COPIED, BARE, num_shards=2, stages=["draft"])
    run.shard(0, "draft", 0, 2).manifest.unlink()
    told = [
        (story.group_id, story.selection, story.refinements, story.has_reward_variance)
        for story in read_stories(run, 0)
    ]
    # Without refinements the gradient is that of the drafts, as in plain GRPO.
    assert told == [(2, None, [], False), (3, None, [], False)]
    make_iteration(run, 0, FIXED, BROKEN, COPIED, BARE, num_shards=2, stages=["select"])
    assert [story.draft_verdict for story in read_stories(run, 0)] == ["correct", None]
    assert list(read_stories(run, 7)) == []
    assert selection_settings(run, 7) == {}


def test_damage_is_told_and_not_shown(run):
    make_iteration(run, 0, FIXED, BROKEN)
    path = run.shard(0, "refine", 0, 1).data
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="is damaged"):
        list(read_stories(run, 0))


def test_shards_of_two_cuts_are_not_mixed(run):
    make_iteration(run, 0, FIXED, BROKEN, num_shards=1)
    make_iteration(run, 0, FIXED, BROKEN, num_shards=2)
    with pytest.raises(ConflictError, match="shards of 1 and shards of 2"):
        list(read_stories(run, 0))


def test_a_problem_that_the_run_does_not_have(tmp_path):
    run = make_problems(tmp_path / "few", 1)
    make_iteration(run, 0, FIXED, BROKEN)
    with pytest.raises(DamagedFileError, match="holds drafts of 'p1', which is not a problem of the run"):
        list(read_stories(run, 0))
