"""Read the rollouts of one iteration from its shards: the groups to train on and the metrics of the iteration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from igrpo_cli.algo import Baseline
from igrpo_cli.algo.diagnostics import refinement_metrics, rollout_metrics, selection_metrics
from igrpo_cli.config.rewards import RewardSection
from igrpo_cli.config.sections import temperature_of
from igrpo_cli.config.update import UpdateSection
from igrpo_cli.errors import ConflictError
from igrpo_cli.pipeline.session import Session
from igrpo_cli.records import EXTERNAL_GROUP, Rollout, Selection, TrainingGroup
from igrpo_cli.store.completion import open_input
from igrpo_cli.store.conflicts import require_same_settings
from igrpo_cli.store.layout import ShardPath
from igrpo_cli.store.manifest import Manifest
from igrpo_cli.store.policies import Policy
from igrpo_cli.store.row_checks import require_groups, require_whole

TRAINED_STAGES = {"drafts": ("draft",), "refinements": ("refine",), "both": ("draft", "refine")}
GREEDY_TEMPERATURE = 1.0
"""Greedy sampling has no temperature to divide logits by: log-probs are then taken of the plain distribution."""


@dataclass(frozen=True)
class Observations:
    """Holds all rollouts and selections of one iteration, in order of group and sample."""

    rollouts: dict[str, list[Rollout]]
    """Rollouts by stage; a run of plain GRPO has no `refine`."""
    sampling: dict[str, Mapping[str, Any]]
    """Sampling settings by stage, as recorded with the shards."""
    selections: list[Selection]
    has_verifications: bool = False
    """True if the refinements are rewarded for the verdict on their draft."""

    def groups(self, section: UpdateSection, reward: RewardSection) -> list[TrainingGroup]:
        """Return the groups that `update.train_on` names, without advantages yet: drafts first, in order of group."""
        groups = [
            _training_group(rollouts, self.sampling[stage], section, reward)
            for stage in TRAINED_STAGES[section.train_on]
            for rollouts in _by_group(self.rollouts[stage])
        ]
        if section.refinement_prompt == "without_draft":
            prompts = {draft.group_id: draft.prompt_ids for draft in self.rollouts["draft"]}
            groups = [
                replace(group, prompt_ids=prompts[group.group_id], shaping_gamma=section.shaping_gamma)
                if group.stage == "refine"
                else group
                for group in groups
            ]
        if section.baseline == "group":
            return groups
        drafts = {rows[0].group_id: _graded_rewards(rows, reward) for rows in _by_group(self.rollouts["draft"])}
        return [_with_baseline(group, drafts[group.group_id], section.baseline) for group in groups]

    def num_groups(self, train_on: str) -> int:
        """Return the number of groups of the stages that `update.train_on` names, trained on or not."""
        return sum(len(_by_group(self.rollouts[stage])) for stage in TRAINED_STAGES[train_on])

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the whole iteration: `draft/…` without draft in the prompt, `refine/…` with one.

        Refinements that judge their draft have the metrics `verify/…` instead.
        """
        drafts, refinements = self.rollouts["draft"], self.rollouts.get("refine", [])
        metrics = {**rollout_metrics(drafts, "draft"), **selection_metrics(self.selections)}
        if self.has_verifications:
            return {**metrics, **rollout_metrics(refinements, "verify")}
        return {
            **metrics,
            **rollout_metrics(refinements, "refine"),
            **refinement_metrics(
                refinements,
                {(draft.group_id, draft.sample_id): draft for draft in drafts},
                {selection.group_id: selection.draft_group_id for selection in self.selections},
                {each.group_id: each.draft for each in self.selections if each.draft_group_id == EXTERNAL_GROUP},
            ),
        }


def with_reward_variance(
    groups: Sequence[TrainingGroup], problems_per_iteration: int, num_minibatches: int
) -> list[TrainingGroup]:
    """Return the groups that dynamic sampling trains on (DAPO, arXiv 2503.14476, section 3.2).

    Nothing is sampled here. The stages have sampled `data.spare_problems` more problems to choose from.

    These are the first `problems_per_iteration` groups of each stage that have correct and wrong completions, and a
    gradient. Other groups are added only where fewer than `num_minibatches` groups would be left.
    """
    chosen: list[TrainingGroup] = []
    idle: list[TrainingGroup] = []
    for stage in dict.fromkeys(group.stage for group in groups):
        of_stage = [group for group in groups if group.stage == stage]
        chosen += [group for group in of_stage if _has_variance(group)][:problems_per_iteration]
        idle += [group for group in of_stage if not _has_variance(group)]
    return [*chosen, *idle[: max(0, num_minibatches - len(chosen))]]


def input_shards(session: Session, iteration: int) -> list[ShardPath]:
    """Return the shards that an update reads: drafts, selections and refinements, and the scores of `update.scores`."""
    observed = _observed(session, iteration)
    return [*observed, *(scores for shard in observed if (scores := _scores_of(session, shard)) is not None)]


def _observed(session: Session, iteration: int) -> list[ShardPath]:
    stages = [stage for stage in session.config.stages() if stage != "update"]
    num_shards = session.config.run.num_shards
    return [shard for stage in stages for shard in session.run.shards(iteration, stage, num_shards)]


def _scores_of(session: Session, shard: ShardPath) -> ShardPath | None:
    """Return the scores that replace the recorded rewards of `shard`; None where the recorded ones count."""
    name = session.config.update.scores
    return None if name is None or shard.stage == "select" else session.run.scores(shard, name)


