"""`igrpo eval`: a policy on benchmarks. Bare problems, k samples each; `--conditioned` refines those samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igrpo_cli.config import RunConfig
from igrpo_cli.config.files import apply_overrides, check_config, parse_override
from igrpo_cli.errors import UsageError
from igrpo_cli.evaluation.results import EvalResults, read_results
from igrpo_cli.evaluation.shards import Evaluation, evaluation_shards, require_bare_samples, sample_evaluation
from igrpo_cli.pipeline.frozen_problems import freeze_problems
from igrpo_cli.pipeline.session import Session, StageRequest, open_session
from igrpo_cli.records import Problem, StageReport
from igrpo_cli.store.layout import RunDirectory, bench_name, directory_name
from igrpo_cli.store.lineage import newest_policy
from igrpo_cli.store.policies import Policy, describe_directory, policy_id
from igrpo_cli.ui.console import Console

UNDECIDED = Policy("", Path(), 0)
"""Stands for the policy in the plan of an evaluation that names no model, outside any run."""


@dataclass(frozen=True)
class EvalRequest:
    """What the command line asked for."""

    run: Path
    bench: str = ""
    """The benchmark of `evaluate`."""
    model: str | None = None
    samples: int | None = None
    conditioned: bool = False
    bench_dir: Path | None = None
    output: Path | None = None
    iteration: int | None = None
    shard: str | None = None
    take_over: bool = False
    sets: tuple[str, ...] = ()
    skip_bad_rows: bool = False
    overwrite: bool = False
    dry_run: bool = False


def run(request: EvalRequest, benches: Sequence[str], console: Console, *, markdown: bool = False) -> None:
    """Evaluate on each benchmark and print the figures. All problems are read before anything is sampled."""
    from igrpo_cli.evaluation.summary import macro_average
    from igrpo_cli.ui.tables import markdown_text

    _check_benches(benches)
    with _session(request, console) as session:
        payloads = []
        for evaluation in _evaluations(session, request, benches):
            payload, text = _evaluate(session, request, evaluation)
            payloads.append(payload)
            if len(benches) > 1 and not (console.as_json or markdown):
                console.data({}, f"{text}\n")
    measured = [payload for payload in payloads if payload.get("avg_at_k") is not None]
    average = macro_average(measured)
    if len(benches) > 1:
        payload, text = {"benches": payloads, "macro_average": average}, _text_of_all(payloads, average)
    console.data(payload, markdown_text(measured, average) if markdown and measured else text)


def evaluate(session: Session, request: EvalRequest) -> tuple[dict[str, Any], str]:
    """The figures on `request.bench` as a JSON object and as text; finished shards are not sampled again."""
    (evaluation,) = _evaluations(session, request, [request.bench])
    return _evaluate(session, request, evaluation)


def _text_of_all(payloads: Sequence[dict[str, Any]], average: float | None) -> str:
    """What stands under the texts of several benchmarks: those that are measured in one table, or the whole plan."""
    from igrpo_cli.ui.tables import all_benches_text

    plans = [payload["plan"] for payload in payloads if "plan" in payload]
    if plans:
        completions, tokens = (sum(plan[key] for plan in plans) for key in ("completions", "max_tokens_sampled"))
        return f"together {completions:,} completions, at most {tokens:,} tokens"
    measured = [payload for payload in payloads if "avg_at_k" in payload]
    if not measured:
        return f"{len(payloads)} benchmarks, none of them complete"
    return all_benches_text(measured, average)


def _check_benches(benches: Sequence[str]) -> None:
    if not benches or "" in benches:
        raise UsageError("eval needs a benchmark", hint="igrpo eval --bench aime24; --list names them")
    name, number = Counter(map(bench_name, benches)).most_common(1)[0]
    if number > 1:
        raise UsageError(f"{number} benchmarks are called {name}", hint="name each once; files go by their stem")


@contextmanager
def _session(request: EvalRequest, console: Console) -> Iterator[Session]:
    """The run's session, or one without a run for `--model`, and for a plan that needs neither."""
    sets = _with_samples(request)
    if request.model is None and not _is_plan_alone(request):
        with open_session(request.run, sets, console) as session:
            session.require_trackers()
            yield session
        return
    if request.run != Path():
        raise UsageError("eval takes a run or --model, not both", hint="igrpo eval --model M --bench aime24")
    config = _config_of_model(request.model or "MODEL", sets)
    session = Session(RunDirectory(request.output or Path()), config, console)
    try:
        yield session
    finally:
        session.close()


def _is_plan_alone(request: EvalRequest) -> bool:
    """Whether only a plan is asked for, outside any run: how much a benchmark is does not depend on the model."""
    no_run = request.run == Path() and not RunDirectory(request.run).run_toml.exists()
    return request.dry_run and request.model is None and request.iteration is None and no_run


def _with_samples(request: EvalRequest) -> list[str]:
    """The settings of the command line, `--samples` among them. Raises UsageError for two numbers of samples."""
    sets = list(request.sets)
    if request.samples is None:
        return sets
    for text in sets:
        section, key, value = parse_override(text)
        if (section, key) == ("eval", "repeats") and value != request.samples:
            raise UsageError(
                f"--samples {request.samples} and --set {text} are two values of one setting",
                hint="leave out one of them",
            )
    return [*sets, f"eval.repeats={request.samples}"]


def _config_of_model(model: str, sets: list[str]) -> RunConfig:
    settings = apply_overrides({"policy": {"model": model}}, sets)
    config = check_config(settings, "--set")
    if config.log.report_to:
        raise UsageError(
            "what --model is measured at belongs to no run, and is not logged", hint="leave out log.report_to"
        )
    return config


