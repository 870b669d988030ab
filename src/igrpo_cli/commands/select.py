"""`igrpo select`: d_hat = argmax_i R(d_i), the draft of each problem that its refinements see. Runs on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from igrpo_cli.pipeline.session import Session, StageRequest
from igrpo_cli.pipeline.stage_shards import StagePlan, StageShards
from igrpo_cli.records import Selection, SelectionAction, StageReport
from igrpo_cli.seeds import derive_seed
from igrpo_cli.store.completion import open_input
from igrpo_cli.store.conflicts import require_same_settings
from igrpo_cli.store.layout import ShardPath
from igrpo_cli.store.row_checks import require_groups

if TYPE_CHECKING:
    from igrpo_cli.store.views import CandidateBlock


def run(session: Session, request: StageRequest) -> StageReport:
    """Select a draft for every group of the requested shards."""
    from igrpo_cli.store.schema import SELECTIONS

    stage = StageShards(session, request, plan(session, request.iteration))
    for shard in stage.unfinished():
        require_drafts(session, shard.path)
        stage.commit(shard, SELECTIONS, partial(selections_of_shard, session, shard.path))
    return stage.report()


def select(session: Session, iteration: int, drafts: CandidateBlock) -> list[Selection]:
    """Return the selection of each group of a block: by default the draft with the highest reward.

    `select.strategy`, `select.ties` and `select.all_zero` name the other choices.
    """
    from igrpo_cli.algo.selection import choose_actions, choose_drafts

    section = session.config.select
    seeds_B = [derive_seed(session.config.run.seed, "select", iteration, group_id) for group_id in drafts.group_ids]
    choices = choose_drafts(drafts.rewards_BN, drafts.lengths_BN, seeds_B, section.strategy, section.ties)
    actions = choose_actions(drafts.rewards_BN, section.strategy, section.all_zero)
    texts, answers = drafts.texts(choices.indices)
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
        )
        for row, group_id in enumerate(drafts.group_ids)
    ]


def selections_of_shard(session: Session, path: ShardPath, counts: Counter[str]) -> Iterator[list[Selection]]:
    """Yield the selections of one shard block by block, and count actions, ties and groups that earned nothing."""
    if session.config.select.strategy == "shuffled":
        blocks = _shuffled(session, path)
    else:
        (draft_shard,) = draft_shards(session, path)
        blocks = (select(session, path.iteration, block) for block in _draft_blocks(session, draft_shard))
    for selections in blocks:
        counts.update(f"action_{selection.action}" for selection in selections)
        counts["ties"] += sum(selection.num_tied > 1 for selection in selections)
        counts["all_zero"] += sum(row.group_reward_mean == 0 == row.group_reward_std for row in selections)
        yield selections


def plan(session: Session, iteration: int) -> StagePlan:
    """Return the plan of the selections of an iteration. Its inputs are the drafts, and scores if they decide."""

    def inputs_of(path: ShardPath) -> tuple[ShardPath, ...]:
        drafts, scores = draft_shards(session, path), session.config.select.scores
        return drafts if scores is None else (*drafts, *(session.run.scores(draft, scores) for draft in drafts))

    num_shards = session.config.run.num_shards
    return StagePlan("select", lambda shard: session.run.shard(iteration, "select", shard, num_shards), inputs_of)


def draft_shards(session: Session, path: ShardPath) -> tuple[ShardPath, ...]:
    """Return the draft shards that a shard of selections reads: its own, or all for the strategy `shuffled`."""
    drafts = session.run.shards(path.iteration, "draft", path.num_shards)
    return drafts if session.config.select.strategy == "shuffled" else (drafts[path.shard],)


def require_drafts(session: Session, path: ShardPath) -> None:
    """Check the data of the drafts and scores that a shard reads, and that all were made with the same settings.

    Raises MissingInputError, DamagedFileError and ConflictError.
    """
    from igrpo_cli.store.scores import open_scores

    drafts, name = draft_shards(session, path), session.config.select.scores
    require_same_settings({draft: open_input(draft) for draft in drafts})
    if name is not None:
        scores = {draft: session.run.scores(draft, name) for draft in drafts}
        require_same_settings({of_draft: open_scores(of_draft, draft) for draft, of_draft in scores.items()})


def _draft_blocks(session: Session, draft_shard: ShardPath) -> Iterator[CandidateBlock]:
    from igrpo_cli.store.views import iterate_candidates

    name = session.config.select.scores
    scores = None if name is None else session.run.scores(draft_shard, name).data
    found: list[int] = []
    for block in iterate_candidates(draft_shard.data, scores):
        found += block.group_ids
        yield block
    require_groups(draft_shard, found, session.config.blocks().groups_of_shard(draft_shard.shard))


def _shuffled(session: Session, path: ShardPath) -> Iterator[list[Selection]]:
    """The selections of one shard where every group sees the best draft of another group of the iteration."""
    from igrpo_cli.algo.selection import partners

    blocks = [
        (draft_shard.shard, select(session, path.iteration, block))
        for draft_shard in draft_shards(session, path)
        for block in _draft_blocks(session, draft_shard)
    ]
    own = [selection for _, block in blocks for selection in block]
    seed = derive_seed(session.config.run.seed, "shuffle", path.iteration)
    partner, actions = partners([selection.action for selection in own], seed)
    position = 0
    for shard, block in blocks:
        rows = range(position, position + len(block))
        position += len(block)
        if shard == path.shard:
            yield [_with_draft_of(own[row], own[partner[row]], actions[row]) for row in rows]


def _with_draft_of(selection: Selection, other: Selection, action: SelectionAction) -> Selection:
    return replace(
        selection,
        action=action,
        draft_group_id=other.group_id,
        draft_sample_id=other.draft_sample_id,
        draft=other.draft,
        draft_answer=other.draft_answer,
        draft_reward=other.draft_reward,
    )
