"""The shards of an evaluation: bare samples of a benchmark's problems, or refinements of those samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from igrpo_cli.algo.selection import majority_draft
from igrpo_cli.errors import ConflictError, MissingInputError
from igrpo_cli.evaluation.results import read_results
from igrpo_cli.pipeline.rollout_shard import ShardedRollouts
from igrpo_cli.pipeline.session import Session
from igrpo_cli.prompts import bare_prompt, conditioned_prompt, visible_draft
from igrpo_cli.records import Problem, Rollout, SamplingSettings
from igrpo_cli.rollouts import RolloutPlan, RolloutTask
from igrpo_cli.store.conflicts import require_same_settings
from igrpo_cli.store.layout import ShardPath
from igrpo_cli.store.manifest import FileHash, read_manifest
from igrpo_cli.store.policies import Policy

if TYPE_CHECKING:
    from igrpo_cli.engines.tokenization import PolicyTokenizer

Tasks = Callable[[range, "PolicyTokenizer"], list[RolloutTask]]


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


def sharded_evaluation(session: Session, evaluation: Evaluation) -> ShardedRollouts:
    """The rollouts of an evaluation and where they go."""
    paths, bare = evaluation_shards(session, evaluation), evaluation_shards(session, evaluation.bare)
    is_bare = evaluation.selection is None

    def inputs_of(shard: int) -> list[FileHash]:
        return session.inputs(
            session.run.eval_problems(evaluation.bench), *(() if is_bare else bare[shard : shard + 1])
        )

    def plan_of(shard: int) -> RolloutPlan:
        if is_bare:
            return _plan(session, evaluation, lambda groups, _: _bare_tasks(session, evaluation, groups))
        drafts: defaultdict[int, list[Rollout]] = defaultdict(list)
        for draft in read_results(bare[shard : shard + 1]).rollouts:
            drafts[draft.group_id].append(draft)
        return _plan(session, evaluation, partial(_refine_tasks, session, evaluation, drafts))

    return ShardedRollouts(
        stage="eval",
        policy=evaluation.policy,
        num_groups=len(evaluation.problems),
        path_of=lambda shard: paths[shard],
        inputs_of=inputs_of,
        plan_of=plan_of,
        reads="eval" if is_bare else "conditioned",
    )


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


def _plan(session: Session, evaluation: Evaluation, tasks: Tasks) -> RolloutPlan:
    section = session.config.eval
    return RolloutPlan(
        stage="eval",
        iteration=evaluation.policy.iteration,
        seed=section.seed,
        # Without the policy: all policies are evaluated with the same random numbers, which makes them comparable.
        seed_names=("eval", "bare" if evaluation.selection is None else "conditioned"),
        sampling=SamplingSettings(section.temperature, section.top_p, section.top_k, section.max_gen_toks),
        num_groups=len(evaluation.problems),
        groups_per_block=session.config.engine.groups_per_block,
        tasks=tasks,
    )


def _bare_tasks(session: Session, evaluation: Evaluation, groups: range) -> list[RolloutTask]:
    problems, prompts = evaluation.problems, session.config.prompts
    return [
        RolloutTask(group, problems[group], bare_prompt(problems[group].problem, prompts), range(evaluation.samples))
        for group in groups
    ]


def _refine_tasks(
    session: Session,
    evaluation: Evaluation,
    drafts: Mapping[int, list[Rollout]],
    groups: range,
    tokenizer: PolicyTokenizer,
) -> list[RolloutTask]:
    assert evaluation.selection is not None
    prompts, tasks = session.config.prompts, []
    for group in groups:
        problem = evaluation.problems[group]
        for draft, sample_ids in shown_drafts(drafts[group], evaluation.selection):
            shown, cut = visible_draft(draft.completion, draft.extracted_answer, prompts, tokenizer.truncate)
            prompt = conditioned_prompt(problem.problem, shown, prompts)
            tasks.append(RolloutTask(group, problem, prompt, sample_ids, draft.sample_id, cut))
    return tasks