def _evaluations(session: Session, request: EvalRequest, benches: Sequence[str]) -> list[Evaluation]:
    from igrpo_cli.problems.sources import default_repeats

    section = session.config.eval
    problems = [_problems(session, request, bench) for bench in benches]
    policy, model = _policy(session, request)
    return [
        Evaluation(
            bench=bench_name(bench),
            problems=problems_of_bench[: section.limit],
            samples=section.repeats or default_repeats(bench),
            policy=policy,
            model=model,
            selection=section.selection if request.conditioned else None,
        )
        for bench, problems_of_bench in zip(benches, problems, strict=True)
    ]


def _problems(session: Session, request: EvalRequest, bench: str) -> list[Problem]:
    """All problems of a benchmark, frozen beside its results."""
    from igrpo_cli.problems.loading import load_problems
    from igrpo_cli.problems.sources import resolve_bench

    loaded = load_problems(resolve_bench(bench, request.bench_dir), skip_bad_rows=request.skip_bad_rows)
    if not request.dry_run:
        path, made_from = session.run.eval_problems(bench_name(bench)), {"bench": {"sha256": loaded.sha256}}
        freeze_problems(
            path,
            loaded.problems,
            made_from,
            loaded.counts,
            revision=loaded.revision,
            overwrite=request.overwrite,
        )
    return loaded.problems


def _policy(session: Session, request: EvalRequest) -> tuple[Policy, str | int]:
    if _is_plan_alone(request):
        return UNDECIDED, "MODEL"
    if request.model is None:
        if request.iteration is not None:
            return session.policy(request.iteration), request.iteration
        newest = newest_policy(session.run)
        return session.policy(newest), newest
    from igrpo_cli.engines.hub import fetch_model
    from igrpo_cli.problems.sources import model_location

    section = session.config.policy
    fetched = fetch_model(model_location(request.model), section.revision, trust_remote_code=section.trust_remote_code)
    files = describe_directory(fetched.directory)
    policy = Policy(policy_id(files), fetched.directory, 0, None, files, request.model, fetched.revision_commit)
    return policy, directory_name(request.model)


def _evaluate(session: Session, request: EvalRequest, evaluation: Evaluation) -> tuple[dict[str, Any], str]:
    from igrpo_cli.problems.loading import problems_in_both
    from igrpo_cli.ui.tables import summary_text

    if evaluation.selection is not None and not request.dry_run:
        require_bare_samples(session, evaluation)
    stage = StageRequest(
        iteration=evaluation.policy.iteration,
        shards=session.shards_or_all(request.shard),
        overwrite=request.overwrite,
        dry_run=request.dry_run,
        take_over=request.take_over,
    )
    report = sample_evaluation(session, evaluation, stage)
    if request.dry_run:
        return _dry_run(session, evaluation, report)
    trained_on = 0 if request.model else len(problems_in_both(evaluation.problems, session.problems()))
    if trained_on:
        among = f"{trained_on} of the {len(evaluation.problems)} problems of {evaluation.bench}"
        session.console.note(f"{among} are training problems of the run: their accuracy may be memory")
    missing = [path for path in evaluation_shards(session, evaluation) if not path.manifest.exists()]
    if missing:
        payload = {**_head(evaluation), **report.payload(), "shards_still_missing": len(missing)}
        done = f"{evaluation.bench}: {report.shards} shards are done"
        return payload, f"{done}; the summary follows when the other {len(missing)} are"
    summary = _summarise(session, evaluation, trained_on)
    return summary, summary_text(summary)


def _summarise(session: Session, evaluation: Evaluation, trained_on: int) -> dict[str, Any]:
    """The figures of all shards, kept as `summary.json` beside them."""
    from igrpo_cli.evaluation.summary import conditioned_figures
    from igrpo_cli.store.checksummed_json import write_summary

    results, summary = _figures(session, evaluation, trained_on)
    if evaluation.selection is not None:
        bare, figures = _figures(session, evaluation.bare, trained_on)
        summary |= {"bare": figures, **conditioned_figures(results.rollouts, bare.rollouts)}
    place = session.run.eval_summary(evaluation.bench, evaluation.model, conditioned=evaluation.selection)
    write_summary(place, summary)
    session.report()
    return summary


def _figures(session: Session, evaluation: Evaluation, trained_on: int) -> tuple[EvalResults, dict[str, Any]]:
    """The rollouts of all shards, and their figures.

    `trained_on` is the number of problems that are training problems of the run, too.
    """
    from igrpo_cli.evaluation.consensus import consensus
    from igrpo_cli.evaluation.summary import summarise

    results = read_results(evaluation_shards(session, evaluation))
    title = f"comparing answers of {evaluation.bench}"
    cons_at = results.known_consensus or consensus(session, results.rollouts, title)
    summary = summarise(results.rollouts, evaluation.bench, _head(evaluation)["model"], cons_at)
    kind = {"conditioned": evaluation.selection is not None, "selection": evaluation.selection}
    return results, {**summary, **kind, "trained_on": trained_on, "shards": results.shards}


def _head(evaluation: Evaluation) -> dict[str, Any]:
    policy = evaluation.policy
    name = policy.model or f"policy {evaluation.model}"
    return {
        "bench": evaluation.bench,
        "problems": len(evaluation.problems),
        "samples": evaluation.samples,
        "model": None if policy is UNDECIDED else {"name": name, "policy": policy.id, "revision": policy.revision},
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
