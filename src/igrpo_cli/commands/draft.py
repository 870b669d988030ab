"""`igrpo draft`: stage 1 of iGRPO. d_1 … d_N ~ pi_theta_old(. | q), graded; no gradient."""

from __future__ import annotations

from igrpo_cli.prompts import bare_prompt
from igrpo_cli.records import StageReport
from igrpo_cli.rollout_shards import ShardedRollouts, make_rollout_shards, training_plan
from igrpo_cli.rollouts import RolloutTask
from igrpo_cli.session import Session, StageRequest


def run(session: Session, request: StageRequest) -> StageReport:
    """Sample `draft.num_generations` drafts of each problem of the iteration."""
    config, directory = session.config, session.run

    def tasks(groups: range, _: object) -> list[RolloutTask]:
        chosen = session.problems_of_iteration(request.iteration)
        return [
            RolloutTask(
                group_id=group_id,
                problem=chosen[group_id],
                prompt=bare_prompt(chosen[group_id].problem, config.prompts),
                sample_ids=range(config.draft.num_generations),
            )
            for group_id in groups
        ]

    work = ShardedRollouts(
        stage="draft",
        policy=session.policy(request.iteration),
        path_of=lambda shard: directory.shard(request.iteration, "draft", shard, config.run.num_shards),
        inputs_of=lambda _: session.inputs(directory.problems()),
        plan_of=lambda _: training_plan(config, "draft", request.iteration, config.draft, tasks),
    )
    return make_rollout_shards(session, work, request)
