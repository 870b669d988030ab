"""The shards of an evaluation: samples of the problems of a benchmark, or refinements of such samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from igrpo_cli.algo.selection import majority_draft
from igrpo_cli.config import stage_identity
from igrpo_cli.config.blocks import Blocks
from igrpo_cli.config.files import check_config
from igrpo_cli.errors import ConflictError, DamagedFileError, MissingInputError
from igrpo_cli.evaluation.summary import graded
from igrpo_cli.inspection.differences import recorded_settings
from igrpo_cli.inspection.run_config import differing_values, flat_settings, read_run_config
from igrpo_cli.pipeline.changes import shell_setting
from igrpo_cli.pipeline.rollout_stage import RolloutPlan, RolloutStage, open_rollouts
from igrpo_cli.pipeline.session import Session, StageRequest
from igrpo_cli.pipeline.stage_shards import StagePlan
from igrpo_cli.prompts import prompt_with_draft, prompt_without_draft, template_hash, visible_draft
from igrpo_cli.records import Problem, Rollout, StageReport
from igrpo_cli.rollouts import RolloutTask, SamplingPlan
from igrpo_cli.store.checksummed_json import read_summary
from igrpo_cli.store.completion import open_input
from igrpo_cli.store.conflicts import identity_differences, require_same_settings
from igrpo_cli.store.layout import SUMMARY, RunDirectory, ShardPath, eval_command, format_shards
from igrpo_cli.store.manifest import Identity, Manifest, read_manifest
from igrpo_cli.store.policies import Policy


@dataclass(frozen=True)
class Evaluation:
    """One policy on one benchmark."""

    bench: str
    problems: list[Problem]
    samples: int
    policy: Policy
    model: str | int
    """A policy of the run by its number, another model by its name. It names the directory."""
    selection: str | None = None
    """`eval.selection` of an evaluation with draft. None for an evaluation without draft."""
    repeats: int | None = None
    """`eval.repeats` as the manifests record it; None where `samples` is the number of the benchmark."""

    @property
    def without_draft(self) -> Evaluation:
        """The evaluation whose samples this one refines."""
        return replace(self, selection=None)


@dataclass(frozen=True)
class EvalResults:
    """All rollouts of an evaluation."""

    directory: Path
    rollouts: list[Rollout]
    shards: list[str]
    """SHA-256 of its shards, in order."""
    settings: dict[str, Any]
    """Settings, versions and device, by name, of its first shard."""

    @property
    def known_consensus(self) -> dict[str, float] | None:
        """cons@k by k from `summary.json`, if that describes these very shards. Comparing answers takes time."""
        try:
            summary = read_summary(self.directory / SUMMARY)
        except (MissingInputError, DamagedFileError):
            return None
        return summary.get("cons_at") if summary.get("shards") == self.shards else None


def read_results(paths: Sequence[ShardPath]) -> EvalResults:
    """Return the rollouts of all shards of an evaluation.

    Raises MissingInputError when a shard is missing, DamagedFileError when it is damaged, ConflictError when shards
    were sampled with different settings.
    """
    from igrpo_cli.store.tables import read_records

    rollouts: list[Rollout] = []
    manifests = {path: open_input(path) for path in paths}
    _require_same_settings(manifests)
    for path in paths:
        rollouts += read_records(path.data, Rollout)
    first, *_ = found = list(manifests.values())
    hashes = [manifest.data.sha256 for manifest in found]
    return EvalResults(paths[0].data.parent, rollouts, hashes, recorded_settings(first))


def evaluation_shards(session: Session, evaluation: Evaluation) -> tuple[ShardPath, ...]:
    """Return all shards of an evaluation, in order."""
    num_shards, selection = session.config.run.num_shards, evaluation.selection
    return tuple(
        session.run.eval_shard(evaluation.bench, evaluation.model, shard, num_shards, conditioned=selection)
        for shard in range(num_shards)
    )


def with_samples_on_disk(session: Session, evaluation: Evaluation) -> Evaluation:
    """Return the evaluation with at least as many samples as a shard on disk has, of this policy.

    Samples are added to an evaluation and never taken away. One with draft refines every sample without draft.
    """
    repeats_of: dict[int, int | None] = {}
    for path in (*evaluation_shards(session, evaluation), *evaluation_shards(session, evaluation.without_draft)):
        try:
            manifest = read_manifest(path)
        except (MissingInputError, DamagedFileError):
            continue  # Whoever reads or makes the shard says so.
        if manifest.identity.policy == evaluation.policy.id and manifest.data.groups:
            samples = manifest.data.rows // manifest.data.groups
            repeats_of.setdefault(samples, manifest.identity.config.get("eval", {}).get("repeats"))
    most = max(repeats_of, default=0)
    return evaluation if most < evaluation.samples else replace(evaluation, samples=most, repeats=repeats_of[most])


def incomplete_shards(session: Session, evaluation: Evaluation) -> list[ShardPath]:
    """Return the shards of an evaluation that do not exist, or that have fewer samples than it."""
    blocks = _blocks(session, evaluation)
    return [
        path
        for path in evaluation_shards(session, evaluation)
        if not path.manifest.exists()
        or read_manifest(path).data.rows < len(blocks.groups_of_shard(path.shard)) * evaluation.samples
    ]


def sample_evaluation(session: Session, evaluation: Evaluation, request: StageRequest) -> StageReport:
    """Sample the requested shards of an evaluation: completions without draft, or refinements of earlier samples."""
    with open_rollouts(session, request, _plan(session, evaluation)) as stage:
        has_noted = False
        for shard in stage.unfinished():
            if not has_noted:
                _note_missing_columns(session, evaluation)
                has_noted = True
            if evaluation.selection is None:
                for block in shard.blocks():
                    block.sample_and_grade([_task_without_draft(stage, evaluation, group) for group in block.groups])
            else:
                drafts = _samples_to_refine(session, evaluation, shard.path)
                for block in shard.blocks():
                    groups = [_tasks_with_draft(stage, evaluation, group, drafts[group]) for group in block.groups]
                    block.sample_and_grade([task for tasks in groups for task in tasks])
    return stage.report()


def require_samples_to_refine(session: Session, evaluation: Evaluation) -> None:
    """Check the samples that an evaluation with draft refines.

    Raises MissingInputError when some are missing, ConflictError when their policy or number is another one.
    """
    paths = evaluation_shards(session, evaluation.without_draft)
    if not all(path.manifest.exists() for path in paths):
        raise MissingInputError(
            f"there are no samples of {evaluation.bench} to refine: its evaluation without draft is not complete",
            hint=f"first the same command without --with-draft: {paths[0].command}",
        )
    manifests = {path: read_manifest(path) for path in paths}
    _require_same_settings(manifests)
    found = sum(manifest.data.rows for manifest in manifests.values())
    wanted = len(evaluation.problems) * evaluation.samples
    others = [manifest for manifest in manifests.values() if manifest.identity.policy != evaluation.policy.id]
    if others or found != wanted:
        what = "are of another policy" if others else f"are {found} completions, not {wanted}"
        raise ConflictError(
            f"the samples without draft in {paths[0].data.parent} {what}",
            hint="first the same command without --with-draft"
            + (", and with --overwrite" if others or found > wanted else ", which samples the missing ones"),
        )


def shown_drafts(samples: Sequence[Rollout], selection: str) -> list[tuple[Rollout, Sequence[int]]]:
    """Return the drafts for the refinements of one problem, each with the sample ids of the refinements that see it.

    `samples` are the samples of the problem without draft. There are as many refinements. See `EvalSection.selection`.
    """
    if selection == "each":
        return [(sample, [sample.sample_id]) for sample in samples]
    candidates = graded(samples) or samples
    if selection == "majority":
        chosen = candidates[majority_draft([sample.extracted_answer for sample in candidates])]
    else:
        chosen = max(candidates, key=lambda sample: sample.reward)
    return [(chosen, range(len(samples)))]


def _require_same_settings(manifests: Mapping[ShardPath, Manifest]) -> None:
    """Raise ConflictError where the shards of an evaluation have other settings or other numbers of samples."""
    alike = {}
    for path, manifest in manifests.items():
        config = manifest.identity.config
        one = {**config, "eval": {**config.get("eval", {}), "repeats": None}}
        alike[path] = replace(manifest, identity=replace(manifest.identity, config=one))
    require_same_settings(alike)
    shards_with: defaultdict[int, list[ShardPath]] = defaultdict(list)
    for path, manifest in manifests.items():
        if manifest.data.groups:
            shards_with[manifest.data.rows // manifest.data.groups].append(path)
    if len(shards_with) > 1:
        most = max(shards_with)
        first = shards_with[most][0]
        numbers = {number: format_shards(path.shard for path in paths) for number, paths in shards_with.items()}
        told = (f"{number} in shard {shards}" for number, shards in numbers.items())
        raise ConflictError(
            f"the shards in {first.data.parent} have different numbers of samples per problem: {', '.join(told)}",
            hint=f"`{_command_to_add(first, manifests[first], most)}` adds the missing samples",
        )


def _command_to_add(path: ShardPath, manifest: Manifest, samples: int) -> str:
    """Return the command that evaluates with more samples and the settings that a shard was sampled with."""
    run = RunDirectory(path.root)
    config = read_run_config(run).latest if run.run_toml.exists() else check_config({}, "defaults")
    recorded = flat_settings(manifest.identity.config)
    sets = [
        f"--set {shell_setting(name, value)}"
        for name, (_, value) in differing_values(flat_settings(stage_identity(config, "eval")), recorded).items()
        if value is not None and name not in ("eval.repeats", "eval.selection", "reward.function_sources")
    ]
    return eval_command(path, " ".join([f"--samples {samples}", *sets]))


def _plan(session: Session, evaluation: Evaluation) -> RolloutPlan:
    section, config = session.config.eval, session.config
    paths, without_draft = evaluation_shards(session, evaluation), evaluation_shards(session, evaluation.without_draft)
    has_drafts = evaluation.selection is not None
    identity, blocks = session.stage_identity("conditioned" if has_drafts else "eval"), _blocks(session, evaluation)

    def may_add_to(manifest: Manifest, identity: Identity) -> bool:
        # More samples without draft are another input of their refinements, which compare the prompts of their rows.
        more = {"config.eval.repeats", *(f"inputs.{path.relative}" for path in without_draft if has_drafts)}
        differences = {difference.key for difference in identity_differences(manifest.identity, identity)}
        wanted = len(blocks.groups_of_shard(identity.shard)) * evaluation.samples
        return {"config.eval.repeats"} <= differences <= more and manifest.data.rows <= wanted

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
            config={**identity, "eval": {**identity["eval"], "repeats": evaluation.repeats}},
            may_add_to=may_add_to,
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
        blocks=blocks,
    )


def _blocks(session: Session, evaluation: Evaluation) -> Blocks:
    config = session.config
    return Blocks(len(evaluation.problems), config.engine.groups_per_block, config.run.num_shards)


def _note_missing_columns(session: Session, evaluation: Evaluation) -> None:
    """Name the reward functions that need a column which the benchmark lacks. They are not called."""
    if not session.config.reward.functions_in_use:
        return
    known = evaluation.problems[0].column_values()
    for name, signature in session.grader().signatures.items():
        if missing := signature.missing(known):
            what = f"{evaluation.bench} has no column {missing[0]}"
            session.console.note(f"the reward function {name} is not called: {what}; its part of the reward is 0")


def _samples_to_refine(session: Session, evaluation: Evaluation, path: ShardPath) -> dict[int, list[Rollout]]:
    """Return the samples without draft of one shard by group id."""
    samples: defaultdict[int, list[Rollout]] = defaultdict(list)
    for sample in read_results([evaluation_shards(session, evaluation.without_draft)[path.shard]]).rollouts:
        samples[sample.group_id].append(sample)
    return samples


def _task_without_draft(stage: RolloutStage, evaluation: Evaluation, group: int) -> RolloutTask:
    problem = evaluation.problems[group]
    prompt = prompt_without_draft(problem, stage.session.config.prompts)
    return RolloutTask(group, problem, prompt, range(evaluation.samples))


def _tasks_with_draft(
    stage: RolloutStage, evaluation: Evaluation, group: int, samples: Sequence[Rollout]
) -> list[RolloutTask]:
    assert evaluation.selection is not None
    problem, prompts, tasks = evaluation.problems[group], stage.session.config.prompts, []
    for draft, sample_ids in shown_drafts(samples, evaluation.selection):
        truncate = stage.tokenizer.truncate
        shown, truncated = visible_draft(draft.completion, draft.extracted_answer, prompts, truncate)
        prompt = prompt_with_draft(problem, shown, prompts)
        tasks.append(RolloutTask(group, problem, prompt, sample_ids, draft.sample_id, draft.completion, truncated))
    return tasks