def read_observations(session: Session, iteration: int, policy: Policy) -> Observations:
    """Read and check all rollouts and selections of `iteration`.

    Raises MissingInputError for a shard that is not complete, DamagedFileError for one that has changed or lacks a row,
    and ConflictError for one that was sampled from another policy than `policy`, or with other settings than the other
    shards of its stage.
    """
    from igrpo_cli.store.scores import open_scores, read_scored
    from igrpo_cli.store.tables import read_records

    rollouts: defaultdict[str, list[Rollout]] = defaultdict(list)
    selections: list[Selection] = []
    sampling: dict[str, Mapping[str, Any]] = {}
    has_verifications = False
    first: dict[str, tuple[ShardPath, Manifest]] = {}
    for shard in _observed(session, iteration):
        manifest, groups = open_input(shard), session.config.blocks().groups_of_shard(shard.shard)
        is_ahead = shard.stage == "draft" and iteration > 0 and session.config.run.staleness
        sampler = policy.parent if is_ahead else policy.id
        if shard.stage != "select" and manifest.identity.policy != sampler:
            which = "the policy before the one to be trained" if is_ahead else "the one to be trained"
            raise ConflictError(
                f"{shard.name} was sampled from another policy than {which} "
                f"({manifest.identity.policy} there, {sampler} now)",
                hint=shard.overwrite_command,
            )
        require_same_settings(dict([first.setdefault(shard.stage, (shard, manifest)), (shard, manifest)]))
        if shard.stage == "select":
            chosen = read_records(shard.data, Selection)
            require_groups(shard, [selection.group_id for selection in chosen], groups)
            selections += chosen
            continue
        assert manifest.sampling is not None
        sampling[shard.stage] = manifest.sampling
        has_verifications |= manifest.holds_verifications
        scores = _scores_of(session, shard)
        if scores is not None:
            counts_ungraded = session.config.reward.ungraded == "wrong"
            scored = scores, open_scores(scores, shard, counts_ungraded=counts_ungraded)
            require_same_settings(dict([first.setdefault(f"scores of {shard.stage}", scored), scored]))
        rows = read_scored(shard.data, None if scores is None else scores.data)
        number = manifest.identity.config[shard.stage]["num_generations"]
        refined = {each.group_id: each.num_samples(number) for each in selections} if shard.stage == "refine" else {}
        require_whole(shard, rows, {group_id: refined.get(group_id, number) for group_id in groups})
        rollouts[shard.stage] += rows
    return Observations(dict(rollouts), sampling, selections, has_verifications)


def _has_variance(group: TrainingGroup) -> bool:
    """Return True if the graded completions have different outcomes and one with an advantage is not masked.

    With a baseline of other rewards, equal outcomes may have an advantage, and the group counts.
    """
    outcomes = {outcome for outcome, is_graded in zip(group.outcomes, group.is_graded, strict=True) if is_graded}
    in_loss = zip(group.advantages, group.is_masked, strict=True)
    return (len(outcomes) > 1 or bool(group.baseline)) and any(
        advantage and not is_masked for advantage, is_masked in in_loss
    )


def _by_group(rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
    groups: defaultdict[int, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        groups[rollout.group_id].append(rollout)
    return list(groups.values())


def _graded_rewards(rollouts: Sequence[Rollout], reward: RewardSection) -> list[float]:
    return [row.reward for row in rollouts if _is_graded(row, reward)]


def _is_graded(rollout: Rollout, reward: RewardSection) -> bool:
    return rollout.verdict != "ungraded" or reward.ungraded == "wrong"


def _with_baseline(group: TrainingGroup, drafts: Sequence[float], baseline: Baseline) -> TrainingGroup:
    """Return a group of refinements with the rewards of `update.baseline`; drafts keep those of their group."""
    if group.stage != "refine" or not drafts:
        return group
    own = [each for each, is_graded in zip(group.rewards, group.is_graded, strict=True) if is_graded]
    return replace(group, baseline=[*drafts, *own] if baseline == "pooled" else drafts)


def _training_group(
    rollouts: Sequence[Rollout], sampling: Mapping[str, Any], section: UpdateSection, reward: RewardSection
) -> TrainingGroup:
    first = rollouts[0]
    masks_truncated = section.mask_truncated_completions
    is_graded = [_is_graded(rollout, reward) for rollout in rollouts]
    has_accuracy = bool(reward.weights.get("accuracy"))
    return TrainingGroup(
        stage=first.stage,
        group_id=first.group_id,
        problem_id=first.problem_id,
        prompt_ids=first.prompt_ids,
        temperatures=[
            temperature_of(sampling["temperature"], rollout.sample_id) or GREEDY_TEMPERATURE for rollout in rollouts
        ],
        completion_ids=[rollout.completion_ids for rollout in rollouts],
        sampling_logprobs=[rollout.sampling_logprobs for rollout in rollouts],
        rewards=[rollout.reward for rollout in rollouts],
        advantages=[],
        is_masked=[
            not graded or (masks_truncated and rollout.finish_reason == "length")
            for rollout, graded in zip(rollouts, is_graded, strict=True)
        ],
        max_completion_length=sampling["max_completion_length"],
        is_graded=is_graded,
        outcomes=[rollout.reward_parts["accuracy"] if has_accuracy else rollout.reward for rollout in rollouts],
        loss_weight=section.loss_weight(first.stage),
    )
