"""The table of `igrpo what-if`: a row for each variant of the settings, a column for each figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from igrpo_cli.store.layout import format_shards
from igrpo_cli.ui.console import percent

COLUMNS = {
    "draft_groups_with_variance": "drafts vary",
    "refinement_groups_with_variance": "refinements vary",
    "same_draft": "same draft",
    "draft_reward": "draft reward",
    "refinements": "refinements",
    "nonzero_advantages": "advantage ≠ 0",
    "advantage_abs_mean": "mean |advantage|",
    "cosine": "cosine",
    "ess_tokens": "ESS, tokens",
    "ess_sequences": "ESS, sequences",
}
"""Headings by figure. `cosine` and `ess_…` are left out where they were not asked for."""
SHARES = tuple(name for name in COLUMNS if name not in ("draft_reward", "refinements", "advantage_abs_mean", "cosine"))
LEGEND = (
    "vary: groups whose rewards differ. same draft: problems that would show the draft that the run showed.",
    "draft reward: mean reward of the selected drafts. An empty cell cannot be known without sampling, such as the",
    "refinements of other drafts.",
)

Figures = dict[str, float | None]
"""The figures of one variant, by the names in `COLUMNS`; None where one is not known."""


def mean_figures(found: Sequence[Figures], own: Sequence[Figures]) -> Figures:
    """Return the means over iterations of the figures of one variant.

    A mean is over the iterations in which the run's own settings have the figure, and None if the variant lacks one.
    """
    means: Figures = {}
    for name in COLUMNS:
        values = [mine[name] for mine, theirs in zip(found, own, strict=True) if theirs[name] is not None]
        known = [value for value in values if value is not None]
        means[name] = sum(known) / len(known) if known and len(known) == len(values) else None
    return means


def variant_rows(rows: Sequence[Mapping[str, Any]], reselected: Sequence[bool]) -> list[dict[str, str]]:
    """Return the table: a column is left out where no variant has a figure."""
    shown = [name for name in COLUMNS if any(row[name] is not None for row in rows)]
    return [
        {
            "variant": f"{row['name']}{' *' if is_marked else ''}",
            **{COLUMNS[name]: _cell(name, row[name]) for name in shown},
        }
        for row, is_marked in zip(rows, reselected, strict=True)
    ]


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return percent(value) if name in SHARES else f"{value:.0f}" if name == "refinements" else f"{value:.3f}"


def explanations(
    iterations: Sequence[int],
    sets: Sequence[str],
    *,
    is_reselected: bool,
    has_cosines: bool,
    against: int | None,
    has_clips: bool,
) -> list[str]:
    """Return the lines below the table: what its columns mean, and what they cannot say."""
    is_single = len(iterations) == 1
    where = f"Iteration {iterations[0]}." if is_single else f"Means over iterations {format_shards(iterations)}."
    lines = [f"{where} All variants: {' '.join(sets)}." if sets else where, *LEGEND]
    if is_reselected:
        lines.append("* The reward selects other drafts. The refinements are those of the drafts that the run showed.")
    if has_cosines:
        lines += [
            "cosine: of the gradient at the policy of the iteration with that of the run's own settings, over all",
            "groups. Every probability ratio is 1 there, so that no clip acts.",
        ]
    if has_clips:
        lines.append("update.epsilon and update.epsilon_high act from the second optimiser step of an iteration on.")
    if against is not None:
        lines += [
            "ESS: effective sample size of the weights p / q, as a share of tokens or completions; p is the",
            f"probability under policy {against}, and q that under the sampler.",
        ]
    return lines
