"""`igrpo eval`: a policy on a benchmark. Bare problems, k samples each; `--conditioned` refines each sample once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igrpo_cli.config import RunConfig
from igrpo_cli.config_files import apply_overrides, check_config
from igrpo_cli.console import Console
from igrpo_cli.errors import MissingInputError, UsageError
from igrpo_cli.frozen_problems import freeze_problems
from igrpo_cli.open_shard import ShardedRollouts
from igrpo_cli.prompts import bare_prompt, conditioned_prompt, visible_draft
from igrpo_cli.records import Problem, Rollout, SamplingSettings, StageReport
from igrpo_cli.rollout_shards import make_rollout_shards
from igrpo_cli.rollouts import RolloutPlan, RolloutTask
from igrpo_cli.session import Session, StageRequest, open_session
from igrpo_cli.shards.finishing import open_input
from igrpo_cli.shards.identity import FileHash
from igrpo_cli.shards.layout import RunDirectory, ShardPath, bench_name, directory_name
from igrpo_cli.shards.policies import Policy, describe_directory, policy_id

if TYPE_CHECKING:
    from igrpo_cli.engines.tokenization import PolicyTokenizer


@dataclass(frozen=True)
class EvalRequest:
    """What the command line asked for."""

    run: Path
    bench: str
    model: str | None = None
    samples: int | None = None
    conditioned: bool = False
    bench_dir: Path | None = None
    output: Path | None = None
    iteration: int | None = None
    shard: str | None = None
    help_others: bool = False
    sets: tuple[str, ...] = ()
    skip_bad_rows: bool = False
    overwrite: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Evaluation:
    """One policy on one benchmark."""

    bench: str
    problems: list[Problem]
    samples: int
    policy: Policy
    model: str | int
    """How its directory is called: a policy of the run by its number, another model by name."""
    conditioned: bool = False


def run(request: EvalRequest, console: Console) -> None:
    """Evaluate and print the figures."""
    if not request.bench:
        raise UsageError("eval needs a benchmark", hint="igrpo eval --bench aime24")
    with _session(request, console) as session:
        summary, text = evaluate(session, request)
        console.data(summary, text)


def evaluate(session: Session, request: EvalRequest) -> tuple[dict[str, Any], str]:
    """The figures of one evaluation as a JSON object and as text; finished shards are not sampled again."""
    from igrpo_cli.eval_summary import summary_text

    evaluation = _evaluation(session, request)
    if evaluation.conditioned and not request.dry_run:
        _require_bare(session, evaluation)
    stage = StageRequest(
        iteration=evaluation.policy.iteration,
        shards=session.shards_or_all(request.shard),
        overwrite=request.overwrite,
        dry_run=request.dry_run,
        help_others=request.help_others,
    )
    report = make_rollout_shards(session, _sharded(session, evaluation), stage)
    if request.dry_run:
        return _dry_run(session, evaluation, report)
    paths = [_path(session, evaluation, shard) for shard in range(session.config.run.num_shards)]
    missing = [path.shard for path in paths if not path.manifest.exists()]
    if missing:
        payload = {**_head(evaluation), **report.payload(), "shards_still_missing": len(missing)}
        return payload, f"{report.shards} shards are done; the summary follows when the other {len(missing)} are"
    summary = _summarise(session, evaluation, paths)
    return summary, summary_text(summary)


@contextmanager
def _session(request: EvalRequest, console: Console) -> Iterator[Session]:
    """The run's session, or one without a run for `--model`."""
    sets = [*request.sets, *([f"eval.repeats={request.samples}"] if request.samples else [])]
    if request.model is None:
        with open_session(request.run, sets, console) as session:
            yield session
        return
    if request.run != Path():
        raise UsageError("eval takes a run or --model, not both", hint="igrpo eval --model M --bench aime24")
    session = Session(RunDirectory(request.output or Path()), _config_of_model(request.model, sets), console)
    try:
        yield session
    finally:
        session.close()


def _config_of_model(model: str, sets: list[str]) -> RunConfig:
    settings = apply_overrides({"policy": {"model": model}}, sets)
    return check_config(settings, "--set")


def _evaluation(session: Session, request: EvalRequest) -> Evaluation:
    from igrpo_cli.problems.loading import load_problems
    from igrpo_cli.problems.sources import default_repeats, resolve_bench

    loaded = load_problems(resolve_bench(request.bench, request.bench_dir), skip_bad_rows=request.skip_bad_rows)
    bench = bench_name(request.bench)
    if not request.dry_run:
        made_from = {"bench": {"sha256": loaded.sha256}}
        path = session.run.eval_problems(bench)
        freeze_problems(path, loaded.problems, made_from, loaded.counts, overwrite=request.overwrite)
    policy, model = _policy(session, request)
    return Evaluation(
        bench=bench,
        problems=loaded.problems[: session.config.eval.limit],
        samples=session.config.eval.repeats or default_repeats(request.bench),
        policy=policy,
        model=model,
        conditioned=request.conditioned,
    )


def _policy(session: Session, request: EvalRequest) -> tuple[Policy, str | int]:
    if request.model is None:
        if request.iteration is not None:
            return session.policy(request.iteration), request.iteration
        newest = max(session.run.policy_iterations(), default=0)
        return session.policy(newest), newest
    from igrpo_cli.engines.hub import fetch_model

    fetched = fetch_model(request.model, session.config.policy.revision)
    files = describe_directory(fetched.directory)
    policy = Policy(policy_id(files), fetched.directory, 0, None, files, request.model, fetched.revision_commit)
    return policy, directory_name(request.model)


