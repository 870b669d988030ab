"""`igrpo run`: all stages of all unfinished iterations in one process. The same files as the single commands."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from igrpo_cli.commands import draft, refine
from igrpo_cli.commands.stage import perform, summary_line
from igrpo_cli.config.files import write_config
from igrpo_cli.errors import UsageError
from igrpo_cli.pipeline.plan import describe_arithmetic, iteration_arithmetic
from igrpo_cli.pipeline.rollout_stage import RolloutShards, roll_out_in
from igrpo_cli.pipeline.session import Session, StageRequest, open_session
from igrpo_cli.records import StageReport
from igrpo_cli.rollouts import BlockJob
from igrpo_cli.torchrun import rank_and_size
from igrpo_cli.ui.console import Console, printable


def run(path: Path, iterations: int | None, sets: list[str], *, dry_run: bool, console: Console) -> None:
    """Run what is left of the run at `path`, at most `iterations` iterations of it."""
    if rank_and_size()[1] > 1:
        raise UsageError(
            "igrpo run is one process; torchrun is for the update alone",
            hint="igrpo draft, select and refine as usual, then torchrun … -m igrpo_cli update RUN",
        )
    with open_session(path, sets, console) as session:
        session.require_trackers()
        todo = unfinished(session)[:iterations]
        if dry_run:
            lines = [
                write_config(session.config).decode(),
                describe_arithmetic(session.config),
                f"{len(todo)} iterations",
            ]
            plan = {"plan": iteration_arithmetic(session.config), "iterations": todo}
            console.data({"run": str(path), **plan}, "\n".join(lines))
            return
        started = time.monotonic()
        reports = [report for iteration in todo for report in run_iteration(session, iteration)]
        seconds = round(time.monotonic() - started, 3)
        payload = {"run": str(path), "iterations": todo, "seconds": seconds}
        payload["stages"] = [report.payload() for report in reports]
        payload["policy"] = str(session.run.policy(todo[-1] + 1 if todo else session.num_iterations()))
        newest = printable(str(payload["policy"]))
        console.data(payload, f"{len(todo)} iterations in {seconds:.1f} s; the newest policy is {newest}")


def unfinished(session: Session) -> list[int]:
    """Iterations without a finished update, in order; an update that finished while its process died is settled."""
    current, total = session.current_iteration(), session.num_iterations()
    if session.run.update(current).manifest.exists():
        perform(session, "update", StageRequest(current, (0,)))
        return []
    return list(range(current, total))


def run_iteration(session: Session, iteration: int) -> list[StageReport]:
    """All stages of one iteration; finished ones are skipped."""
    if "refine" in session.config.stages():
        reports = sample(session, iteration)
    else:
        reports = [perform(session, "draft", StageRequest(iteration, session.shards_or_all(None)))]
    session.sleep_engine()
    reports.append(perform(session, "update", StageRequest(iteration, (0,))))
    for report in reports:
        session.console.detail(summary_line(report))
    session.console.note(iteration_line(reports))
    return reports


def sample(session: Session, iteration: int) -> list[StageReport]:
    """Draft, select and refine in one go: a shard is refined while drafts of later shards are still being sampled."""
    request = StageRequest(iteration, session.shards_or_all(None))
    drafts = RolloutShards(session, draft.drafts(session, iteration), request)
    refinements = RolloutShards(session, refine.refinements(session, iteration), request)
    selected: list[StageReport] = []
    started, drafted = time.monotonic(), 0.0

    def jobs() -> Iterator[BlockJob | None]:
        nonlocal drafted
        yield from drafts.jobs(progress)
        for shard in request.shards:
            needed = request.shards if session.config.select.strategy == "shuffled" else (shard,)
            while not all(drafts.publish(each) for each in needed):
                yield None
            drafted = time.monotonic()
            selected.append(perform(session, "select", StageRequest(iteration, (shard,))))
            yield from refinements.jobs_of(shard, progress)

    blocks = drafts.num_blocks + refinements.num_blocks
    with session.console.progress(f"iteration {iteration}", blocks, "blocks") as progress:
        roll_out_in(session, session.policy(iteration), jobs())
    reports = [drafts.finish(), perform(session, "select", request), refinements.finish()]
    reports[1].skipped = sum(report.skipped for report in selected)
    reports[1].seconds = round(sum(report.seconds for report in selected), 3)
    # Refining begins before drafting ends: what follows the last draft shard counts as refining.
    reports[0].seconds = round(drafted - started, 3)
    reports[2].seconds = round(time.monotonic() - drafted, 3)
    return reports


def iteration_line(reports: list[StageReport]) -> str:
    """What an iteration came to, in one line."""
    seconds = sum(report.seconds for report in reports)
    accuracy = [
        f"{report.stage} {report.details.get('verdict_correct', 0)}/{report.rows} right"
        for report in reports
        if report.stage in ("draft", "refine")
    ]
    return f"iteration {reports[0].iteration}: {', '.join(accuracy)}, {seconds:.1f} s"
