"""`igrpo quickstart`: train a tiny policy, and evaluate it before and after on held-out problems."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from igrpo_cli.commands import eval as evaluation
from igrpo_cli.commands.init import create_run, resolve_config
from igrpo_cli.commands.run import run_iteration, unfinished
from igrpo_cli.evaluation.summary import correct_matrix, paired_figures
from igrpo_cli.inspection.curves import metrics_by_iteration
from igrpo_cli.pipeline.session import Session, open_session
from igrpo_cli.records import Rollout
from igrpo_cli.store.tables import read_records
from igrpo_cli.torchrun import refuse_ranks
from igrpo_cli.ui.console import Console, percent, sparkline, table
from igrpo_cli.ui.tables import difference_text

PRESET = "quickstart"
BENCH = "columns"
KINDS = {"bare": "without draft", "conditioned": "with draft"}
"""The two evaluations of a policy, by their key in the `--json` object."""
CURVES = {
    "draft/accuracy_mean": "accuracy, without draft",
    "refine/accuracy_mean": "accuracy, with draft",
    "draft/groups_with_gradient": "draft groups with reward variance",
    "refine/groups_with_gradient": "refinement groups with reward variance",
    "refine/copy_rate": "refinements equal to their draft",
}


def run(path: Path | None, seed: int, sets: list[str], console: Console) -> None:
    """Create the run or continue it: evaluate, train, evaluate again and print the difference."""
    refuse_ranks("quickstart")
    started = time.monotonic()
    path = path or Path("runs") / f"quickstart-{seed}"
    config = resolve_config(PRESET, None, [f"run.seed={seed}", *sets])
    create_run(path, config, console)
    with open_session(path, [], console) as session:
        session.require_extras(*session.config.stages())
        before = _evaluate(session, path, 0)
        for iteration in unfinished(session):
            run_iteration(session, iteration)
        last = session.num_iterations()
        after = _evaluate(session, path, last)
        payload = _payload(session, path, before, after, last)
    payload["seconds"] = round(time.monotonic() - started, 1)
    console.data(payload, _text(payload))


def _evaluate(session: Session, path: Path, iteration: int) -> dict[str, dict[str, Any]]:
    """Return the figures of one policy on the held-out problems, without draft and with draft."""
    figures = {}
    for kind, prompts in KINDS.items():
        request = evaluation.EvalRequest(path, BENCH, iteration=iteration, with_draft=kind == "conditioned")
        session.console.note(f"policy {iteration}: evaluation {prompts} on held-out problems")
        figures[kind], _ = evaluation.evaluate(session, request)
    return figures


def _payload(session: Session, path: Path, before: dict[str, Any], after: dict[str, Any], last: int) -> dict[str, Any]:
    difference = paired_figures(*(_correct(session, policy) for policy in (0, last)))
    return {
        "run": str(path),
        "accuracy_before": before["bare"]["avg_at_k"],
        "accuracy_after": after["bare"]["avg_at_k"],
        **difference,
        "before": before,
        "after": after,
        "iterations": last,
        "curves": _curves(session),
    }


def _correct(session: Session, policy: int) -> list[list[float]]:
    shards = range(session.config.run.num_shards)
    paths = [session.run.eval_shard(BENCH, policy, shard, len(shards)) for shard in shards]
    return correct_matrix([row for path in paths for row in read_records(path.data, Rollout)])


def _curves(session: Session) -> dict[str, list[float]]:
    """Return the metrics of `CURVES` by iteration, as the updates recorded them."""
    curves: dict[str, list[float]] = {}
    for metrics in metrics_by_iteration(session.run):
        for name in CURVES.keys() & metrics.whole.keys():
            curves.setdefault(name, []).append(metrics.whole[name])
    return {name: curves[name] for name in CURVES if name in curves}


def _text(payload: dict[str, Any]) -> str:
    rows = []
    for kind, prompts in KINDS.items():
        row: list[object] = [prompts]
        for when in ("before", "after"):
            figures = payload[when][kind]
            low, high = figures["ci95"] or (None, None)
            row.append(f"{percent(figures['avg_at_k'])}  ({percent(low)} to {percent(high)})")
        rows.append(row)
    held_out = table(("held-out accuracy", "before (95 % interval)", "after (95 % interval)"), rows)
    plots = [
        f"{CURVES[name]:<40} {percent(values[0]):>8} {sparkline(values)} {percent(values[-1])}"
        for name, values in payload["curves"].items()
    ]
    run = payload["run"]
    return "\n".join(
        [
            "",
            held_out,
            f"\naccuracy without draft after {payload['iterations']} iterations: {difference_text(payload)}\n",
            *plots,
            f"\nEverything is in {run}: problems, drafts, selections, refinements and updates as Parquet,",
            "and every policy as a Hugging Face directory. To look at it:",
            f"  igrpo status {run}",
            f"  igrpo show {run} --broken",
            f"  igrpo report {run}",
            f"  igrpo eval {run} --bench {BENCH} --compare 0 {payload['iterations']}",
            f"  igrpo verify {run}",
        ]
    )