def _sharded(session: Session, evaluation: Evaluation) -> ShardedRollouts:
    bare = replace(evaluation, conditioned=False)

    def inputs_of(shard: int) -> list[FileHash]:
        drafts = (_path(session, bare, shard),) if evaluation.conditioned else ()
        return session.inputs(session.run.eval_problems(evaluation.bench), *drafts)

    def plan_of(shard: int) -> RolloutPlan:
        if not evaluation.conditioned:
            return _plan(session, evaluation, lambda groups, _: _bare_tasks(session, evaluation, groups))
        drafts = _rollouts([_path(session, bare, shard)])
        return _plan(session, evaluation, partial(_refine_tasks, session, evaluation, drafts))

    return ShardedRollouts(
        stage="eval",
        policy=evaluation.policy,
        num_groups=len(evaluation.problems),
        path_of=lambda shard: _path(session, evaluation, shard),
        inputs_of=inputs_of,
        plan_of=plan_of,
    )


def _plan(
    session: Session, evaluation: Evaluation, tasks: Callable[[range, PolicyTokenizer], list[RolloutTask]]
) -> RolloutPlan:
    section = session.config.eval
    return RolloutPlan(
        stage="eval",
        iteration=evaluation.policy.iteration,
        seed=section.seed,
        # Without the policy: all policies are evaluated with the same random numbers, which makes them comparable.
        seed_names=("eval", "conditioned" if evaluation.conditioned else "bare"),
        sampling=SamplingSettings(section.temperature, section.top_p, section.top_k, section.max_gen_toks),
        reward_weights=session.config.reward.weights,
        overlong_cache=session.config.reward.overlong_cache_in_use,
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
    session: Session, evaluation: Evaluation, drafts: list[Rollout], groups: range, tokenizer: PolicyTokenizer
) -> list[RolloutTask]:
    """One refinement of every bare sample, itself the draft: no reward, and so no reference answer, is used."""
    prompts, tasks = session.config.prompts, []
    for draft in drafts:
        if draft.group_id in groups:
            problem = evaluation.problems[draft.group_id]
            shown, cut = visible_draft(draft.completion, draft.extracted_answer, prompts, tokenizer.truncate)
            prompt = conditioned_prompt(problem.problem, shown, prompts)
            tasks.append(RolloutTask(draft.group_id, problem, prompt, [draft.sample_id], draft.sample_id, cut))
    return tasks


def _path(session: Session, evaluation: Evaluation, shard: int) -> ShardPath:
    num_shards, conditioned = session.config.run.num_shards, evaluation.conditioned
    return session.run.eval_shard(evaluation.bench, evaluation.model, shard, num_shards, conditioned=conditioned)


def _require_bare(session: Session, evaluation: Evaluation) -> None:
    bare = replace(evaluation, conditioned=False)
    paths = [_path(session, bare, shard) for shard in range(session.config.run.num_shards)]
    if not all(path.manifest.exists() for path in paths):
        raise MissingInputError(
            f"there are no bare samples of {evaluation.bench} to refine: its bare evaluation is not finished",
            hint=f"first the same command without --conditioned: igrpo eval --bench {evaluation.bench}",
        )


def _rollouts(paths: list[ShardPath]) -> list[Rollout]:
    from igrpo_cli.shards.tables import read_records

    rollouts: list[Rollout] = []
    for path in paths:
        open_input(path)
        rollouts += read_records(path.data, Rollout)
    return rollouts


def _summarise(session: Session, evaluation: Evaluation, paths: list[ShardPath]) -> dict[str, Any]:
    """The figures of all shards, kept as `summary.json` beside them."""
    from igrpo_cli.eval_summary import conditioned_figures, summarise
    from igrpo_cli.shards.publish import publish_json

    rollouts = _rollouts(paths)
    summary = summarise(rollouts, evaluation.bench, _head(evaluation)["model"])
    summary["conditioned"] = evaluation.conditioned
    if evaluation.conditioned:
        bare = replace(evaluation, conditioned=False)
        summary |= conditioned_figures(rollouts, _rollouts([_path(session, bare, path.shard) for path in paths]))
    place = session.run.eval_summary(evaluation.bench, evaluation.model, conditioned=evaluation.conditioned)
    publish_json(place, summary, replace=True)
    return summary


def _head(evaluation: Evaluation) -> dict[str, Any]:
    policy = evaluation.policy
    name = policy.model or f"policy {evaluation.model}"
    return {
        "bench": evaluation.bench,
        "problems": len(evaluation.problems),
        "samples": evaluation.samples,
        "model": {"name": name, "policy": policy.id, "revision": policy.revision},
    }


def _dry_run(session: Session, evaluation: Evaluation, report: StageReport) -> tuple[dict[str, Any], str]:
    """The plan under the keys of a real evaluation; what is not known yet is null."""
    unknown = ("avg_at_k", "ci95", "pass_at_k", "maj_at_k", "verdicts", "mean_completion_tokens", "truncated_fraction")
    head, section = _head(evaluation), session.config.eval
    completions = head["problems"] * head["samples"]
    plan = {
        "completions": completions,
        "max_tokens_sampled": completions * section.max_gen_toks,
        "missing_shards": report.details["missing_shards"],
    }
    text = (
        f"{evaluation.bench}: {head['problems']} problems x {head['samples']} samples = {completions:,} completions, "
        f"at most {plan['max_tokens_sampled']:,} tokens; missing shards: {plan['missing_shards'] or 'none'}"
    )
    config = session.config.model_dump(mode="json", exclude_none=True)
    return {**head, **dict.fromkeys(unknown), "plan": plan, "config": config}, text
