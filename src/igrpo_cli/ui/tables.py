"""The figures of evaluations as plain text and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from igrpo_cli.algo.estimates import MIN_P_VALUE
from igrpo_cli.ui.console import percent, table
from igrpo_cli.ui.quoting import in_line

Figures = Mapping[str, Any]
"""The object that `summarise` returns."""
ORACLE = "`best` selects drafts with the reference answers: it is an oracle, not an accuracy that a user would see"


def summary_text(summary: Figures) -> str:
    """Return one evaluation as text."""
    tokens = f"{summary['mean_completion_tokens']:.0f} tokens per completion"
    heading = f"{summary['bench']}: {summary['problems']} problems x {summary['samples']} samples, {tokens}"
    named = f"{summary['model']['name']} ({summary['model']['policy']})"
    parts = [f"{heading}\n{named}", table(("figure", "value", "meaning"), _rows(summary))]
    if summary["samples"] > 1:
        parts.append(_by_k(summary))
    if summary.get("selection") is not None:
        parts.append(_against_samples(summary))
    return "\n\n".join(parts)


def all_benches_text(summaries: Sequence[Figures], macro_average: float | None) -> str:
    """Return several benchmarks as one table, with the macro-average if there is one."""
    text = plain_table([{"bench": summary["bench"], **summary_row(summary)} for summary in summaries])
    if macro_average is None:
        return text
    return f"{text}\n\nmacro-average of the paper's six benchmarks: {percent(macro_average)}"


def markdown_text(summaries: Sequence[Figures], macro_average: float | None = None) -> str:
    """Return evaluations as a Markdown table. An evaluation with draft also has a row for its samples without draft."""
    rows = []
    for summary in summaries:
        sides = [summary["bare"], summary] if summary.get("selection") is not None else [summary]
        rows += [{"bench": side["bench"], **summary_row(side)} for side in sides]
    text = markdown_table(rows)
    return text if macro_average is None else f"{text}\n\nmacro-average: {percent(macro_average)}"


def summary_row(summary: Figures) -> dict[str, str]:
    """Return the figures of one evaluation as cells by column."""
    selection = summary.get("selection")
    return {
        "model": summary["model"]["name"] + (f", with draft ({selection})" if selection is not None else ""),
        "samples": f"{summary['problems']} x {summary['samples']}",
        "avg@k": percent(summary["avg_at_k"]),
        "95 % interval": interval(summary["ci95"]),
        **{f"{name}@k": percent(summary[f"{name}_at_k"]) for name in ("pass", "maj", "cons")},
        **{name.replace("_", " "): percent(summary[f"{name}_fraction"]) for name in SHARES},
        "tokens": f"{summary['mean_completion_tokens']:.0f}",
    }


SHARES = ("truncated", "no_answer", "ungraded")
"""These shares are always shown: an accuracy means little when many completions were cut or not understood."""


def setting_rows(changed: Mapping[str, tuple[Any, Any]], sides: tuple[str, str]) -> list[dict[str, str]]:
    """Return the rows of a table of settings that differ, as JSON; `sides` are the headings of their values."""
    return [
        {"setting": name, **{side: setting_text(value) for side, value in zip(sides, values, strict=True)}}
        for name, values in changed.items()
    ]


def setting_text(value: Any) -> str:
    """Return a setting as JSON in one line, and a dash for one that is not set."""
    return "–" if value is None else in_line(json.dumps(value, ensure_ascii=False))


def difference_text(figures: Figures) -> str:
    """Return a paired difference in percentage points, with interval and p-value, in one line."""
    if figures["difference"] is None:
        return "no difference: no problem has a graded sample on both sides"
    points = f"difference {100 * figures['difference']:+.1f} points"
    if figures["difference_ci95"] is None:
        return f"{points}; a single problem gives no interval"
    low, high = figures["difference_ci95"]
    p_value = figures["p_value"]
    chance = f"p = {p_value:.2g}" if p_value > MIN_P_VALUE else f"p < {MIN_P_VALUE:.0e}"
    return f"{points}, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}, {chance}"


def interval(ends: Sequence[float] | None) -> str:
    """Return both ends of an interval in per cent."""
    return "–" if ends is None else f"{percent(ends[0])} to {percent(ends[1])}"


def plain_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows of cells by column as aligned text."""
    return table(tuple(rows[0]), [tuple(row.values()) for row in rows])


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows of cells by column as Markdown."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"

    return "\n".join([line(list(rows[0])), "|---" * len(rows[0]) + "|", *(line(list(row.values())) for row in rows)])


def _rows(summary: Figures) -> list[tuple[str, str, str]]:
    k, completions = summary["samples"], summary["problems"] * summary["samples"]
    meanings = {
        "truncated": "cut at eval.max_gen_toks",
        "no_answer": "without an answer",
        "ungraded": "not graded: the grader reached a limit",
    }
    return [
        (f"avg@{k}", percent(summary["avg_at_k"]), f"a sample is correct; 95 % interval {interval(summary['ci95'])}"),
        (f"pass@{k}", percent(summary["pass_at_k"]), f"at least one of {k} samples is correct"),
        (f"maj@{k}", percent(summary["maj_at_k"]), "the most frequent text is correct"),
        (
            f"cons@{k}",
            percent(summary["cons_at_k"]),
            "the most frequent answer is correct, equal answers taken as one",
        ),
        *(
            (name.replace("_", " "), percent(summary[f"{name}_fraction"]), f"of {completions:,} completions: {meaning}")
            for name, meaning in meanings.items()
        ),
    ]


def _by_k(summary: Figures) -> str:
    """Return pass@k, maj@k and cons@k for powers of two and for all samples. `--json` has every k."""
    last = summary["samples"]
    shown = [str(k) for k in (1 << exponent for exponent in range(last.bit_length())) if k < last] + [str(last)]
    rows = [(name, *(percent((summary[f"{name}_at"] or {}).get(k)) for k in shown)) for name in ("pass", "maj", "cons")]
    return table(("k", *shown), rows)


def _against_samples(summary: Figures) -> str:
    sides = {"without draft": summary["bare"], f"with draft ({summary['selection']})": summary}
    rows = [{"": name, **{k: v for k, v in summary_row(side).items() if k != "model"}} for name, side in sides.items()]
    rates = [
        ("correct drafts", percent(summary["draft_accuracy"]), "of the drafts in the prompts"),
        ("fix rate", percent(summary.get("fix_rate")), "of the refinements of wrong drafts, correct"),
        *(
            [("retry rate", percent(summary["retry_rate"]), "of new samples where the draft was wrong, correct")]
            if "retry_rate" in summary
            else []
        ),
        ("break rate", percent(summary.get("break_rate")), "of the refinements of correct drafts, wrong"),
        ("copy rate", percent(summary.get("copy_rate")), "of all refinements, equal to their draft"),
    ]
    lines = [plain_table(rows), difference_text(summary), table(("rate", "value", "meaning"), rates)]
    return "\n\n".join([*lines, ORACLE] if summary["selection"] == "best" else lines)
