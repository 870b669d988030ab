"""The tables of CONTRIBUTING.md agree with the architecture test and stay short."""

from __future__ import annotations

import re
from pathlib import Path

from test_architecture import LIGHT, OWNERS, ROOMS

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8")
MAX_TERMS = 25


def rows(title: str) -> list[list[str]]:
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_table_of_rooms_has_every_room_in_its_order():
    listed = [re.sub("`", "", row[0]) for row in rows("Rooms")]
    assert listed == [room for room in ROOMS if not room.startswith("__")]
    assert set(listed[: len(LIGHT)]) == set(LIGHT)


def test_the_table_of_rooms_names_the_packages_of_each_room():
    listed = {package: row[0].strip("`") for row in rows("Rooms") for package in row[2].split(", ") if package}
    assert listed == {package: next(iter(owners)) for package, owners in OWNERS.items() if len(owners) == 1}


def test_the_glossary_is_short():
    assert 0 < len(rows("Glossary")) <= MAX_TERMS
