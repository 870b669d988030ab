"""Iterations made by hand: what drafts and refinements answer, which draft was selected, and the advantages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from igrpo_cli.config.blocks import block_range
from igrpo_cli.pipeline.frozen_problems import freeze_problems
from igrpo_cli.pipeline.provenance import Provenance
from igrpo_cli.records import Metric, Problem, Rollout, Selection, SelectionAction
from igrpo_cli.store.completion import commit_shard
from igrpo_cli.store.layout import RunDirectory, ShardPath
from igrpo_cli.store.manifest import Identity
from igrpo_cli.store.schema import ADVANTAGES, METRICS, ROLLOUTS, SELECTIONS
from igrpo_cli.store.settings import checksummed_settings
from igrpo_cli.store.tables import write_rows
from made_evaluation import POLICY, sample

SELECT = {"strategy": "best", "ties": "first", "all_zero": "keep", "scores": None}


@dataclass(frozen=True)
class Group:
    """The answers of one problem's completions, as `made_evaluation.sample` reads them, and its selection."""

    drafts: Sequence[str]
    refinements: Sequence[str] = ()
    selected: int = 0
    action: SelectionAction = "condition"
    shown_group: int | None = None
    """The group that the shown draft is of; its own unless said."""


def make_problems(root: Path, number: int, text: str = "What is {} + {}?") -> RunDirectory:
    """A run with the problems p0, p1, … and nothing else."""
    root.mkdir(parents=True, exist_ok=True)
    run = RunDirectory(root)
    run.run_toml.write_bytes(checksummed_settings(b"[run]\nnum_iterations = 9\n"))
    problems = [Problem(f"p{i}", text.format(i, i), "4", f"sums.jsonl:{i}") for i in range(number)]
    freeze_problems(run.problems(), problems, {"data": {"train": "sums"}}, {"kept": number})
    return run


def make_iteration(
    run: RunDirectory,
    iteration: int,
    *groups: Group,
    num_shards: int = 1,
    stages: Iterable[str] = ("draft", "select", "refine"),
    config: dict[str, dict[str, Any]] | None = None,
    **changes: Any,
) -> None:
    """The named stages of an iteration, a block per group; group i is of p<i>, `changes` are of all rollouts."""
    for stage in stages:
        for path in run.shards(iteration, stage, num_shards):
            of_shard = block_range(len(groups), path.shard, num_shards)
            blocks = [_rows(stage, iteration, group_id, groups, changes) for group_id in of_shard]
            _publish(path, SELECTIONS if stage == "select" else ROLLOUTS, blocks, config or {"select": SELECT})


def make_update(run: RunDirectory, iteration: int, advantages: dict[tuple[int, int, str, int], float]) -> None:
    """A finished update that was given the advantages {(step, group_id, stage, sample_id): advantage}."""
    update = run.update(iteration)
    rows = [
        {
            "iteration": iteration,
            "step": step,
            "stage": stage,
            "problem_id": f"p{group_id}",
            "group_id": group_id,
            "sample_id": sample_id,
            "reward": 0.0,
            "advantage": advantage,
            "num_tokens": 2,
            "old_logprob_mean": -1.0,
            "policy_entropy_mean": 1.0,
        }
        for (step, group_id, stage, sample_id), advantage in advantages.items()
    ]
    write_rows(update.advantages, ADVANTAGES, [rows])
    _publish(update.shard, METRICS, [[Metric(iteration, 0, "grad_norm", 0.5 + iteration)]], {"update": {}})


def _rows(stage: str, iteration: int, group_id: int, groups: Sequence[Group], changes: dict[str, Any]) -> list[Any]:
    group = groups[group_id]
    shown = group_id if group.shown_group is None else group.shown_group
    drafts = [sample(group_id, i, answer, iteration=iteration, stage="draft") for i, answer in enumerate(group.drafts)]
    if stage == "draft":
        return [replace(draft, **changes) for draft in drafts]
    if stage == "select":
        return [_selection(iteration, group_id, group, groups[shown].drafts, drafts, shown)]
    seen = group.selected if group.action == "condition" else None
    return [
        sample(group_id, i, answer, iteration=iteration, stage="refine", draft_sample_id=seen, **changes)
        for i, answer in enumerate(group.refinements)
    ]


def _selection(
    iteration: int, group_id: int, group: Group, answers: Sequence[str], drafts: Sequence[Rollout], shown: int
) -> Selection:
    draft = sample(shown, group.selected, answers[group.selected])
    rewards = [rollout.reward for rollout in drafts]
    return Selection(
        iteration=iteration,
        group_id=group_id,
        problem_id=f"p{group_id}",
        action=group.action,
        draft_group_id=shown,
        draft_sample_id=group.selected,
        draft=draft.completion,
        draft_answer=draft.extracted_answer or "",
        draft_reward=draft.reward,
        num_tied=rewards.count(drafts[group.selected].reward),
        group_reward_mean=sum(rewards) / len(rewards),
        group_reward_std=0.5,
    )


def _publish(path: ShardPath, schema: Any, blocks: list[list[Any]], config: dict[str, dict[str, Any]]) -> None:
    sampled = path.stage in ("draft", "refine")
    identity = Identity(path.stage, path.iteration, path.shard, path.num_shards, config, POLICY if sampled else None)
    provenance = Provenance()
    commit_shard(
        path,
        identity,
        lambda again: write_rows(path.data, schema, blocks, replace=again),
        lambda data: provenance.manifest(identity, data),
    )
