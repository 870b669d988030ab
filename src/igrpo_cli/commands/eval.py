"""`igrpo eval`: evaluate a policy on benchmarks, k samples per problem; `--with-draft` refines those samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from igrpo_cli.config import RunConfig
from igrpo_cli.config.blocks import Blocks
from igrpo_cli.config.files import apply_overrides, check_config, parse_override
from igrpo_cli.errors import ConflictError, UsageError
from igrpo_cli.evaluation.shards import (
    EvalResults,
    Evaluation,
    evaluation_shards,
    incomplete_shards,
    read_results,
    require_samples_to_refine,
    sample_evaluation,
    with_samples_on_disk,
)
from igrpo_cli.pipeline.frozen_problems import freeze_problems
from igrpo_cli.pipeline.plan import describe_sampling, size_of_sampling
from igrpo_cli.pipeline.session import Session, StageRequest, open_session
from igrpo_cli.records import Problem, StageReport
from igrpo_cli.store.hints import shell_path
from igrpo_cli.store.layout import RunDirectory, bench_name, directory_name
from igrpo_cli.store.lineage import newest_policy
from igrpo_cli.store.policies import Policy, describe_directory, policy_id
from igrpo_cli.ui.console import Console
from igrpo_cli.ui.tables import all_benches_text, markdown_table, markdown_text, plain_table, summary_text

if TYPE_CHECKING:
    from igrpo_cli.problems.sources import NamedSet, ProblemSource

UNDECIDED = Policy("", Path(), 0)
"""The policy in the plan of an evaluation without a run and without `--model`."""
DEFAULT_REVISION = "main"
"""The branch that the Hub gives when no revision is named. The manifest records the commit."""
MAX_CELL_LENGTH = 40
"""Maximum length of the column names of a benchmark in the table. `--json` has all of them."""


@dataclass(frozen=True)
class EvalRequest:
    """The options of the command line."""

    run: Path
    bench: str = ""
    """The benchmark, for `evaluate`."""
    model: str | None = None
    samples: int | None = None
    with_draft: bool = False
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
    """Evaluate on each benchmark and print the figures. All problems are read before the first sample."""
    from igrpo_cli.evaluation.summary import macro_average

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


def list_benches(console: Console, *, markdown: bool = False) -> None:
    """Print all named benchmarks: their source, the columns that are read, and the default number of samples."""
    from igrpo_cli.problems.sources import BENCHES, PACKAGED_SETS

    described = [_packaged_bench(name) for name in PACKAGED_SETS] + [_named_bench(named) for named in BENCHES.values()]
    rows = [{name: _cell(value) for name, value in bench.items()} for bench in described]
    console.data({"benches": described}, markdown_table(rows) if markdown else plain_table(rows))


def evaluate(session: Session, request: EvalRequest) -> tuple[dict[str, Any], str]:
    """Return the figures on `request.bench` as a JSON object and as text. Complete shards are not sampled again."""
    (evaluation,) = _evaluations(session, request, [request.bench])
    return _evaluate(session, request, evaluation)


def _text_of_all(payloads: Sequence[dict[str, Any]], average: float | None) -> str:
    """Return what follows the texts of several benchmarks: a table of all of them, or the sum of their plans."""
    plans = [payload["plan"] for payload in payloads if "plan" in payload]
    if plans:
        completions, tokens = (sum(plan[key] for plan in plans) for key in ("completions", "max_tokens_sampled"))
        return f"in total {completions:,} completions, at most {tokens:,} tokens"
    measured = [payload for payload in payloads if "avg_at_k" in payload]
    if not measured:
        return f"{len(payloads)} benchmarks, none of them complete"
    return all_benches_text(measured, average)


def _check_benches(benches: Sequence[str]) -> None:
    if not benches or "" in benches:
        raise UsageError("eval needs a benchmark", hint="igrpo eval --bench aime24; --list names them")
    name, number = Counter(map(bench_name, benches)).most_common(1)[0]
    if number > 1:
        raise UsageError(f"{number} benchmarks are called {name}", hint="name each once; a file is named by its stem")


@contextmanager
def _session(request: EvalRequest, console: Console) -> Iterator[Session]:
    """Open the session of the run, or one without a run: for `--model`, and for a plan that needs neither."""
    sets = _with_samples(request)
    if request.model is None and not _is_plan_alone(request):
        with open_session(request.run, sets, console) as session:
            session.require_extras("eval")
            yield session
        return
    if request.run != Path():
        raise UsageError("eval takes a run or --model, not both", hint="igrpo eval --model M --bench aime24")
    config = _config_of_model(request.model or "MODEL", sets)
    session = Session(RunDirectory(request.output or Path()), config, console)
    session.has_problems = False
    try:
        yield session
    finally:
        session.close()


def _is_plan_alone(request: EvalRequest) -> bool:
    """Return True for `--dry-run` without run and model. The size of a benchmark does not depend on the model."""
    no_run = request.run == Path() and not RunDirectory(request.run).run_toml.exists()
    return request.dry_run and request.model is None and request.iteration is None and no_run


def _with_samples(request: EvalRequest) -> list[str]:
    """Return the settings of the command line, with `--samples`. Raises UsageError for two numbers of samples."""
    sets = list(request.sets)
    if request.samples is None:
        return sets
    for text in sets:
        section, key, value = parse_override(text)
        if (section, key) == ("eval", "repeats") and value != request.samples:
            raise UsageError(
                f"--samples {request.samples} and --set {text} set the same key",
                hint="use one of them",
            )
    return [*sets, f"eval.repeats={request.samples}"]


def _config_of_model(model: str, sets: list[str]) -> RunConfig:
    settings = apply_overrides({"policy": {"model": model}}, sets)
    config = check_config(settings, "--set")
    if config.log.report_to:
        raise UsageError("an evaluation of --model belongs to no run and is not logged", hint="remove log.report_to")
    return config


def _evaluations(session: Session, request: EvalRequest, benches: Sequence[str]) -> list[Evaluation]:
    from igrpo_cli.problems.sources import default_repeats

    if request.with_draft:
        _require_answers(session.config)
    section = session.config.eval
    problems = [_problems(session, request, bench) for bench in benches]
    policy, model = _policy(session, request)
    evaluations = [
        Evaluation(
            bench=bench_name(bench),
            problems=problems_of_bench[: section.limit],
            samples=section.repeats or default_repeats(bench),
            policy=policy,
            model=model,
            selection=section.selection if request.with_draft else None,
            repeats=section.repeats,
        )
        for bench, problems_of_bench in zip(benches, problems, strict=True)
    ]
    return evaluations if request.overwrite else [_with_all_samples(session, each) for each in evaluations]


def _with_all_samples(session: Session, evaluation: Evaluation) -> Evaluation:
    """Return the evaluation with all samples on disk, and say so if they are more than were asked for."""
    whole = with_samples_on_disk(session, evaluation)
    if whole.samples > evaluation.samples:
        session.console.note(
            f"{whole.bench}: {whole.samples} samples per problem are there, and {evaluation.samples} were asked for: "
            "the figures are of all of them (--overwrite discards them)"
        )
    return whole


def _require_answers(config: RunConfig) -> None:
    """Raise UsageError where the refinements of an evaluation with draft would not be the policy's own answers."""
    if config.evaluates_with_draft:
        return
    told = "the prompt tells the verdict of the grader on the draft ({verdict}), which needs the reference answer"
    asked = 'refinements state a verdict on their draft (reward.refinements = "verdict"), not an answer'
    written = "the prompt holds a critique of the draft ({critique}), which is written in training only"
    other = "" if config.critique.by == "none" else "--set critique.by=none "
    raise UsageError(
        f"there is no evaluation with draft: "
        f"{told if config.prompts.shows_verdict else written if config.prompts.shows_critique else asked}",
        hint="evaluate without --with-draft; or, to measure refinements of another prompt, add "
        f"{other}--set reward.refinements=answer --set 'prompts.refine_template=…'",
    )


