"""The results of a study as tables of text cells, for the terminal, Markdown and the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from igrpo_cli.algo.estimates import MIN_P_VALUE
from igrpo_cli.inspection.curves import Point
from igrpo_cli.inspection.study import (
    HELD_OUT,
    MIN_SEEDS_OF_P,
    SCORES,
    SHARES,
    TRAINING,
    WITH_DRAFT,
    WITHOUT_DRAFT,
    ArmResults,
    Comparison,
    StudyResults,
)
from igrpo_cli.ui.tables import markdown_table, plain_table

METRIC_LABELS = {
    "draft/verdict_correct": "accuracy of drafts",
    "refine/verdict_correct": "accuracy of refinements",
    "draft/groups_with_gradient": "draft groups with reward variance",
    "refine/groups_with_gradient": "refinement groups with reward variance",
    "verify/verdict_correct": "accuracy of verdicts on drafts",
    "verify/groups_with_gradient": "verification groups with reward variance",
    "refine/copy_rate": "copy rate",
    "refine/fix_rate": "fix rate",
    "refine/break_rate": "break rate",
    "draft/sampled_entropy": "entropy without draft, nats per token",
    "refine/sampled_entropy": "entropy with draft, nats per token",
    "eval/copy_rate": "held-out copy rate",
    "eval/fix_rate": "held-out fix rate",
    "eval/retry_rate": "held-out retry rate",
    "eval/break_rate": "held-out break rate",
    "eval/entropy_without_draft": "held-out entropy without draft, nats per token",
    "eval/entropy_with_draft": "held-out entropy with draft, nats per token",
}
"""Labels of `inspection.study.TRAINING` and `HELD_OUT`."""
MAX_COLUMNS = 7
"""Maximum number of policies or iterations in a table. The figures have all of them."""


@dataclass(frozen=True)
class StudyTable:
    """One table with its title and what its numbers mean."""

    title: str
    note: str
    rows: list[dict[str, str]]


def study_tables(results: StudyResults) -> list[StudyTable]:
    """Return the tables of a study that have rows."""
    baseline, interval = results.study.reference, "95 % interval over seeds and problems"
    alone = any(each.seeds == 1 for each in results.comparisons)
    warning = " With one seed, the interval is over problems alone: another seed may differ by more." if alone else ""
    tables = [
        StudyTable("Arms", f"Held-out accuracy in % ({interval}); mean cost of a run.", [*_arms(results)]),
        StudyTable(
            f"Differences from {baseline}",
            "In percentage points (95 % interval), paired by seed and problem. p is two-sided and corrected for the "
            f"{len(results.arms) - 1} arms of the study other than {baseline} (Holm). It takes {MIN_SEEDS_OF_P} seeds."
            + warning,
            [*_differences(results)],
        ),
        StudyTable(f"Cost of {_percent(results.target)} without draft", "Mean curve over seeds.", [*_costs(results)]),
        *(
            StudyTable(f"Held-out accuracy {label} by policy", f"In % ({interval}).", [*_curve(results, curve)])
            for curve, label in ((WITHOUT_DRAFT, "without draft"), (WITH_DRAFT, "with draft"))
        ),
        *(
            StudyTable(title, "Mean over seeds; shares in %.", [*_metrics(results, names)])
            for title, names in (("Training by iteration", TRAINING), ("Refinement and entropy by policy", HELD_OUT))
        ),
    ]
    return [table for table in tables if table.rows]


def study_text(results: StudyResults, *, markdown: bool) -> str:
    """Return all tables as text or Markdown."""
    heading, table_of = ("## ", markdown_table) if markdown else ("", plain_table)
    parts = [f"{heading}{each.title}\n{each.note}\n\n{table_of(each.rows)}" for each in study_tables(results)]
    return "\n\n".join(parts)


def p_text(comparison: Comparison) -> str:
    """Return the corrected p-value of a comparison."""
    if comparison.corrected is None:
        return "–"
    return f"{comparison.corrected:.2g}" if comparison.corrected > MIN_P_VALUE else f"< {MIN_P_VALUE:.0e}"


def points_text(point: Point | None, *, is_difference: bool = False) -> str:
    """Return an accuracy in per cent, or a difference in percentage points, with its interval."""
    if point is None:
        return "–"
    sign = "+" if is_difference else ""
    if point.low is None or point.high is None:
        return f"{100 * point.value:{sign}.1f}"
    return f"{100 * point.value:{sign}.1f} ({100 * point.low:{sign}.1f} to {100 * point.high:{sign}.1f})"


def _arms(results: StudyResults) -> Iterator[dict[str, str]]:
    reported = results.study.reported
    for arm in results.arms:
        cells = arm.complete
        seconds = "GPU seconds" if results.seconds == "gpu_seconds" else "seconds"
        yield {
            "arm": arm.name,
            "seeds": f"{len(cells)} of {len(results.study.seeds)}",
            **{label: points_text(results.score(arm.name, name)) for name, (_, label) in SCORES.items()},
            "sampled tokens": _mean_total(arm, "tokens"),
            seconds: _mean_total(arm, results.seconds),
            **({"reported": f"{reported[arm.name]:g}" if arm.name in reported else "–"} if reported else {}),
        }


def _mean_total(arm: ArmResults, axis: str) -> str:
    totals = [cell.spent[axis][-1] for cell in arm.complete]
    return f"{sum(totals) / len(totals):,.0f}" if totals else "–"


def _differences(results: StudyResults) -> Iterator[dict[str, str]]:
    found = {(each.score, each.arm): each for each in results.comparisons}
    for name, (_, label) in SCORES.items():
        for arm in results.arms:
            each = found.get((name, arm.name))
            if each is not None:
                difference = points_text(each.difference, is_difference=True)
                cells = {"accuracy": label, "arm": each.arm, "seeds": str(each.seeds), "difference": difference}
                yield {**cells, "p": p_text(each)}


def _costs(results: StudyResults) -> Iterator[dict[str, str]]:
    if results.target is None:
        return
    seconds = "GPU seconds" if results.seconds == "gpu_seconds" else "seconds"
    for arm in results.arms:
        cost = results.cost_of_target(arm.name)
        unknown = "not reached" if arm.complete else "–"
        tokens, time, reached = (cost[key] for key in ("tokens", results.seconds, "seeds"))
        yield {
            "arm": arm.name,
            "sampled tokens": unknown if tokens is None else f"{tokens:,.0f}",
            seconds: unknown if time is None else f"{time:,.0f}",
            "seeds that reach it": "–" if reached is None else f"{reached:.0f} of {len(arm.complete)}",
        }


def _curve(results: StudyResults, curve: str) -> Iterator[dict[str, str]]:
    policies = _some(sorted({policy for arm in results.arms for policy, _ in arm.curves.get(curve, [])}))
    for arm in results.arms:
        points = dict(arm.curves.get(curve, []))
        if policies:
            yield {"arm": arm.name, **{str(policy): points_text(points.get(policy)) for policy in policies}}


def _metrics(results: StudyResults, names: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield a row for each metric and arm."""
    places = {at for arm in results.arms for name in names for at, _ in arm.curves.get(name, [])}
    every = results.study.eval_every
    shown = _some(sorted(at for at in places if at % every == 0 or at == max(places)))
    for name in names:
        for arm in results.arms:
            points = dict(arm.curves.get(name, []))
            if points:
                cells = {str(at): metric_text(name, points.get(at)) for at in shown}
                yield {"metric": METRIC_LABELS[name], "arm": arm.name, **cells}


def metric_text(name: str, point: Point | None) -> str:
    """Return a metric of training: a share in per cent, or a number."""
    if point is None:
        return "–"
    return f"{100 * point.value:.0f}" if name.endswith(SHARES) else f"{point.value:.2f}"


def _some(numbers: list[int]) -> list[int]:
    """Return at most `MAX_COLUMNS` of the numbers at equal distances, with the first and the last."""
    if len(numbers) <= MAX_COLUMNS:
        return numbers
    last = len(numbers) - 1
    return [numbers[round(place * last / (MAX_COLUMNS - 1))] for place in range(MAX_COLUMNS)]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
