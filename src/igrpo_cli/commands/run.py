"""`igrpo run`: all stages of all unfinished iterations in one process. It writes the same files as single commands.

Under torchrun each rank keeps an engine and samples the blocks that no other rank has claimed. For the update each rank
starts a process that takes the steps together with those of the other ranks (`training.launch`).
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from igrpo_cli.commands import draft, refine
from igrpo_cli.commands import eval as evaluation
from igrpo_cli.commands.stage import perform, summary_line
from igrpo_cli.config.files import write_config
from igrpo_cli.errors import UsageError
from igrpo_cli.inspection.run_state import RunStatus
from igrpo_cli.pipeline.plan import describe_size
from igrpo_cli.pipeline.rollout_stage import RolloutStage, open_sampler
from igrpo_cli.pipeline.session import Session, StageRequest, open_session
from igrpo_cli.pipeline.update_steps import ONLY_SHARD
from igrpo_cli.records import StageReport
from igrpo_cli.store.hints import command_line
from igrpo_cli.store.layout import bench_name
from igrpo_cli.store.lineage import first_stale
from igrpo_cli.torchrun import rank_and_size
from igrpo_cli.ui.console import QUIET, VERBOSE, Console, printable

T = TypeVar("T")


def run(
    path: Path, iterations: int | None, sets: list[str], bench_dir: Path | None, *, dry_run: bool, console: Console
) -> None:
    """Run what is left of the run at `path`, at most `iterations` iterations, with the evaluations of `run.eval_every`.

    A benchmark that cannot be read is an error before anything is sampled.
    """
    with open_session(path, sets, console) as session:
        session.require_extras(*session.config.stages())
        if sets and not dry_run:
            kept = command_line(path, "set", " ".join(map(shlex.quote, sets)))
            console.note(f"--set holds for this command alone; `{kept}` holds for later ones too")
        if dry_run:
            todo, size = unfinished(session)[:iterations], session.size()
            lines = [
                write_config(session.config).decode(),
                describe_size(session.config, size),
                f"{len(todo)} iterations to run",
            ]
            console.data({"run": str(path), "plan": size, "iterations": todo}, "\n".join(lines))
            return
        if rank_and_size()[1] > 1:
            _join_launch(session)
        started = time.monotonic()
        todo = decided(session, "iterations", lambda: unfinished(session)[:iterations])
        session.last_iteration = max(todo, default=None)
        reports = _run(session, todo, bench_dir)
        seconds = round(time.monotonic() - started, 3)
        payload = {"run": str(path), "iterations": todo, "seconds": seconds}
        payload["stages"] = [report.payload() for report in reports]
        payload["policy"] = str(session.run.policy(todo[-1] + 1 if todo else session.num_iterations()))
        newest = printable(str(payload["policy"]))
        done = f"{len(todo)} iterations in {seconds:.1f} s" if todo else "all iterations are already complete"
        console.data(payload, f"{done}; the newest policy is {newest}")


def _run(session: Session, todo: list[int], bench_dir: Path | None) -> list[StageReport]:
    """Run the iterations and the evaluations that are due; return the reports of all stages."""
    bench, run = session.run_config.latest.run.eval_bench or "", session.run
    policies = _policies_to_evaluate(session, bench, bench_dir)
    reached = todo[0] if todo else session.num_iterations()
    for policy in decided(session, "due", lambda: [p for p in policies if p <= reached and run.policy(p).is_dir()]):
        evaluate_policy(session, policy, bench, bench_dir)
    reports = []
    with session.console.progress(printable(run.name), len(todo), "iterations") as whole:
        whole.seconds_per_unit = RunStatus(run, session.run_config).seconds_per_iteration(reached)
        for iteration in todo:
            reports += run_iteration(session, iteration)
            if iteration + 1 in policies:
                evaluate_policy(session, iteration + 1, bench, bench_dir)
            whole.advance()
    return reports


def decided(session: Session, name: str, make: Callable[[], T]) -> T:
    """Return `make()`, a JSON value. With several ranks it is that of the first one: others may see files later."""
    return make() if session.launch is None else session.launch.share(name, make)


def _join_launch(session: Session) -> None:
    """Join the ranks that torchrun started, before anything expensive starts.

    Raises UsageError for settings that do not work with several ranks.
    """
    from igrpo_cli.training.launch import Launch, take_device

    configs = [session.run_config.latest, *map(session.run_config.changed, range(session.num_iterations()))]
    for engine in (config.engine for config in configs):
        if engine.name == "server":
            raise UsageError(
                'engine.name = "server" does not work under torchrun: all ranks would load policies into the servers',
                hint="igrpo run without torchrun keeps all servers busy; or use vllm or transformers",
            )
        if engine.tensor_parallel_size > 1:
            raise UsageError(
                f"engine.tensor_parallel_size = {engine.tensor_parallel_size} does not work under torchrun: a rank "
                "samples on its own GPU",
                hint="set it to 1; or igrpo draft, select and refine, then torchrun … -m igrpo_cli update RUN",
            )
        if engine.device not in ("auto", "cpu", "cuda"):
            raise UsageError(
                f"engine.device = {engine.device} does not work under torchrun: a rank samples on its own GPU",
                hint="--set engine.device=auto",
            )
    take_device()
    session.launch = Launch()


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
        session.console.note(f"policy {policy}: {100 * (figures.get('avg_at_k') or 0):.1f} % {prompts}")


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
    if stale := first_stale(session.run, session.num_iterations(), session.config.run.staleness):
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
    reports.append(_update(session, iteration))
    for report in reports:
        session.console.detail(summary_line(report))
    session.console.note(iteration_line(reports))
    return reports


def _draft(session: Session, iteration: int) -> StageReport:
    return perform(session, "draft", StageRequest(iteration, session.shards_or_all(None)))


def _update(session: Session, iteration: int) -> StageReport:
    """Train on the rollouts of an iteration: in this process, or by all ranks, each in a process of its own."""
    request, launch, console = StageRequest(iteration, ONLY_SHARD), session.launch, session.console
    if launch is None:
        return perform(session, "update", request)
    started = time.monotonic()
    # This process notifies the trackers.
    words = ["update", os.path.abspath(session.run.root), "--iteration", str(iteration)]
    words += [word for each in (*session.overrides, "log.report_to=[]") for word in ("--set", each)]
    launch.train([*words, *{QUIET: ["-q"], VERBOSE: ["-v"]}.get(console.verbosity, [])])
    launch.wait_until(session.run.update(iteration).manifest.exists)
    report = perform(session, "update", request)
    report.skipped, report.seconds = 0, round(time.monotonic() - started, 3)
    return report


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
        if session.config.select.reads_all_drafts:
            drafts.wait_for(request.shards)
        left = list(request.shards)
        while left:
            left.remove(shard := drafts.wait_for_one(left))
            drafted = time.monotonic()
            if not left:  # Before more is sampled: a reward function that fails, fails for all.
                drafts.require_graded()
            selected.append(_select(session, drafts, shard))
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


def _select(session: Session, drafts: RolloutStage, shard: int) -> StageReport:
    """Select the drafts of one shard. The other ranks wait for the first one that comes to it."""
    path = session.run.shard(drafts.iteration, "select", shard, session.config.run.num_shards)
    if session.launch is not None and not session.launch.claim(path.relative):
        drafts.sample_until(path.manifest.exists)
    return perform(session, "select", StageRequest(drafts.iteration, (shard,)))


def iteration_line(reports: list[StageReport]) -> str:
    """Return one line about a complete iteration."""
    seconds = sum(report.seconds for report in reports)
    accuracy = [
        f"{report.stage} {report.details.get('verdict_correct', 0)}/{report.rows} right"
        for report in reports
        if report.stage in ("draft", "refine") and report.iteration == reports[0].iteration
    ]
    return f"iteration {reports[0].iteration}: {', '.join(accuracy)}, {seconds:.1f} s"
