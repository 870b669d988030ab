"""`igrpo draft|select|refine|update`: run one stage of one iteration by its name."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from igrpo_cli.commands import draft, refine, select, update
from igrpo_cli.config.files import write_config
from igrpo_cli.errors import UsageError
from igrpo_cli.pipeline.plan import describe_size
from igrpo_cli.pipeline.session import Session, StageRequest, open_session
from igrpo_cli.pipeline.update_memory import MemoryRequest, describe_memory, parse_bytes, predict_update
from igrpo_cli.pipeline.update_steps import ONLY_SHARD
from igrpo_cli.records import StageReport
from igrpo_cli.store.atomic import remove_directory
from igrpo_cli.store.hints import command_line
from igrpo_cli.store.lineage import stale_followers
from igrpo_cli.torchrun import rank_and_size
from igrpo_cli.ui.console import Console

STAGES: dict[str, Callable[[Session, StageRequest], StageReport]] = {
    "draft": draft.run,
    "select": select.run,
    "refine": refine.run,
    "update": update.run,
}


@dataclass(frozen=True)
class StageOptions:
    """The options of a stage on the command line; None means the next iteration and all shards."""

    iteration: int | None
    shard: str | None
    overwrite: bool = False
    dry_run: bool = False
    take_over: bool = False
    cascade: bool = False
    memory: MemoryRequest | None = None
    """The machine that a dry run of the update predicts the memory for."""


def run(name: str, path: Path, options: StageOptions, sets: list[str], console: Console) -> None:
    """Open the run at `path`, run the stage `name` and print its report."""
    with open_session(path, sets, console) as session:
        session.require_extras(name)
        request = StageRequest(
            iteration=_iteration(session, name, options.iteration),
            # An update has one shard, so it does not read the number of a Slurm task.
            shards=ONLY_SHARD if name == "update" else session.shards_or_all(options.shard),
            overwrite=options.overwrite,
            dry_run=options.dry_run,
            take_over=options.take_over,
        )
        report = perform(session, name, request)
        if name == "update" and options.dry_run and name in session.config.stages():
            policy = session.policy(request.iteration)
            with session.console.activity("predicting the memory of the update"):
                report.details["memory"] = predict_update(
                    session, request.iteration, policy, options.memory or MemoryRequest()
                )
        if (options.overwrite or options.cascade) and not options.dry_run:
            _report_stale(session, name, request.iteration, sets, remove=options.cascade)
        text = _plan_text(session, report) if options.dry_run else summary_line(report)
        console.data(report.payload(), text)


def memory_request(device_memory: str | None, num_ranks: int | None, *, dry_run: bool) -> MemoryRequest:
    """Return the machine that a dry run predicts the memory for. Raises UsageError for a machine without a dry run."""
    for flag, value in (("--device-memory", device_memory), ("--ranks", num_ranks)):
        if value is not None and not dry_run:
            raise UsageError(
                f"{flag} is for a prediction, which only a dry run makes", hint=f"{flag} {value} --dry-run"
            )
    size = None if device_memory is None else parse_bytes(device_memory)
    return MemoryRequest(size, rank_and_size()[1] if num_ranks is None else num_ranks)


def perform(session: Session, name: str, request: StageRequest) -> StageReport:
    """Run one stage of an open run; `seconds` of the report is its wall time."""
    session.enter(request.iteration)
    of_run, stages = session.run_config.stages(), session.config.stages()
    if name in of_run and name not in stages:
        # A script that runs all stages of each iteration need not know which iterations refine.
        return StageReport(name, request.iteration, details={"missing_shards": ""})
    if name not in stages:
        raise UsageError(
            f'run.method = "{session.config.run.method}" has no stage {name}',
            hint=f"its stages: {', '.join(stages)}",
        )
    started = time.monotonic()
    report = STAGES[name](session, request)
    report.seconds = round(time.monotonic() - started, 3)
    if name == "update" and not request.dry_run:
        session.report()
    if request.dry_run:
        report.details["plan"] = session.size()
        report.details["config"] = session.config.model_dump(mode="json", exclude_none=True)
    return report


def _report_stale(session: Session, name: str, iteration: int, sets: list[str], *, remove: bool) -> None:
    """Print what does not follow from a stage any more that was made again, or remove it."""
    run, num_shards = session.run, session.config.run.num_shards
    stale = stale_followers(run, iteration, name, num_shards)
    if not stale:
        return
    places = ", ".join(str(path.relative_to(run.root)) for path in reversed(stale))
    if remove:
        for path in stale:
            remove_directory(path)
        session.console.note(f"removed what followed from the earlier {name}: {places}")
        return
    flags = [f"--iteration {iteration} --cascade", *(f"--set {shlex.quote(text)}" for text in sets)]
    again = command_line(run.root, name, " ".join(flags))
    session.console.note(f"made from the earlier {name}, and stale now: {places}; `{again}` removes them")


def summary_line(report: StageReport) -> str:
    """Return the report of a stage as one line."""
    done = f"iteration {report.iteration} {report.stage}: {report.rows:,} rows of {report.groups:,} groups"
    if report.skipped == report.shards:
        return f"{done}, already done"
    rate = f", {report.tokens / report.seconds:,.0f} tokens/s" if report.tokens and report.seconds else ""
    again = f", {report.skipped} of {report.shards} shards already done" if report.skipped else ""
    proposed, accepted = (report.details.get(f"{name}_tokens", 0) for name in ("proposed", "accepted"))
    share = f", {accepted / proposed:.0%} of {proposed:,} proposed tokens accepted" if proposed else ""
    return f"{done}, {report.tokens:,} tokens in {report.seconds:.1f} s{rate}{share}{again}"


def _iteration(session: Session, name: str, iteration: int | None) -> int:
    current = session.iteration_or_current(iteration)
    # `igrpo update` right after it completed: the next iteration has not begun, so the same one is meant.
    if name == "update" and iteration is None and current > 0 and not session.run.iteration(current).exists():
        return current - 1
    return current


def _plan_text(session: Session, report: StageReport) -> str:
    missing = report.details.get("missing_shards")
    shards = f"missing shards: {missing}" if missing else "nothing to do: all shards are there"
    lines = [write_config(session.config).decode(), describe_size(session.config, report.details["plan"]), shards]
    if "memory" in report.details:
        lines.append(describe_memory(report.details["memory"]))
    return "\n".join(lines)
