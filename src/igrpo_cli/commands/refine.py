"""`igrpo refine`: stage 2 of iGRPO. Sample o_1 … o_G ~ pi_theta_old(. | q'), q' = Concat(q, d_hat), and grade them."""

from __future__ import annotations

from collections.abc import Iterable

from igrpo_cli.pipeline.rollout_stage import RolloutPlan, RolloutStage, open_rollouts, training_plan
from igrpo_cli.pipeline.session import Session, StageRequest
from igrpo_cli.pipeline.training_groups import read_selections
from igrpo_cli.prompts import prompt_with_draft, prompt_without_draft, visible_draft
from igrpo_cli.records import Selection, StageReport
from igrpo_cli.rollouts import RolloutTask
from igrpo_cli.store.layout import ShardPath


def run(session: Session, request: StageRequest) -> StageReport:
    """Sample the refinements of the requested shards of one iteration. No gradient is taken here."""
    with open_rollouts(session, request, plan(session, request.iteration)) as stage:
        sample(stage)
    return stage.report()


def sample(stage: RolloutStage, shards: Iterable[int] | None = None) -> None:
    """Sample G = `refine.num_generations` completions of the prompt with the selected draft, for each problem.

    The last blocks may still be in progress when this returns: `stage.finish` waits for them.
    """
    for shard in stage.unfinished(shards):
        selections = read_selections(stage.session, select_shard(stage.session, shard.path))
        for block in shard.blocks():
            selected = [selections[group_id] for group_id in block.groups]
            block.sample([_task(stage, selection) for selection in selected if selection.action != "drop"])


def plan(session: Session, iteration: int) -> RolloutPlan:
    """Return the plan of the refinements of an iteration. Its inputs are the problems and the selections."""
    return training_plan(
        session, "refine", iteration, inputs_of=lambda shard: [session.run.problems(), select_shard(session, shard)]
    )


def select_shard(session: Session, shard: ShardPath) -> ShardPath:
    """Return the shard that holds the selections of the groups of a shard of refinements."""
    return session.run.shard(shard.iteration, "select", shard.shard, shard.num_shards)


def _task(stage: RolloutStage, selection: Selection) -> RolloutTask:
    """The prompt of one group: with its selected draft, or without where the selection says so."""
    config = stage.session.config
    problem = stage.session.problems_of_iteration(selection.iteration)[selection.group_id]
    sample_ids = range(config.refine.num_generations)
    if selection.action == "bare":
        prompt = prompt_without_draft(problem.problem, config.prompts)
        return RolloutTask(selection.group_id, problem, prompt, sample_ids)
    truncate = stage.tokenizer.truncate
    draft, truncated = visible_draft(selection.draft, selection.draft_answer, config.prompts, truncate)
    return RolloutTask(
        group_id=selection.group_id,
        problem=problem,
        prompt=prompt_with_draft(problem.problem, draft, config.prompts),
        sample_ids=sample_ids,
        draft_sample_id=selection.draft_sample_id,
        draft_truncated=truncated,
    )
