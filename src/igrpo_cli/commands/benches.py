"""`igrpo eval --list`: the benchmarks that have a name."""

from __future__ import annotations

from dataclasses import fields
from textwrap import shorten
from typing import Any

from igrpo_cli.problems.sources import BENCHES, OTHER_REPEATS, PACKAGED_SETS, NamedSet, ProblemSource
from igrpo_cli.ui.console import Console
from igrpo_cli.ui.tables import markdown_table, plain_table

NOT_PINNED = "main"
"""The branch that the Hub gives where no revision is named; the commit that was read stands in the manifest."""

MOST_CHARACTERS = 40
"""Of the columns of one benchmark in the table; `--json` has all."""


def run(console: Console, *, markdown: bool = False) -> None:
    """Print all named benchmarks: where they come from, how they are read, and their default samples."""
    described = [_packaged(name) for name in PACKAGED_SETS] + [_describe(named) for named in BENCHES.values()]
    rows = [{name: _cell(value) for name, value in bench.items()} for bench in described]
    console.data({"benches": described}, markdown_table(rows) if markdown else plain_table(rows))


def _describe(named: NamedSet) -> dict[str, Any]:
    source = named.source
    return {
        "name": named.name,
        "source": str(source.location),
        "revision": source.revision or NOT_PINNED,
        "config": list(source.configs) or None,
        "split": source.split,
        "columns": _columns(source) or None,
        "answer_form": source.answer_form,
        "samples": named.repeats,
    }


def _packaged(name: str) -> dict[str, Any]:
    columns = {"problem": "problem", "answer": "answer"}
    place = {"source": "packaged", "revision": None, "config": None, "split": "test"}
    return {"name": name, **place, "columns": columns, "answer_form": "auto", "samples": OTHER_REPEATS}


def _columns(source: ProblemSource) -> dict[str, Any]:
    """{role: column, or columns} of those that are named; the others are found by their usual names."""
    named = [field.name for field in fields(source) if field.name.endswith(("_column", "_columns"))]
    values = {name.rpartition("_column")[0]: getattr(source, name) for name in named}
    return {role: list(value) if isinstance(value, tuple) else value for role, value in values.items() if value}


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict):
        return shorten(", ".join(map(_cell, value.values())), MOST_CHARACTERS, placeholder=" …")
    return ", ".join(value) if isinstance(value, list) else str(value)
