"""How two iterations or runs differ, as text: for a terminal, and as Markdown to paste."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from igrpo_cli.ui.console import percent
from igrpo_cli.ui.quoting import in_line, markdown_escaped
from igrpo_cli.ui.tables import difference_text as paired_text
from igrpo_cli.ui.tables import markdown_table, plain_table

SHOWN_FLIPS = 5
"""Problems that are listed of those gained and of those lost in each stage; `--json` has all."""
PROMPTS = {"draft": "bare", "refine": "conditioned"}
FIGURES = {
    "/verdict_correct": "accuracy",
    "/reward_mean": "reward",
    "refine/fix_rate": "fix rate",
    "refine/break_rate": "break rate",
    "refine/copy_rate": "copy rate",
    "/groups_with_gradient": "groups with a gradient",
    "select/ties": "ties among drafts",
    "/completion_length_mean": "tokens a completion",
    "/truncated": "cut at the limit",
    "/verdict_no_answer": "without an answer",
    "/verdict_ungraded": "ungraded",
    "/sampled_entropy": "entropy, nats a token",
    "grad_norm": "gradient norm",
    "kl": "KL to the reference",
    "learning_rate": "learning rate",
}
"""What the text has, in order; of a name that begins with a stroke there is a figure of each stage's prompts."""
NO_SHARES = ("reward_mean", "completion_length_mean", "sampled_entropy", "grad_norm", "kl", "learning_rate")

Cells = Mapping[str, str]
Table = Callable[[Sequence[Cells]], str]


def iterations_text(payload: Mapping[str, Any]) -> str:
    """For a terminal. `payload` is the `--json` object of `igrpo diff`."""
    return "\n\n".join(_paragraphs(payload, plain_table))


def iterations_markdown(payload: Mapping[str, Any]) -> str:
    """As Markdown; what comes from problems and settings cannot act as such."""

    def escaped(rows: Sequence[Cells]) -> str:
        return markdown_table([{name: markdown_escaped(cell) for name, cell in row.items()} for row in rows])

    return "\n\n".join(_paragraphs(payload, escaped))


def _paragraphs(payload: Mapping[str, Any], table: Table) -> Iterator[str]:
    sides = {"A": payload["a"], "B": payload["b"]}
    yield table([{"": name, "run": side["run"], "iteration": str(side["iteration"])} for name, side in sides.items()])
    if rows := list(_figures(payload["figures"])):
        yield table(rows)
    yield from _problems(payload["problems"], table)
    if payload["evaluations"]:
        yield table([_evaluation(found) for found in payload["evaluations"]])
    if payload["settings"]:
        changed = ((name, *map(_setting, values)) for name, values in payload["settings"].items())
        yield table([{"setting": name, "A": a, "B": b} for name, a, b in changed])
    else:
        yield "No setting differs."


def _figures(figures: Mapping[str, Any]) -> Iterator[Cells]:
    """A row for each figure that one of the sides has."""
    for name, label in FIGURES.items():
        staged = {f"{stage}{name}": f"{label}, {prompt}" for stage, prompt in PROMPTS.items()}
        for full_name, full_label in (staged if name.startswith("/") else {name: label}).items():
            if full_name in figures:
                yield _figure(full_label, figures[full_name], is_share=not name.endswith(NO_SHARES))


def _figure(label: str, found: Mapping[str, Any], *, is_share: bool) -> Cells:
    unit = " %" if is_share else ""

    def shown(point: Mapping[str, float] | None) -> str:
        if point is None:
            return "–"
        value, *ends = (
            f"{100 * each:.1f}" if is_share else f"{each:.3g}" for each in point.values() if each is not None
        )
        return f"{value}{unit}" + (f" ({' to '.join(ends)})" if ends else "")

    difference = found["difference"]
    change = "–" if difference is None else f"{100 * difference:+.1f} points" if is_share else f"{difference:+.3g}"
    return {"figure": label, "A": shown(found["a"]), "B": shown(found["b"]), "B - A": change}


def _problems(problems: Mapping[str, Any], table: Table) -> Iterator[str]:
    shared = {PROMPTS[stage]: found for stage, found in problems.items() if found["shared"]}
    if not shared:
        yield "No problem was sampled by both: there are no pairs to compare."
        return
    yield "Problems that both sampled, solved where right more often than not:"
    yield table([{"prompts": prompt, **_counts(found)} for prompt, found in shared.items()])
    for prompt, found in shared.items():
        yield f"accuracy, {prompt}, on the same problems: {paired_text(found)}"
    flips = [row for prompt, found in shared.items() for row in _flips(prompt, found)]
    if flips:
        yield table(flips)


def _counts(found: Mapping[str, Any]) -> Cells:
    lengths = {name: len(found[name]) for name in ("gained", "lost")}
    counts = {"shared": found["shared"], "solved by both": found["solved"], **lengths, "by neither": found["unsolved"]}
    return {name: str(count) for name, count in counts.items()}


def _flips(prompt: str, found: Mapping[str, Any]) -> Iterator[Cells]:
    for change in ("gained", "lost"):
        for flip in found[change][:SHOWN_FLIPS]:
            yield {
                "": f"{change}, {prompt}",
                "problem": in_line(flip["problem_id"]),
                "A": percent(flip["a"]),
                "B": percent(flip["b"]),
                "text": in_line(flip["problem"])[:40],
            }


def _evaluation(found: Mapping[str, Any]) -> Cells:
    kind = "" if found["conditioned"] is None else f", conditioned ({found['conditioned']})"
    sides = {"A": found["a"], "B": found["b"]}
    return {
        "evaluation": f"{found['bench']}{kind}",
        **{name: f"{percent(side['accuracy'])} (policy {side['policy']})" for name, side in sides.items()},
        "B - A": f"{100 * found['difference']:+.1f} points",
    }


def _setting(value: Any) -> str:
    return "–" if value is None else in_line(json.dumps(value, ensure_ascii=False))