def _problems(session: Session, request: EvalRequest, bench: str) -> list[Problem]:
    """Read all problems of a benchmark and store them next to its results."""
    from igrpo_cli.problems.loading import load_problems
    from igrpo_cli.problems.sources import resolve_bench

    loaded = load_problems(resolve_bench(bench, request.bench_dir), skip_bad_rows=request.skip_bad_rows)
    if not request.dry_run:
        path, made_from = session.run.eval_problems(bench_name(bench)), {"bench": {"sha256": loaded.sha256}}
        try:
            freeze_problems(
                path,
                loaded.problems,
                made_from,
                loaded.counts,
                revision=loaded.revision,
                overwrite=request.overwrite,
            )
        except ConflictError as error:
            # The name of the results does not say in which file or folder the benchmark is.
            hint = (error.hint or "").replace(f"--bench {bench_name(bench)}", f"--bench {shell_path(Path(bench))}")
            raise ConflictError(error.message, hint=hint) from error
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

    if evaluation.selection is not None and not request.dry_run:
        require_samples_to_refine(session, evaluation)
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
    if session.launch is not None and not session.launch.is_first:
        return {}, ""  # The first rank computes the figures.
    trained_on = 0 if request.model else len(problems_in_both(evaluation.problems, session.problems()))
    if trained_on:
        among = f"{trained_on} of the {len(evaluation.problems)} problems of {evaluation.bench}"
        session.console.note(f"{among} are training problems of the run: their accuracy may be memorised")
    missing = incomplete_shards(session, evaluation)
    if missing:
        payload = {**_head(evaluation), **report.payload(), "shards_still_missing": len(missing)}
        done = f"{evaluation.bench}: {report.shards} shards are complete"
        return payload, f"{done}; the summary is written when the other {len(missing)} are"
    summary = _summarise(session, evaluation, trained_on)
    return summary, summary_text(summary)


