"""The shards of an evaluation: bare samples of a benchmark's problems, or refinements of those samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from igrpo_cli.algo.selection import majority_draft
from igrpo_cli.errors import ConflictError, MissingInputError
from igrpo_cli.evaluation.results import read_results
from igrpo_cli.pipeline.rollout_stage import RolloutPlan, RolloutStage, open_rollouts
from igrpo_cli.pipeline.session import Session, StageRequest
from igrpo_cli.pipeline.stage_shards import StagePlan
from igrpo_cli.prompts import prompt_with_draft, prompt_without_draft, template_hash, visible_draft
from igrpo_cli.records import Problem, Rollout, StageReport
from igrpo_cli.rollouts import RolloutTask, SamplingPlan
from igrpo_cli.store.conflicts import require_same_settings
from igrpo_cli.store.layout import ShardPath
from igrpo_cli.store.manifest import read_manifest
from igrpo_cli.store.policies import Policy


@dataclass(frozen=True)
class Evaluation:
    """One policy on one benchmark."""

    bench: str
    problems: list[Problem]
    samples: int
    policy: Policy
    model: str | int
    """How its directory is called: a policy of the run by its number, another model by name."""
    selection: str | None = None
    """`eval.selection` of a conditioned evaluation; None for bare problems."""

    @property
    def bare(self) -> Evaluation:
        """The same without drafts: the evaluation whose samples a conditioned one refines."""
        return replace(self, selection=None)


def evaluation_shards(session: Session, evaluation: Evaluation) -> tuple[ShardPath, ...]:
    """All shards of an evaluation, in order."""
    num_shards, selection = session.config.run.num_shards, evaluation.selection
    return tuple(
        session.run.eval_shard(evaluation.bench, evaluation.model, shard, num_shards, conditioned=selection)
        for shard in range(num_shards)
    )


def sample_evaluation(session: Session, evaluation: Evaluation, request: StageRequest) -> StageReport:
    """Sample the requested shards of an evaluation: the problems without drafts, or refinements of earlier samples."""
    with open_rollouts(session, request, _plan(session, evaluation)) as stage:
        for shard in stage.unfinished():
            if evaluation.selection is None:
                for block in shard.blocks():
                    block.sample([_task_without_draft(stage, evaluation, group) for group in block.groups])
            else:
                drafts = _samples_to_refine(session, evaluation, shard.path)
                for block in shard.blocks():
                    groups = [_tasks_with_draft(stage, evaluation, group, drafts[group]) for group in block.groups]
                    block.sample([task for tasks in groups for task in tasks])
    return stage.report()


def require_bare_samples(session: Session, evaluation: Evaluation) -> None:
    """Raises MissingInputError where the samples to refine are not all there, ConflictError where they are others."""
    paths = evaluation_shards(session, evaluation.bare)
    if not all(path.manifest.exists() for path in paths):
        raise MissingInputError(
            f"there are no bare samples of {evaluation.bench} to refine: its bare evaluation is not finished",
            hint=f"first the same command without --conditioned: {paths[0].command}",
        )
    manifests = {path: read_manifest(path) for path in paths}
    require_same_settings(manifests)
    there = sum(manifest.data.rows for manifest in manifests.values())
    wanted = len(evaluation.problems) * evaluation.samples
    others = [manifest for manifest in manifests.values() if manifest.identity.policy != evaluation.policy.id]
    if others or there != wanted:
        what = "are of another policy" if others else f"are {there} completions, not {wanted}"
        raise ConflictError(
            f"the bare samples in {paths[0].data.parent} {what}",
            hint="first the same command without --conditioned and with --overwrite; or as many --samples as there",
        )


def shown_drafts(samples: Sequence[Rollout], selection: str) -> list[tuple[Rollout, Sequence[int]]]:
    """The drafts that the refinements of one problem see, each with the sample ids of those that see it.

    `samples` are the problem's bare samples; there are as many refinements. See `EvalSection.selection`.
    """
    if selection == "each":
        return [(sample, [sample.sample_id]) for sample in samples]
    if selection == "majority":
        chosen = majority_draft([sample.extracted_answer for sample in samples])
    else:
        chosen = max(range(len(samples)), key=lambda index: samples[index].reward)
    return [(samples[chosen], range(len(samples)))]


def _plan(session: Session, evaluation: Evaluation) -> RolloutPlan:
    section, config = session.config.eval, session.config
    paths, without_draft = evaluation_shards(session, evaluation), evaluation_shards(session, evaluation.bare)
    has_drafts = evaluation.selection is not None

    def inputs_of(path: ShardPath) -> list[ShardPath]:
        problems = session.run.eval_problems(evaluation.bench)
        return [problems, without_draft[path.shard]] if has_drafts else [problems]

    return RolloutPlan(
        shards=StagePlan(
            stage="eval",
            path_of=lambda shard: paths[shard],
            inputs_of=inputs_of,
            policy_id=evaluation.policy.id,
            template_sha256=template_hash(config.prompts),
            reads="conditioned" if has_drafts else "eval",
        ),
        policy=evaluation.policy,
        sampling=SamplingPlan(
            stage="eval",
            iteration=evaluation.policy.iteration,
            sampling=section.sampling(),
            seed=section.seed,
            # Without the policy: all policies are evaluated with the same random numbers and stay comparable.
            seed_names=("eval", "conditioned" if has_drafts else "bare"),
        ),
        num_groups=len(evaluation.problems),
    )


def _samples_to_refine(session: Session, evaluation: Evaluation, path: ShardPath) -> dict[int, list[Rollout]]:
    """The samples without draft of the groups of one shard, by group id."""
    samples: defaultdict[int, list[Rollout]] = defaultdict(list)
    for sample in read_results([evaluation_shards(session, evaluation.bare)[path.shard]]).rollouts:
        samples[sample.group_id].append(sample)
    return samples


def _task_without_draft(stage: RolloutStage, evaluation: Evaluation, group: int) -> RolloutTask:
    problem = evaluation.problems[group]
    prompt = prompt_without_draft(problem.problem, stage.session.config.prompts)
    return RolloutTask(group, problem, prompt, range(evaluation.samples))


def _tasks_with_draft(
    stage: RolloutStage, evaluation: Evaluation, group: int, samples: Sequence[Rollout]
) -> list[RolloutTask]:
    assert evaluation.selection is not None
    problem, prompts, tasks = evaluation.problems[group], stage.session.config.prompts, []
    for draft, sample_ids in shown_drafts(samples, evaluation.selection):
        truncate = stage.tokenizer.truncate
        shown, truncated = visible_draft(draft.completion, draft.extracted_answer, prompts, truncate)
        prompt = prompt_with_draft(problem.problem, shown, prompts)
        tasks.append(RolloutTask(group, problem, prompt, sample_ids, draft.sample_id, truncated))
    return tasks
