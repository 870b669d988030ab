"""Write small problem files for tests, and read the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from igrpo_cli.problems.loading import LoadedProblems

Row = dict[str, Any]


def write_lines(path: Path, rows: list[Row | str | bytes]) -> Path:
    lines = [json.dumps(row) if isinstance(row, dict) else row for row in rows]
    path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
    return path


def pairs(loaded: LoadedProblems) -> list[tuple[str, str]]:
    return [(row.problem, row.answer) for row in loaded.problems]


GOOD: Row = {"problem": "1+1?", "answer": "2"}
OTHER: Row = {"problem": "2+2?", "answer": "4"}
