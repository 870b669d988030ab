"""`igrpo select`: select the draft of each problem that its refinements start from, without a GPU.

By default it is the draft with the highest reward (arXiv 2602.09000): d_hat = argmax_i R(d_i).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from igrpo_cli.pipeline.session import Session, StageRequest
from igrpo_cli.pipeline.stage_shards import StagePlan, StageShards
from igrpo_cli.records import EXTERNAL_GROUP, Selection, SelectionAction, StageReport
from igrpo_cli.seeds import derive_seed
from igrpo_cli.store.completion import open_input
from igrpo_cli.store.conflicts import require_same_settings
from igrpo_cli.store.layout import ShardPath

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from igrpo_cli.store.views import CandidateBlock

    DraftReader = Callable[[Session, ShardPath], Iterator[CandidateBlock]]

# numpy and pyarrow are imported where they are needed, so that a command with nothing to do starts fast.


def run(session: Session, request: StageRequest) -> StageReport:
    """Make the selection shards of one iteration that are not complete."""
    from igrpo_cli.store.schema import SELECTIONS

    stage = StageShards(session, request, plan(session, request.iteration))
    for shard in stage.unfinished():
        check_inputs(session, shard.path)
        # `commit` writes the rows that the function yields, and passes the counter of the manifest to it.
        stage.commit(shard, SELECTIONS, partial(selections_of_shard, session, shard.path))
    return stage.report()


def selections_of_shard(
    session: Session, path: ShardPath, counts: Counter[str], read: DraftReader | None = None
) -> Iterator[list[Selection]]:
    """Yield the selections of one shard block by block, and count them in `counts` by action, ties and zero rewards.

    `read` yields the drafts of a shard; None means `draft_blocks`.
    """
    read = read or draft_blocks
    if session.config.select.reads_all_drafts:
        blocks = _of_iteration(session, path, counts, read)
    else:
        (draft_shard,) = draft_shards(session, path)
        blocks = (select_drafts(session, path.iteration, block, counts) for block in read(session, draft_shard))
    for selections in blocks:
        if session.config.select.strategy == "external":
            selections = _with_external_drafts(session, selections)
        for selection in selections:
            counts[f"action_{selection.action}"] += 1
            counts["ties"] += selection.num_tied > 1
            if selection.num_refinements is not None:
                counts["refinements"] += selection.num_refinements
        yield selections


def select_drafts(session: Session, iteration: int, drafts: CandidateBlock, counts: Counter[str]) -> list[Selection]:
    """Return the selection of each of the B groups of a block, from the rewards [B, N] of their N drafts.

    `select.strategy` names other choices than the highest reward, and `select.ties` decides between equal rewards.
    Drafts that could not be graded are not selected (`reward.ungraded`). Where no other draft has a reward above 0,
    `select.all_zero` decides the action: `condition` (refine with a draft in the prompt), `bare` (refine without) or
    `drop` (do not refine). With `select.allocation = "adaptive"` it decides where no draft is right.
    """
    from igrpo_cli.algo.selection import choose_actions, choose_drafts, is_rewarded

    section = session.config.select
    seeds_B = [derive_seed(session.config.run.seed, "select", iteration, group_id) for group_id in drafts.group_ids]
    is_graded_BN, is_wrong_BN = _is_graded(session, drafts), _is_wrong(session, drafts)
    choices = choose_drafts(
        drafts.rewards_BN, drafts.lengths_BN, seeds_B, section.strategy, section.ties, is_graded_BN, is_wrong_BN
    )
    outcomes_BN = drafts.rewards_BN if section.allocation == "fixed" else is_graded_BN & ~is_wrong_BN
    actions = choose_actions(outcomes_BN, section.strategy, section.all_zero, is_graded_BN)
    counts["all_zero"] += int((~is_rewarded(drafts.rewards_BN, is_graded_BN)).sum())
    texts, answers, verdicts = drafts.chosen(choices.indices)
    return [
        Selection(
            iteration=iteration,
            group_id=group_id,
            problem_id=drafts.problem_ids[row],
            action=actions[row],
            draft_group_id=group_id,
            draft_sample_id=int(choices.indices[row]),
            draft=texts[row],
            draft_answer=answers[row] or "",
            draft_reward=float(drafts.rewards_BN[row, choices.indices[row]]),
            num_tied=int(choices.num_tied[row]),
            group_reward_mean=float(choices.reward_mean[row]),
            group_reward_std=float(choices.reward_std[row]),
            draft_verdict=verdicts[row],
        )
        for row, group_id in enumerate(drafts.group_ids)
    ]


def _is_graded(session: Session, drafts: CandidateBlock) -> NDArray[np.bool_]:
    """Return True [B, N] where a draft counts in the selection."""
    return drafts.is_graded_BN | (session.config.reward.ungraded == "wrong")


def _is_wrong(session: Session, drafts: CandidateBlock) -> NDArray[np.bool_]:
    """Return True [B, N] for wrong drafts: graded, with accuracy 0, or no reward above 0 if accuracy has no weight."""
    has_accuracy = bool(session.config.reward.weights.get("accuracy"))
    outcomes_BN = drafts.accuracies_BN if has_accuracy else drafts.rewards_BN
    is_wrong_BN: NDArray[np.bool_] = _is_graded(session, drafts) & (outcomes_BN <= 0)
    return is_wrong_BN


def plan(session: Session, iteration: int) -> StagePlan:
    """Return the plan of the selections of an iteration.

    Their inputs are the drafts, and the set of scores `select.scores`, if that replaces the rewards of the drafts.
    """

    def inputs_of(path: ShardPath) -> tuple[ShardPath, ...]:
        drafts, scores_name = draft_shards(session, path), session.config.select.scores
        if scores_name is None:
            return drafts
        return *drafts, *(session.run.scores(draft, scores_name) for draft in drafts)

    num_shards = session.config.run.num_shards
    return StagePlan("select", lambda shard: session.run.shard(iteration, "select", shard, num_shards), inputs_of)


def draft_shards(session: Session, path: ShardPath) -> tuple[ShardPath, ...]:
    """Return the draft shards that a selections shard reads: the one of its own groups, or all to exchange drafts."""
    drafts = session.run.shards(path.iteration, "draft", path.num_shards)
    return drafts if session.config.select.reads_all_drafts else (drafts[path.shard],)


def check_inputs(session: Session, path: ShardPath) -> None:
    """Check that the drafts and scores that a selections shard reads are intact and were made with the same settings.

    Raises MissingInputError, DamagedFileError and ConflictError.
    """
    from igrpo_cli.store.scores import open_scores

    drafts = draft_shards(session, path)
    require_same_settings({draft: open_input(draft) for draft in drafts})
    scores_name = session.config.select.scores
    if scores_name is not None:
        counts_ungraded = session.config.reward.ungraded == "wrong"
        scores = {session.run.scores(draft, scores_name): draft for draft in drafts}
        require_same_settings(
            {path: open_scores(path, draft, counts_ungraded=counts_ungraded) for path, draft in scores.items()}
        )


def draft_blocks(session: Session, draft_shard: ShardPath) -> Iterator[CandidateBlock]:
    """Yield the groups of a draft shard block by block, with the rewards of `select.scores` if it is set.

    Raises as `iterate_candidates`, and DamagedFileError at the end where groups are missing.
    """
    from igrpo_cli.store.row_checks import require_groups
    from igrpo_cli.store.views import iterate_candidates

    scores_name = session.config.select.scores
    scores_file = None if scores_name is None else session.run.scores(draft_shard, scores_name).data
    group_ids: list[int] = []
    for block in iterate_candidates(draft_shard.data, scores_file):
        group_ids += block.group_ids
        yield block
    # Nothing is published before the last block has been read.
    require_groups(draft_shard, group_ids, session.config.blocks().groups_of_shard(draft_shard.shard))


def _of_iteration(
    session: Session, path: ShardPath, counts: Counter[str], read: DraftReader
) -> Iterator[list[Selection]]:
    """Yield the selections of one shard, which depend on the drafts of all shards.

    An adaptive allocation shares the refinements of the iteration out. With the strategies `shuffled` and
    `shuffled_wrong`, which are controls, each group gets the draft of another group.
    """
    sizes: list[tuple[int, int]] = []
    selections: list[Selection] = []
    num_right_and_wrong: list[tuple[int, int]] = []
    for draft_shard in draft_shards(session, path):
        is_own = draft_shard.shard == path.shard
        for block in read(session, draft_shard):
            selections += select_drafts(session, path.iteration, block, counts if is_own else Counter())
            sizes.append((draft_shard.shard, len(block.group_ids)))
            num_wrong_B = _is_wrong(session, block).sum(axis=1)
            num_right_B = _is_graded(session, block).sum(axis=1) - num_wrong_B
            num_right_and_wrong += zip(num_right_B.tolist(), num_wrong_B.tolist(), strict=True)
    if session.config.select.allocation == "adaptive":
        selections = _with_allocation(session, path.iteration, selections, num_right_and_wrong)
    if session.config.select.strategy in ("shuffled", "shuffled_wrong"):
        has_wrong = [num_wrong > 0 for _, num_wrong in num_right_and_wrong]
        selections = _with_exchanged_drafts(session, path.iteration, selections, has_wrong)
    position = 0
    for shard, size in sizes:
        if shard == path.shard:
            yield selections[position : position + size]
        position += size


def _with_allocation(
    session: Session, iteration: int, selections: list[Selection], num_right_and_wrong: list[tuple[int, int]]
) -> list[Selection]:
    """Return the selections of an iteration with the numbers of refinements; a group without any is dropped."""
    from igrpo_cli.algo.selection import allocate

    number, maximum = session.config.refine.num_generations, session.config.select.max_refinements
    open_groups = [row for row, each in enumerate(selections) if each.action != "drop"]
    right, wrong = zip(*(num_right_and_wrong[row] for row in open_groups), strict=True) if open_groups else ((), ())
    seed = derive_seed(session.config.run.seed, "allocate", iteration)
    sizes = allocate(right, wrong, number * len(selections), maximum or max(2, 2 * number), seed).tolist()
    if not any(sizes):  # All drafts are right. Without refinements there might be nothing to train on.
        sizes = [number] * len(open_groups)
    allocated = dict(zip(open_groups, sizes, strict=True))
    return [
        replace(each, num_refinements=allocated.get(row, 0), action=each.action if allocated.get(row) else "drop")
        for row, each in enumerate(selections)
    ]


def _with_exchanged_drafts(
    session: Session, iteration: int, selections: list[Selection], has_wrong: list[bool]
) -> list[Selection]:
    """Return the selections of an iteration, each with the draft of another group."""
    from igrpo_cli.algo.selection import partners, wrong_partners

    own_actions = [selection.action for selection in selections]
    seed = derive_seed(session.config.run.seed, "shuffle", iteration)
    if session.config.select.strategy == "shuffled_wrong":
        partner, actions = wrong_partners(own_actions, has_wrong, seed)
    else:
        partner, actions = partners(own_actions, seed)
    return [
        _with_draft_of(selection, selections[partner[row]], actions[row]) for row, selection in enumerate(selections)
    ]


def _with_draft_of(selection: Selection, other: Selection, action: SelectionAction) -> Selection:
    return replace(
        selection,
        action=action,
        draft_group_id=other.group_id,
        draft_sample_id=other.draft_sample_id,
        draft=other.draft,
        draft_answer=other.draft_answer,
        draft_reward=other.draft_reward,
        draft_verdict=other.draft_verdict,
    )


def _with_external_drafts(session: Session, selections: list[Selection]) -> list[Selection]:
    """Return the selections with drafts of `select.external`: of several drafts of a problem, a seeded choice."""
    from igrpo_cli.problems.external import require_external_drafts

    drafts, location = session.external_drafts(), session.config.select.external_in_use
    assert location is not None
    require_external_drafts(drafts, [selection.problem_id for selection in selections], location)
    replaced = []
    for selection in selections:
        candidates = drafts[selection.problem_id]
        seed = derive_seed(session.config.run.seed, "external", selection.iteration, selection.group_id)
        index = seed % len(candidates)
        replaced.append(
            replace(
                selection,
                draft_group_id=EXTERNAL_GROUP,
                draft_sample_id=index,
                draft=candidates[index],
                draft_answer="",
                draft_reward=0.0,
                num_tied=1,
                draft_verdict=None,
            )
        )
    return replaced
