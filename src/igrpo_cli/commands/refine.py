"""`igrpo refine`: stage 2 of iGRPO. o_1 … o_G ~ pi_theta_old(. | q'), q' = Concat(q, d_hat), graded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from igrpo_cli.pipeline.rollout_shard import ShardedRollouts
from igrpo_cli.pipeline.rollout_stage import make_rollout_shards, training_plan
from igrpo_cli.pipeline.session import Session, StageRequest
from igrpo_cli.pipeline.whole_groups import groups_of_shard, require_groups, require_problems
from igrpo_cli.prompts import bare_prompt, conditioned_prompt, visible_draft
from igrpo_cli.records import Selection, StageReport
from igrpo_cli.rollouts import RolloutPlan, RolloutTask
from igrpo_cli.store.completion import open_input
from igrpo_cli.store.layout import ShardPath

if TYPE_CHECKING:
    from igrpo_cli.engines.tokenization import PolicyTokenizer


def run(session: Session, request: StageRequest) -> StageReport:
    """Sample `refine.num_generations` refinements of each problem, its selected draft in the prompt."""
    return make_rollout_shards(session, refinements(session, request.iteration), request)


def refinements(session: Session, iteration: int) -> ShardedRollouts:
    """All refinements of an iteration: one group for each of its problems, in the order of the drafts."""
    config, directory = session.config, session.run

    def select_shard(shard: int) -> ShardPath:
        return directory.shard(iteration, "select", shard, config.run.num_shards)

    def plan_of(shard: int) -> RolloutPlan:
        from igrpo_cli.store.tables import read_records

        open_input(select_shard(shard))
        rows = read_records(select_shard(shard).data, Selection)
        require_groups(select_shard(shard), [row.group_id for row in rows], groups_of_shard(config, shard))
        require_problems(select_shard(shard), rows, session.problems_of_iteration(iteration))
        selections = {row.group_id: row for row in rows}

        def tasks(groups: range, tokenizer: PolicyTokenizer) -> list[RolloutTask]:
            chosen = [selections[group_id] for group_id in groups]
            return [_task(session, selection, tokenizer) for selection in chosen if selection.action != "drop"]

        return training_plan(config, "refine", iteration, config.refine, tasks)

    return ShardedRollouts(
        stage="refine",
        policy=session.policy(iteration),
        num_groups=config.data.problems_sampled,
        path_of=lambda shard: directory.shard(iteration, "refine", shard, config.run.num_shards),
        inputs_of=lambda shard: session.inputs(directory.problems(), select_shard(shard)),
        plan_of=plan_of,
    )


def _task(session: Session, selection: Selection, tokenizer: PolicyTokenizer) -> RolloutTask:
    prompts = session.config.prompts
    problem = session.problems_of_iteration(selection.iteration)[selection.group_id]
    sample_ids = range(session.config.refine.num_generations)
    if selection.action == "bare":
        return RolloutTask(selection.group_id, problem, bare_prompt(problem.problem, prompts), sample_ids)
    shown, truncated = visible_draft(selection.draft, selection.draft_answer, prompts, tokenizer.truncate)
    return RolloutTask(
        group_id=selection.group_id,
        problem=problem,
        prompt=conditioned_prompt(problem.problem, shown, prompts),
        sample_ids=sample_ids,
        draft_sample_id=selection.draft_sample_id,
        draft_truncated=truncated,
    )
