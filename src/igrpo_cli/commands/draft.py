"""`igrpo draft`: sample and grade N drafts of each problem from the current policy.

This is stage 1 of iGRPO (arXiv 2602.09000): d_1, …, d_N ~ pi_old(. | q), where pi_old is `policies/k` and q a problem.
"""

from __future__ import annotations

from collections.abc import Iterable

from igrpo_cli.pipeline.rollout_stage import RolloutPlan, RolloutStage, open_rollouts, training_plan
from igrpo_cli.pipeline.session import Session, StageRequest
from igrpo_cli.prompts import prompt_without_draft
from igrpo_cli.records import StageReport
from igrpo_cli.rollouts import RolloutTask


def run(session: Session, request: StageRequest) -> StageReport:
    """Make the draft shards of one iteration that are not complete. Nothing is trained here."""
    with open_rollouts(session, request, plan(session, request.iteration)) as stage:
        sample(stage)
    return stage.report()


def sample(stage: RolloutStage, shards: Iterable[int] | None = None) -> None:
    """Sample N = `draft.num_generations` completions of the prompt without draft, for each problem.

    A group is one problem of the iteration with its completions. The engine samples in the background, and each block
    of groups is graded and stored when it is done. `open_rollouts` waits for the last blocks and publishes the shards.
    `igrpo run` passes `shards` to sample some of the requested shards; None means all.
    """
    config = stage.session.config
    for shard in stage.unfinished(shards):
        problems = stage.session.problems_of_iteration(stage.iteration)
        for block in shard.blocks():
            block.sample_and_grade(
                [
                    RolloutTask(
                        group_id=group_id,
                        problem=problems[group_id],
                        prompt=prompt_without_draft(problems[group_id], config.prompts),
                        sample_ids=range(config.draft.num_generations),
                    )
                    for group_id in block.groups
                ]
            )


def plan(session: Session, iteration: int) -> RolloutPlan:
    """Return the plan of the drafts of an iteration.

    The problems of the run are their input. A shard that was made from other inputs is in conflict with the plan.
    """
    return training_plan(session, "draft", iteration, inputs_of=lambda _: [session.run.problems()])
