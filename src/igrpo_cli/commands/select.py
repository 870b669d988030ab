"""`igrpo select`: d_hat = argmax_i R(d_i), the draft of each problem that its refinements will see. CPU only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from igrpo_cli.config import stage_identity
from igrpo_cli.pipeline.provenance import Provenance
from igrpo_cli.pipeline.session import Session, StageRequest
from igrpo_cli.pipeline.shard_work import ShardWork, work_through
from igrpo_cli.pipeline.whole_groups import groups_of_shard, require_groups
from igrpo_cli.records import Selection, SelectionAction, StageReport
from igrpo_cli.seeds import derive_seed
from igrpo_cli.store.completion import commit_shard, open_input
from igrpo_cli.store.conflicts import require_same_settings
from igrpo_cli.store.layout import ShardPath
from igrpo_cli.store.manifest import DataFile, Identity, Manifest

if TYPE_CHECKING:
    from igrpo_cli.store.views import CandidateBlock


def run(session: Session, request: StageRequest) -> StageReport:
    """Choose a draft for every group of the requested shards."""
    num_shards = session.config.run.num_shards

    def path_of(shard: int) -> ShardPath:
        return session.run.shard(request.iteration, "select", shard, num_shards)

    def identity_of(path: ShardPath) -> Identity:
        return Identity(
            stage="select",
            iteration=path.iteration,
            shard=path.shard,
            num_shards=path.num_shards,
            config=stage_identity(session.config, "select"),
            inputs=session.inputs(*_inputs(session, path)),
        )

    def make(path: ShardPath, identity: Identity, *, overwrite: bool) -> Manifest:
        return _make_shard(session, path, identity, overwrite=overwrite)

    return work_through(ShardWork("select", path_of, identity_of), make, request, session.console.note)


def _draft_shards(session: Session, path: ShardPath) -> tuple[ShardPath, ...]:
    """The shard's own drafts; for `shuffled`, whose drafts come from anywhere in the iteration, all of them."""
    drafts = session.run.shards(path.iteration, "draft", path.num_shards)
    return drafts if session.config.select.strategy == "shuffled" else (drafts[path.shard],)


def _inputs(session: Session, path: ShardPath) -> tuple[ShardPath, ...]:
    """The drafts and, where a set of scores decides, their scores."""
    drafts, name = _draft_shards(session, path), session.config.select.scores
    return drafts if name is None else (*drafts, *(session.run.scores(draft, name) for draft in drafts))


def _make_shard(session: Session, path: ShardPath, identity: Identity, *, overwrite: bool) -> Manifest:
    from igrpo_cli.store.schema import SELECTIONS
    from igrpo_cli.store.scores import open_scores
    from igrpo_cli.store.tables import write_rows

    provenance = Provenance()
    drafts, name = _draft_shards(session, path), session.config.select.scores
    require_same_settings({each: open_input(each) for each in drafts})
    if name is not None:
        scores = {each: session.run.scores(each, name) for each in drafts}
        require_same_settings({of_draft: open_scores(of_draft, each) for each, of_draft in scores.items()})
    counts: Counter[str] = Counter()

    def write(replace_existing: bool) -> DataFile:
        counts.clear()
        blocks = _counted(_selections(session, path), counts)
        return write_rows(path.data, SELECTIONS, blocks, replace=replace_existing)

    def describe(data: DataFile) -> Manifest:
        return provenance.manifest(identity, data, counts=counts)

    return commit_shard(path, identity, write, describe, overwrite=overwrite)


def _counted(blocks: Iterable[list[Selection]], counts: Counter[str]) -> Iterator[list[Selection]]:
    for block in blocks:
        counts.update(f"action_{selection.action}" for selection in block)
        counts["ties"] += sum(selection.num_tied > 1 for selection in block)
        counts["all_zero"] += sum(row.group_reward_mean == 0 == row.group_reward_std for row in block)
        yield block


def _selections(session: Session, path: ShardPath) -> Iterator[list[Selection]]:
    """The selections of one shard, block by block."""
    if session.config.select.strategy == "shuffled":
        yield from _shuffled(session, path)
        return
    (draft_shard,) = _draft_shards(session, path)
    for block in _candidates(session, draft_shard):
        yield _choose(session, path.iteration, block)


def _candidates(session: Session, draft_shard: ShardPath) -> Iterator[CandidateBlock]:
    from igrpo_cli.store.views import iterate_candidates

    name = session.config.select.scores
    scores = None if name is None else session.run.scores(draft_shard, name).data
    found: list[int] = []
    for block in iterate_candidates(draft_shard.data, scores):
        found += block.group_ids
        yield block
    require_groups(draft_shard, found, groups_of_shard(session.config, draft_shard.shard))


def _choose(session: Session, iteration: int, block: CandidateBlock) -> list[Selection]:
    """Apply the strategy, the tie rule and the all-zero rule to the groups of one block."""
    from igrpo_cli.algo.selection import choose_actions, choose_drafts

    section, run_seed = session.config.select, session.config.run.seed
    seeds_B = [derive_seed(run_seed, "select", iteration, group_id) for group_id in block.group_ids]
    choices = choose_drafts(block.rewards_BN, block.lengths_BN, seeds_B, section.strategy, section.ties)
    actions = choose_actions(block.rewards_BN, section.strategy, section.all_zero)
    drafts, answers = block.texts(choices.indices)
    return [
        Selection(
            iteration=iteration,
            group_id=group_id,
            problem_id=block.problem_ids[row],
            action=actions[row],
            draft_group_id=group_id,
            draft_sample_id=int(choices.indices[row]),
            draft=drafts[row],
            draft_answer=answers[row] or "",
            draft_reward=float(block.rewards_BN[row, choices.indices[row]]),
            num_tied=int(choices.num_tied[row]),
            group_reward_mean=float(choices.reward_mean[row]),
            group_reward_std=float(choices.reward_std[row]),
        )
        for row, group_id in enumerate(block.group_ids)
    ]


def _shuffled(session: Session, path: ShardPath) -> Iterator[list[Selection]]:
    """Every group's best draft goes to another group of the iteration; this shard's groups, block by block."""
    from igrpo_cli.algo.selection import partners

    blocks = [
        (draft_shard.shard, _choose(session, path.iteration, block))
        for draft_shard in _draft_shards(session, path)
        for block in _candidates(session, draft_shard)
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