def _summarise(session: Session, evaluation: Evaluation, trained_on: int) -> dict[str, Any]:
    """Compute the figures from all shards, and write them to `summary.json` in their directory."""
    from igrpo_cli.evaluation.summary import refinement_figures
    from igrpo_cli.store.checksummed_json import write_summary

    results, summary = _figures(session, evaluation, trained_on)
    if evaluation.selection is not None:
        samples, figures = _figures(session, evaluation.without_draft, trained_on)
        summary |= {"bare": figures, **refinement_figures(results.rollouts, samples.rollouts)}
    place = session.run.eval_summary(evaluation.bench, evaluation.model, conditioned=evaluation.selection)
    write_summary(place, summary)
    session.report()
    return summary


def _figures(session: Session, evaluation: Evaluation, trained_on: int) -> tuple[EvalResults, dict[str, Any]]:
    """Return the rollouts of all shards and their figures.

    `trained_on` is the number of problems that are also training problems of the run.
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
    """Return the plan under the keys of a real evaluation. Values that are not known yet are null."""
    unknown = ("avg_at_k", "ci95", "pass_at_k", "maj_at_k", "verdicts", "mean_completion_tokens", "truncated_fraction")
    head, section = _head(evaluation), session.config.eval
    blocks = Blocks(head["problems"], session.config.engine.groups_per_block, session.config.run.num_shards)
    prompt = session.config.prompts.max_prompt_length
    if evaluation.selection is not None:
        prompt += min(section.max_gen_toks, session.config.prompts.max_draft_tokens)
    plan = size_of_sampling(blocks, head["samples"], prompt, section.max_gen_toks)
    plan["missing_shards"] = report.details["missing_shards"]
    text = (
        f"{evaluation.bench}: {head['problems']} problems x {head['samples']} samples = {plan['completions']:,} "
        f"completions, at most {plan['max_tokens_sampled']:,} tokens; "
        f"missing shards: {plan['missing_shards'] or 'none'}\n{describe_sampling(plan)}"
    )
    config = session.config.model_dump(mode="json", exclude_none=True)
    return {**head, **dict.fromkeys(unknown), "plan": plan, "config": config}, text


def _named_bench(named: NamedSet) -> dict[str, Any]:
    source = named.source
    return {
        "name": named.name,
        "source": str(source.location),
        "revision": source.revision or DEFAULT_REVISION,
        "config": list(source.configs) or None,
        "split": source.split,
        "columns": _columns(source) or None,
        "answer_form": source.answer_form,
        "samples": named.repeats,
    }


def _packaged_bench(name: str) -> dict[str, Any]:
    from igrpo_cli.problems.sources import OTHER_REPEATS

    columns = {"problem": "problem", "answer": "answer"}
    place = {"source": "packaged", "revision": None, "config": None, "split": "test"}
    return {"name": name, **place, "columns": columns, "answer_form": "auto", "samples": OTHER_REPEATS}


def _columns(source: ProblemSource) -> dict[str, Any]:
    """Return {role: column or columns} for the columns that are named. The others are found by their usual names."""
    named = [field.name for field in fields(source) if field.name.endswith(("_column", "_columns"))]
    values = {name.rpartition("_column")[0]: getattr(source, name) for name in named}
    return {role: list(value) if isinstance(value, tuple) else value for role, value in values.items() if value}


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict):
        return shorten(", ".join(map(_cell, value.values())), MAX_CELL_LENGTH, placeholder=" …")
    return ", ".join(value) if isinstance(value, list) else str(value)
