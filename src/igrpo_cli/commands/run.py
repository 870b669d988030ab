"""`igrpo run`: all stages of all unfinished iterations in one process. It writes the same files as single commands."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from igrpo_cli.commands import draft, refine
from igrpo_cli.commands import eval as evaluation
from igrpo_cli.commands.stage import perform, summary_line
from igrpo_cli.config.files import write_config
from igrpo_cli.errors import UsageError
from igrpo_cli.inspection.run_state import RunStatus
from igrpo_cli.pipeline.plan import describe_size
from igrpo_cli.pipeline.rollout_stage import RolloutStage, open_sampler
from igrpo_cli.pipeline.session import Session, StageRequest, open_session
from igrpo_cli.records import StageReport
from igrpo_cli.store.hints import command_line
from igrpo_cli.store.layout import bench_name
from igrpo_cli.store.lineage import first_stale
from igrpo_cli.torchrun import rank_and_size
from igrpo_cli.ui.console import Console, printable


def run(
    path: Path, iterations: int | None, sets: list[str], bench_dir: Path | None, *, dry_run: bool, console: Console
) -> None:
    """Run what is left of the run at `path`, at most `iterations` iterations, with the evaluations of `run.eval_every`.

    A benchmark that cannot be read is an error before anything is sampled.
    """
    if rank_and_size()[1] > 1:
        raise UsageError(
            "igrpo run is one process; torchrun is for the update alone",
            hint="igrpo draft, select and refine as usual, then torchrun … -m igrpo_cli update RUN",
        )
    with open_session(path, sets, console) as session:
        session.require_extras(*session.config.stages())
        if sets and not dry_run:
            kept = command_line(path, "set", " ".join(map(shlex.quote, sets)))
            console.note(f"--set holds for this command alone; `{kept}` holds for later ones too")
        todo = unfinished(session)[:iterations]
        if dry_run:
            size = session.size()
            lines = [
                write_config(session.config).decode(),
                describe_size(session.config, size),
                f"{len(todo)} iterations to run",
            ]
            console.data({"run": str(path), "plan": size, "iterations": todo}, "\n".join(lines))
            return
        session.last_iteration = max(todo, default=None)
        started = time.monotonic()
        bench = session.run_config.latest.run.eval_bench or ""
        policies = _policies_to_evaluate(session, bench, bench_dir)
        reached = todo[0] if todo else session.num_iterations()
        for policy in (each for each in policies if each <= reached and session.run.policy(each).is_dir()):
            evaluate_policy(session, policy, bench, bench_dir)
        reports = []
        with console.progress(printable(session.run.name), len(todo), "iterations") as whole:
            whole.seconds_per_unit = RunStatus(session.run, session.run_config).seconds_per_iteration(reached)
            for iteration in todo:
                reports += run_iteration(session, iteration)
                if iteration + 1 in policies:
                    evaluate_policy(session, iteration + 1, bench, bench_dir)
                whole.advance()
        seconds = round(time.monotonic() - started, 3)
        payload = {"run": str(path), "iterations": todo, "seconds": seconds}
        payload["stages"] = [report.payload() for report in reports]
        payload["policy"] = str(session.run.policy(todo[-1] + 1 if todo else session.num_iterations()))
        newest = printable(str(payload["policy"]))
        done = f"{len(todo)} iterations in {seconds:.1f} s" if todo else "all iterations are already complete"
        console.data(payload, f"{done}; the newest policy is {newest}")


def evaluate_policy(session: Session, policy: int, bench: str, bench_dir: Path | None) -> None:
    """Evaluate a policy on a benchmark without draft, and with draft if the run has it; complete ones are kept."""
    session.enter(None)
    name = bench_name(bench)
    problems = session.run.eval_problems(name)
    for selection in session.config.evaluations:
        if problems.data.exists() and session.run.eval_summary(name, policy, conditioned=selection).exists():
            continue
        has_draft = selection is not None
        request = evaluation.EvalRequest(
            session.run.root, bench, iteration=policy, with_draft=has_draft, bench_dir=bench_dir
        )
        figures, _ = evaluation.evaluate(session, request)
        prompts = "with draft" if has_draft else "without draft"
        session.console.note(f"policy {policy}: {100 * (figures['avg_at_k'] or 0):.1f} % {prompts}")


def _policies_to_evaluate(session: Session, bench: str, bench_dir: Path | None) -> list[int]:
    """Return the policies that `run.eval_every` names, after the benchmark was read once."""
    from igrpo_cli.problems.loading import load_problems
    from igrpo_cli.problems.sources import resolve_bench

    every, last = session.run_config.latest.run.eval_every, session.num_iterations()
    if every is None:
        return []
    load_problems(resolve_bench(bench, bench_dir))
    return sorted({*range(0, last, every), last})


def unfinished(session: Session) -> list[int]:
    """Return the iterations without a complete update, in order.

    The policy of an update that was completed while its process died is promoted first.
    """
    if stale := first_stale(session.run, session.num_iterations()):
        raise stale[1]
    current, total = session.current_iteration(), session.num_iterations()
    if session.run.update(current).manifest.exists():
        perform(session, "update", StageRequest(current, (0,)))
        return []
    return list(range(current, total))


def run_iteration(session: Session, iteration: int) -> list[StageReport]:
    """Run all stages of one iteration; complete ones are skipped.

    With `run.staleness` the drafts of the next iteration are sampled before the update, while the engine holds the
    policy that they come from.
    """
    session.enter(iteration)
    samples_ahead = session.config.run.staleness > 0
    reports = []
    if samples_ahead or "refine" not in session.config.stages():
        reports.append(_draft(session, iteration))
    if "refine" in session.config.stages():
        reports = sample(session, iteration)
    if samples_ahead and iteration + 1 < session.num_iterations():
        session.enter(iteration + 1)
        reports.append(_draft(session, iteration + 1))
        session.enter(iteration)
    session.sleep_engine()
    reports.append(perform(session, "update", StageRequest(iteration, (0,))))
    for report in reports:
        session.console.detail(summary_line(report))
    session.console.note(iteration_line(reports))
    return reports


def _draft(session: Session, iteration: int) -> StageReport:
    return perform(session, "draft", StageRequest(iteration, session.shards_or_all(None)))


def sample(session: Session, iteration: int) -> list[StageReport]:
    """Draft, select and refine with one sampler: a shard is refined while drafts of later shards are being sampled."""
    request = StageRequest(iteration, session.shards_or_all(None))
    plans = draft.plan(session, iteration), refine.plan(session, iteration)
    num_blocks = sum(len(plan.blocks.of_shard(shard)) for plan in plans for shard in request.shards)
    selected: list[StageReport] = []
    started = drafted = time.monotonic()
    with (
        session.console.progress(f"iteration {iteration}", num_blocks, "blocks") as progress,
        open_sampler(session, session.policy(iteration), progress) as sampler,
    ):
        drafts, refinements = (RolloutStage(session, request, plan, sampler, progress) for plan in plans)
        draft.sample(drafts)
        for shard in request.shards:
            drafts.wait_for(request.shards if session.config.select.reads_all_drafts else [shard])
            drafted = time.monotonic()
            if shard == request.shards[-1]:  # Before more is sampled: a reward function that fails, fails for all.
                drafts.require_graded()
            selected.append(perform(session, "select", StageRequest(iteration, (shard,))))
            refine.sample(refinements, [shard])
        drafts.finish()
        refinements.finish()
    reports = [drafts.report(), perform(session, "select", request), refinements.report()]
    reports[1].skipped = sum(report.skipped for report in selected)
    reports[1].seconds = round(sum(report.seconds for report in selected), 3)
    # Refining begins before drafting ends: what follows the last draft shard counts as refining.
    reports[0].seconds = round(drafted - started, 3)
    reports[2].seconds = round(time.monotonic() - drafted, 3)
    return reports


def iteration_line(reports: list[StageReport]) -> str:
    """Return one line about a complete iteration."""
    seconds = sum(report.seconds for report in reports)
    accuracy = [
        f"{report.stage} {report.details.get('verdict_correct', 0)}/{report.rows} right"
        for report in reports
        if report.stage in ("draft", "refine") and report.iteration == reports[0].iteration
    ]
    return f"iteration {reports[0].iteration}: {', '.join(accuracy)}, {seconds:.1f} s"
