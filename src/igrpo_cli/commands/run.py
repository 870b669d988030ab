"""`igrpo run`: all stages of all unfinished iterations in one process. The same files as the single commands."""

from __future__ import annotations

import time
from pathlib import Path

from igrpo_cli.commands.stage import perform, summary_line
from igrpo_cli.config_files import write_config
from igrpo_cli.console import Console
from igrpo_cli.plan import describe_arithmetic, iteration_arithmetic
from igrpo_cli.records import StageReport
from igrpo_cli.session import Session, StageRequest, open_session


def run(path: Path, iterations: int | None, sets: list[str], *, dry_run: bool, console: Console) -> None:
    """Run what is left of the run at `path`, at most `iterations` iterations of it."""
    with open_session(path, sets, console) as session:
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
        console.data(payload, f"{len(todo)} iterations in {seconds:.1f} s; the newest policy is {payload['policy']}")


def unfinished(session: Session) -> list[int]:
    """Iterations without a finished update, in order; an update that finished while its process died is settled."""
    current, total = session.current_iteration(), session.num_iterations()
    if session.run.update(current).manifest.exists():
        perform(session, "update", StageRequest(current, (0,)))
        return []
    return list(range(current, total))


def run_iteration(session: Session, iteration: int) -> list[StageReport]:
    """All stages of one iteration; finished ones are skipped."""
    shards = session.shards_or_all(None)
    reports = []
    for stage in session.config.stages():
        report = perform(session, stage, StageRequest(iteration, shards))
        session.console.detail(summary_line(report))
        reports.append(report)
    session.console.note(iteration_line(reports))
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
