"""The object of `igrpo status` as text: a screen for a terminal of 80 columns, a line for a log."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from igrpo_cli.store.layout import format_shards
from igrpo_cli.ui.console import percent, printable, sparkline, table
from igrpo_cli.ui.progress import duration

CURVES = {
    "draft/accuracy_mean": "accuracy, bare",
    "refine/accuracy_mean": "accuracy, conditioned",
    "draft/reward_mean": "reward, bare",
    "refine/reward_mean": "reward, conditioned",
}
SPARKLINE_COLUMNS = 32
SHOWN_CHARACTERS = 18
"""Of a list of shards; `--missing` and `--json` have all of it."""
SHOWN_FAULTS = 5


def status_text(status: Mapping[str, Any]) -> str:
    """All of it, for people."""
    paragraphs = (_heading, _stages, _faults, _curves, _evaluations, _costs)
    return "\n\n".join(filter(None, (paragraph(status) for paragraph in paragraphs)))


def status_line(status: Mapping[str, Any]) -> str:
    """How far each stage is, without anything that changes as time passes."""
    stages = [
        f"{name} {stage['done']}/{stage['total']}{_kept(name, stage)}" for name, stage in status["stages"].items()
    ]
    evaluations = [each for each in status["evaluations"] if each["done"] < each["total"]]
    stages += [f"eval of {_model(each)} on {each['bench']} {each['done']}/{each['total']}" for each in evaluations]
    faults = f", {len(status['faults'])} faults" if status["faults"] else ""
    return f"iteration {status['iteration']} of {status['num_iterations']}: {', '.join(stages)}{faults}"


def _heading(status: Mapping[str, Any]) -> str:
    total, left = status["num_iterations"], len(status["unfinished"])
    lines = [f"{printable(status['run'])}: {total - left} of {total} iterations finished"]
    if status["policies"]:
        numbers = format_shards(each["policy"] for each in status["policies"])
        newest = status["policies"][-1]
        made = f"made by the update of iteration {newest['policy'] - 1}"
        origin = f"the initial one ({newest['model'] or 'made here'})" if newest["policy"] == 0 else made
        lines.append(f"policies {numbers}; the newest, {newest['policy']:04d}, is {origin}")
    for number in status["policies_waiting"]:
        lines.append(f"policy {number} still lies in the update that made it; the next command moves it")
    return "\n".join(lines)


def _stages(status: Mapping[str, Any]) -> str:
    rows = [
        (name, stage["done"], stage["total"], _shorten(stage["missing"]) or None, _under_way(name, stage) or None)
        for name, stage in status["stages"].items()
    ]
    lines = [f"iteration {status['iteration']}", table(("stage", "done", "of", "missing", "under way"), rows)]
    for stage, sets in status["scores"].items():
        told = (f"{name} ({each['done']} of {each['total']})" for name, each in sets.items())
        lines.append(f"scores of {stage}: {', '.join(told)}")
    return "\n".join(lines)


def _under_way(name: str, stage: Mapping[str, Any]) -> str:
    if not stage["under_way"]:
        return ""
    changed = max(datetime.fromisoformat(each["last_change"]) for each in stage["under_way"])
    age = max((datetime.now(UTC) - changed).total_seconds(), 0.0)
    return f"{_kept(name, stage).removeprefix(' + ')}, changed {duration(age)} ago"


def _kept(name: str, stage: Mapping[str, Any]) -> str:
    """What is kept of shards that are not finished: ` + 3-4: 5 of 12 blocks`."""
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
    for name, label in CURVES.items():
        values = status["curves"].get(name)
        if values:
            show = percent if "accuracy" in name else "{:.3f}".format
            curve = sparkline(values, SPARKLINE_COLUMNS)
            lines.append(f"{label:<21}  {show(values[0]):>7} {curve} {show(values[-1]):>7}")
    if not lines:
        return ""
    return "\n".join(["by iteration, from the first to the last that is finished", *lines])


def _evaluations(status: Mapping[str, Any]) -> str:
    """A row for each benchmark and kind of prompt: of its policies the first and the newest; then other models."""
    rows = []
    for (bench, kind), found in groupby(status["evaluations"], lambda each: (each["bench"], _kind(each))):
        evaluations = list(found)
        of_run = [each for each in evaluations if isinstance(each["model"], int)]
        shown = [*of_run[:1], *of_run[1:][-1:], *(each for each in evaluations if each not in of_run)]
        rows += [(bench, kind, _model(each), *_figures(each)) for each in shown]
    return table(("evaluation", "prompts", "model", "accuracy", "95 % interval"), rows) if rows else ""


def _kind(evaluation: Mapping[str, Any]) -> str:
    selection = evaluation["conditioned"]
    return "bare" if selection is None else "conditioned" if selection == "each" else f"conditioned, {selection}"


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
        ahead = projection["spent"]
        gpu = f", {duration(ahead['gpu_seconds'])} of GPU time" if ahead["gpu_seconds"] else ""
        lines += [
            f"projection by the mean of the finished iterations ({projection['finished_iterations']}): "
            f"{duration(projection['wall_seconds_left'])} left,",
            f"in the end {ahead['tokens']:,} tokens, {duration(ahead['seconds'])}{gpu}",
        ]
    return "\n".join(lines)


def _shorten(shards: str) -> str:
    return shards if len(shards) <= SHOWN_CHARACTERS else f"{shards[: SHOWN_CHARACTERS - 1].rpartition(',')[0]},…"
