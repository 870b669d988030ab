"""`igrpo draft`: stage 1 of iGRPO. Sample d_1 … d_N ~ pi_theta_old(. | q) for each problem q and grade them."""

from __future__ import annotations

from collections.abc import Iterable

from igrpo_cli.pipeline.rollout_stage import RolloutPlan, RolloutStage, open_rollouts, training_plan
from igrpo_cli.pipeline.session import Session, StageRequest
from igrpo_cli.prompts import prompt_without_draft
from igrpo_cli.records import StageReport
from igrpo_cli.rollouts import RolloutTask


def run(session: Session, request: StageRequest) -> StageReport:
    """Sample the drafts of the requested shards of one iteration. No gradient is taken here."""
    with open_rollouts(session, request, plan(session, request.iteration)) as stage:
        sample(stage)
    return stage.report()


def sample(stage: RolloutStage, shards: Iterable[int] | None = None) -> None:
    """Sample N = `draft.num_generations` completions of the prompt without a draft, for each problem.

    The last blocks may still be in progress when this returns: `stage.finish` waits for them.
    """
    config = stage.session.config
    for shard in stage.unfinished(shards):
        problems = stage.session.problems_of_iteration(stage.iteration)
        for block in shard.blocks():
            block.sample(
                [
                    RolloutTask(
                        group_id=group_id,
                        problem=problems[group_id],
                        prompt=prompt_without_draft(problems[group_id].problem, config.prompts),
                        sample_ids=range(config.draft.num_generations),
                    )
                    for group_id in block.groups
                ]
            )


def plan(session: Session, iteration: int) -> RolloutPlan:
    """Return the plan of the drafts of an iteration. Its inputs are the problems of the run."""
    return training_plan(session, "draft", iteration, inputs_of=lambda _: [session.run.problems()])
