"""`igrpo status`: show the state of a run, from its directory listings, manifests and metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from igrpo_cli.errors import EXIT_CTRL_C, EXIT_DONE, UsageError
from igrpo_cli.inspection.run_state import RunStatus
from igrpo_cli.inspection.shard_states import missing_shards
from igrpo_cli.pipeline.session import Session, open_session
from igrpo_cli.store.hints import command_line
from igrpo_cli.store.layout import RunDirectory, ShardPath, bench_name, format_shards
from igrpo_cli.store.lineage import newest_policy
from igrpo_cli.ui.console import Console, percent, printable, sparkline, table
from igrpo_cli.ui.progress import duration

RETRY_SECONDS = 0.1
LABELS = {
    "draft/accuracy_mean": "accuracy, without draft",
    "refine/accuracy_mean": "accuracy, with draft",
    "draft/reward_mean": "reward, without draft",
    "refine/reward_mean": "reward, with draft",
}
"""The curves on the screen, by metric."""
SPARKLINE_COLUMNS = 32
SHOWN_CHARACTERS = 18
"""Maximum length of a list of shards on the screen. `--missing` and `--json` have the whole list."""
SHOWN_FAULTS = 5
STOPPED_SECONDS = 3600
"""Without a change for so long, a shard counts as stopped, and no time is said to be left."""


@dataclass(frozen=True)
class StatusOptions:
    """The options of the command line."""

    iteration: int | None
    missing: str | None
    """A stage: print only its missing shards."""
    bench: str
    bench_dir: Path | None
    every: float | None
    """Seconds between two reads with `--watch`. None reads the run once."""


def run(path: Path, options: StatusOptions, console: Console) -> int:
    """Print the state of a run, or only the missing shards of a stage; return the exit code."""
    if options.bench and options.missing != "eval":
        raise UsageError(
            "--bench goes with --missing eval",
            hint=command_line(path, "status", f"--missing eval --bench {options.bench}"),
        )
    if options.every is not None and options.missing is not None:
        raise UsageError("--watch and --missing exclude each other", hint=command_line(path, "status", "--watch"))
    with open_session(path, [], console, only_looks=True) as session:
        status = RunStatus(session.run, session.run_config)
        if options.every is not None:
            return _watch(session, status, options.iteration, options.every)
        if options.missing is not None:
            _print_missing(session, status, options.missing, options)
        else:
            payload = _read(session, status, options.iteration)
            console.data(payload, status_text(payload))
    return EXIT_DONE


def _read(session: Session, status: RunStatus, iteration: int | None) -> dict[str, Any]:
    return status.read(session.iteration_or_current(iteration), session.num_iterations())


def _print_missing(session: Session, status: RunStatus, stage: str, options: StatusOptions) -> None:
    shards = format_shards(missing_shards(_requested_paths(session, status, stage, options)))
    if session.console.as_json:
        payload = _read(session, status, None if stage == "eval" else options.iteration)
        session.console.data(payload | {"missing": shards}, "")
    elif shards:
        session.console.data({}, shards)


def _watch(session: Session, status: RunStatus, iteration: int | None, seconds: float) -> int:
    """Show the state again and again until the run is complete, or Ctrl-C. Without a terminal, print only changes."""
    printed, console = None, session.console
    with suppress(KeyboardInterrupt), console.redrawn() as draw:
        while True:
            try:
                payload = _read(session, status, iteration)
            except FileNotFoundError:
                time.sleep(RETRY_SECONDS)  # A command has just removed the blocks of a shard that it completed.
                continue
            if draw is not None:
                draw(status_text(payload))
            elif (line := status_line(payload)) != printed:
                console.data(payload, f"{time.strftime('%H:%M:%S')} {line}")
                printed = line
            if not payload["unfinished"]:
                return EXIT_DONE
            time.sleep(seconds)
    return EXIT_CTRL_C


def _requested_paths(session: Session, status: RunStatus, stage: str, options: StatusOptions) -> tuple[ShardPath, ...]:
    """Return the shards to which `--missing` applies. For eval, `--iteration` is that of the policy."""
    if stage == "eval":
        return _eval_paths(session, options)
    stages = session.run_config.stages()
    if stage not in stages:
        raise UsageError(
            f'run.method = "{session.config.run.method}" has no stage {stage!r}',
            hint=f"its stages: {', '.join(stages)}; an evaluation: --missing eval --bench aime24",
        )
    iteration = session.iteration_or_current(options.iteration)
    return status.paths_of_stage(iteration, stage) if stage in session.run_config.at(iteration).stages() else ()


def _eval_paths(session: Session, options: StatusOptions) -> tuple[ShardPath, ...]:
    name, iteration = bench_name(options.bench), options.iteration
    if not options.bench:
        raise UsageError(
            "eval needs a benchmark", hint=command_line(session.run.root, "status", "--missing eval --bench aime24")
        )
    last = session.num_iterations()
    if iteration is not None and iteration > last:
        raise UsageError(
            f"policy {iteration} does not exist: the last one of the run is {last}",
            hint=command_line(session.run.root, "status"),
        )
    policy = newest_policy(session.run) if iteration is None else iteration
    if not session.run.eval_problems(name).data.parent.is_dir():
        _check_bench(options)
    num_shards = session.config.run.num_shards
    return tuple(session.run.eval_shard(name, policy, shard, num_shards) for shard in range(num_shards))


def _check_bench(options: StatusOptions) -> None:
    """Raise UsageError for an unknown benchmark. All shards of a mistyped name would be missing forever."""
    from igrpo_cli.problems.sources import resolve_bench

    resolve_bench(options.bench, options.bench_dir)


def status_text(status: Mapping[str, Any]) -> str:
    """Return the whole state as text of 80 columns."""
    paragraphs = (_heading, _stages, _faults, _curves, _evaluations, _costs)
    return "\n\n".join(filter(None, (paragraph(status) for paragraph in paragraphs)))


def status_line(status: Mapping[str, Any]) -> str:
    """Return the progress of each stage in one line, without anything that changes while time passes."""
    stages = [
        f"{name} {stage['done']}/{stage['total']}{_kept(name, stage)}" for name, stage in status["stages"].items()
    ]
    evaluations = [each for each in status["evaluations"] if each["done"] < each["total"]]
    stages += [f"eval of {_model(each)} on {each['bench']} {each['done']}/{each['total']}" for each in evaluations]
    faults = f", {len(status['faults'])} faults" if status["faults"] else ""
    return f"iteration {status['iteration']} of {status['num_iterations']}: {', '.join(stages)}{faults}"


def _heading(status: Mapping[str, Any]) -> str:
    total, left = status["num_iterations"], len(status["unfinished"])
    name = RunDirectory(Path()).name if status["run"] == "." else status["run"]
    lines = [f"{printable(name)}: {total - left} of {total} iterations complete"]
    if status["policies"]:
        numbers = format_shards(each["policy"] for each in status["policies"])
        newest = status["policies"][-1]
        trained = f"made by the update of iteration {newest['policy'] - 1}"
        origin = f"the initial policy ({newest['model'] or 'made here'})" if newest["policy"] == 0 else trained
        lines.append(f"policies {numbers}; the newest, {newest['policy']:04d}, is {origin}")
    if status["seconds_left_at_least"] is not None:
        left_at_least = duration(status["seconds_left_at_least"])
        lines.append(f"at least {left_at_least} left, from what is done of iteration {status['iteration']}")
    if status["forked_from"]:
        lines.append(f"forked from {printable(status['forked_from'])}")
    lines += [f"from iteration {first}: {printable(what)}" for first, what in status["changes"]]
    for number in status["policies_waiting"]:
        lines.append(f"policy {number} is still in the directory of its update; the next command moves it")
    return "\n".join(lines)


def _stages(status: Mapping[str, Any]) -> str:
    rows = [
        (name, stage["done"], stage["total"], _named(stage["missing"]), _in_progress(name, stage) or None)
        for name, stage in status["stages"].items()
    ]
    lines = [f"iteration {status['iteration']}", table(("stage", "done", "of", "missing", "in progress"), rows)]
    for stage, sets in status["scores"].items():
        shown = (f"{name} ({each['done']} of {each['total']})" for name, each in sets.items())
        lines.append(f"scores of {stage}: {', '.join(shown)}")
    return "\n".join(lines)


def _in_progress(name: str, stage: Mapping[str, Any]) -> str:
    if not stage["under_way"]:
        return ""
    changed = max(datetime.fromisoformat(each["last_change"]) for each in stage["under_way"])
    age = max((datetime.now(UTC) - changed).total_seconds(), 0.0)
    left = [each["seconds_left"] for each in stage["under_way"] if each["seconds_left"] is not None]
    about = f", about {duration(max(left))} left" if left and age < STOPPED_SECONDS else ""
    return f"{_kept(name, stage).removeprefix(' + ')}, changed {duration(age)} ago{about}"


def _kept(name: str, stage: Mapping[str, Any]) -> str:
    """Return what is kept of incomplete shards: ` + 3-4: 5 of 12 blocks`."""
    shards = stage["under_way"]
    if not shards:
        return ""
    done, total = (sum(each[key] for each in shards) for key in ("done", "total"))
    unit = "steps" if name == "update" else "blocks"
    return f" + {_shorten(format_shards(each['shard'] for each in shards))}: {done} of {total} {unit}"


def _faults(status: Mapping[str, Any]) -> str:
    faults = status["faults"]
    lines = [f"damaged: {printable(fault)}" for fault in faults[:SHOWN_FAULTS]]
    if len(faults) > SHOWN_FAULTS:
        lines.append(f"and {len(faults) - SHOWN_FAULTS} more")
    if faults:
        lines.append(f"`igrpo verify {status['run']}` says what to do")
    return "\n".join(lines)


def _curves(status: Mapping[str, Any]) -> str:
    lines = []
    for name, label in LABELS.items():
        values = status["curves"].get(name)
        if values:
            show = percent if "accuracy" in name else "{:.3f}".format
            curve = sparkline(values, SPARKLINE_COLUMNS)
            lines.append(f"{label:<23}  {show(values[0]):>7} {curve} {show(values[-1]):>7}")
    if not lines:
        return ""
    return "\n".join(["by iteration, from the first to the last complete one", *lines, *status["findings"]])


def _evaluations(status: Mapping[str, Any]) -> str:
    """Return a table: for each benchmark and kind, the first and the newest policy, then other models."""
    rows = []
    for (bench, kind), found in groupby(status["evaluations"], lambda each: (each["bench"], _kind(each))):
        evaluations = list(found)
        of_run = [each for each in evaluations if isinstance(each["model"], int)]
        shown = [*of_run[:1], *of_run[1:][-1:], *(each for each in evaluations if each not in of_run)]
        rows += [(bench, kind, _model(each), *_figures(each)) for each in shown]
    return table(("evaluation", "prompts", "model", "accuracy", "95 % interval"), rows) if rows else ""


def _kind(evaluation: Mapping[str, Any]) -> str:
    selection = evaluation["conditioned"]
    return "without draft" if selection is None else "with draft" if selection == "each" else f"with draft, {selection}"


def _model(evaluation: Mapping[str, Any]) -> str:
    model = evaluation["model"]
    return f"policy {model}" if isinstance(model, int) else str(model)


def _figures(evaluation: Mapping[str, Any]) -> tuple[str, str | None]:
    if evaluation["avg_at_k"] is None:
        return f"{evaluation['done']} of {evaluation['total']} shards", None
    low, high = evaluation["ci95"] or (None, None)
    return percent(evaluation["avg_at_k"]), None if low is None else f"{percent(low)} to {percent(high)}"


def _costs(status: Mapping[str, Any]) -> str:
    def row(name: str, spent: Mapping[str, Any]) -> tuple[str, str, str, str | None]:
        gpu = duration(spent["gpu_seconds"]) if spent["gpu_seconds"] else None
        return name, f"{spent['tokens']:,}", duration(spent["seconds"]), gpu

    spent, projection = status["spent"], status["projection"]
    if not any(each["seconds"] for each in spent.values()):
        return ""
    sums = {key: sum(each[key] for each in spent.values()) for key in ("tokens", "seconds", "gpu_seconds")}
    rows = [*(row(stage, each) for stage, each in spent.items()), row("all", sums)]
    lines = [table(("spent", "tokens", "time, summed over shards", "GPU time"), rows)]
    if projection:
        whole = projection["spent"]
        gpu = f", {duration(whole['gpu_seconds'])} of GPU time" if whole["gpu_seconds"] else ""
        lines += [
            f"projection from the mean of the complete iterations ({projection['finished_iterations']}): "
            f"{duration(projection['wall_seconds_left'])} left,",
            f"in total {whole['tokens']:,} tokens, {duration(whole['seconds'])}{gpu}",
        ]
    return "\n".join(lines)


def _named(shards: str) -> str | None:
    """Return `shard 0` or `shards 0-2`: a number alone reads as a count."""
    return f"shard{'' if shards.isdecimal() else 's'} {_shorten(shards)}" if shards else None


def _shorten(shards: str) -> str:
    return shards if len(shards) <= SHOWN_CHARACTERS else f"{shards[: SHOWN_CHARACTERS - 1].rpartition(',')[0]},…"
