"""`igrpo draft`: stage 1 of iGRPO. d_1 … d_N ~ pi_theta_old(. | q), graded; no gradient."""

from __future__ import annotations

from igrpo_cli.pipeline.rollout_shard import ShardedRollouts
from igrpo_cli.pipeline.rollout_stage import make_rollout_shards, training_plan
from igrpo_cli.pipeline.session import Session, StageRequest
from igrpo_cli.prompts import bare_prompt
from igrpo_cli.records import StageReport
from igrpo_cli.rollouts import RolloutTask


def run(session: Session, request: StageRequest) -> StageReport:
    """Sample `draft.num_generations` drafts of each problem of the iteration."""
    return make_rollout_shards(session, drafts(session, request.iteration), request)


def drafts(session: Session, iteration: int) -> ShardedRollouts:
    """All drafts of an iteration: one group for each of its problems, the prompt bare."""
    config, directory = session.config, session.run

    def tasks(groups: range, _: object) -> list[RolloutTask]:
        chosen = session.problems_of_iteration(iteration)
        return [
            RolloutTask(
                group_id=group_id,
                problem=chosen[group_id],
                prompt=bare_prompt(chosen[group_id].problem, config.prompts),
                sample_ids=range(config.draft.num_generations),
            )
            for group_id in groups
        ]

    return ShardedRollouts(
        stage="draft",
        policy=session.policy(iteration),
        num_groups=config.data.problems_sampled,
        path_of=lambda shard: directory.shard(iteration, "draft", shard, config.run.num_shards),
        inputs_of=lambda _: session.inputs(directory.problems()),
        plan_of=lambda _: training_plan(config, "draft", iteration, config.draft, tasks),
    )
