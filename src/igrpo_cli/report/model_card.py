"""The model card of a policy: Markdown for the Hub, from a template. What is quoted in it cannot end its own frame."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from igrpo_cli.inspection.curves import Point
from igrpo_cli.report.page import with_interval
from igrpo_cli.ui.quoting import markdown_escaped


@dataclass(frozen=True)
class ModelCard:
    """What a card says of a policy. The licence is not known, so the card has a place for it."""

    repo: str
    title: str
    is_adapter: bool
    base_model: str | None
    """Hub id; None for a model that is not on the Hub."""
    base_name: str
    """Name of the base model without its folders."""
    datasets: Sequence[str]
    """Hub ids."""
    method: str
    facts: Mapping[str, str]
    evaluations: Sequence[Sequence[str]]
    """Rows: benchmark, samples and how they were drawn, prompt, accuracy of this policy, that of the initial one."""
    system_prompt: str
    has_own_system_prompts: bool
    """True where problems have system prompts of their own, which follow `system_prompt`."""
    settings: str
    """TOML of the settings that differ from the defaults."""
    commands: Sequence[str]
    notes: Sequence[str]
    version: str
    """Version of igrpo."""

    def markdown(self) -> str:
        """Return the card. The same facts give the same bytes."""
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        environment.filters.update(cell=_cell, fence=_fenced)
        has_initial = any(row[-1] for row in self.evaluations)
        text = environment.get_template("model_card.md").render(has_initial=has_initial, **asdict(self))
        return re.sub(r"\n{3,}", "\n\n", text)


def accuracy_text(accuracy: float, interval: Sequence[float] | None) -> str:
    """Return an accuracy with its 95 % interval."""
    return with_interval(Point(accuracy, *(interval or (None, None))), is_share=True)


def _cell(text: str) -> str:
    return markdown_escaped(text).replace("\n", " ")


def _fenced(text: str, language: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.strip()}\n{fence}"
