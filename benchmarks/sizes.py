"""Print the size of each room, and fail when a file, a function or an import breaks a limit.

The limits: files of at most 400 lines, functions of at most 60, no file under 50 lines with at most one importer, and
no cycle between rooms. A room is a folder or module directly below the package.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MIN_FILE_LINES = 50
SMALL_FOR_A_REASON = {
    "__init__": "the package",
    "__main__": "the entry point of `igrpo` and `python -m igrpo_cli`",
    "commands.*": "one file per subcommand, imported when it runs, so that `igrpo --help` loads no torch or pyarrow",
    "algo.advantages": "the definition of the advantage in numpy; `algo.losses` would load torch",
}
"""Modules below the package that may be small, with the reason. `*` covers a whole room."""

Imports = Mapping[str, set[str]]


def modules(package: Path) -> dict[str, Path]:
    """Return the file of each module by its name below the package, for example `algo.losses`."""
    return {".".join(path.relative_to(package).with_suffix("").parts): path for path in sorted(package.rglob("*.py"))}


def imports(package: Path, files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Return the modules of the package that each module imports, at any depth of its code."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, path in files.items():
        for name in _imported_names(path):
            root, _, below = name.partition(".")
            candidates = (below, below.rpartition(".")[0], f"{below}.__init__")
            known = next((each for each in candidates if each in files), None)
            if root == package.name and known is not None and known != module:
                found[module].add(known)
    return found


def too_long(files: Mapping[str, Path]) -> list[str]:
    """Return one line per file and function over its limit."""
    found = []
    for path in files.values():
        lines = _num_lines(path)
        if lines > MAX_FILE_LINES:
            found.append(f"{path}: {lines} lines, at most {MAX_FILE_LINES}")
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    found.append(f"{path}:{node.lineno} {node.name}: {length} lines, at most {MAX_FUNCTION_LINES}")
    return found


def too_small(files: Mapping[str, Path], imported: Imports) -> list[str]:
    """Return one line per small file that belongs into its only importer."""
    importers: dict[str, list[str]] = defaultdict(list)
    for module, names in imported.items():
        for name in names:
            importers[name].append(module)
    found = []
    for module, path in files.items():
        lines, users = _num_lines(path), importers[module]
        if lines < MIN_FILE_LINES and len(users) < 2 and not _may_be_small(module):
            found.append(f"{path}: {lines} lines, imported by {users[0] if users else 'nothing'} alone")
    return found


def cycle(imported: Imports) -> list[str]:
    """Return the rooms of one import cycle in order, the first one repeated at the end; empty without a cycle."""
    rooms: dict[str, set[str]] = defaultdict(set)
    for module, names in imported.items():
        rooms[_room(module)] |= {_room(name) for name in names} - {_room(module)}
    acyclic: set[str] = set()

    def visit(room: str, path: list[str]) -> list[str]:
        if room in path:
            return [*path[path.index(room) :], room]
        if room not in acyclic:
            for other in sorted(rooms.get(room, ())):
                if found := visit(other, [*path, room]):
                    return found
            acyclic.add(room)
        return []

    return next((found for room in sorted(rooms) if (found := visit(room, []))), [])


def table(files: Mapping[str, Path]) -> str:
    """Return files and lines by room, and their sums."""
    rooms: dict[str, list[int]] = defaultdict(list)
    for module, path in files.items():
        rooms[_room(module)].append(_num_lines(path))
    rows = [("room", "files", "lines")]
    rows += [(room, f"{len(lines)}", f"{sum(lines):,}") for room, lines in sorted(rooms.items())]
    rows.append((f"{len(rooms)} rooms", f"{len(files)}", f"{sum(map(sum, rooms.values())):,}"))
    return "\n".join(f"{room:<14}{number:>6}{lines:>8}" for room, number, lines in rows)


def main(package: Path) -> int:
    """Print the table and the broken limits; return the exit code."""
    files = modules(package)
    imported = imports(package, files)
    broken = [*too_long(files), *too_small(files, imported)]
    if rooms := cycle(imported):
        broken.append(f"import cycle between rooms: {' -> '.join(rooms)}")
    print(table(files))
    print("\n".join(broken) or "all files and functions within the limits, no import cycle between rooms")
    return 1 if broken else 0


def _imported_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _num_lines(path: Path) -> int:
    return path.read_text("utf-8").count("\n")


def _room(module: str) -> str:
    return module.partition(".")[0]


def _may_be_small(module: str) -> bool:
    return module.endswith("__init__") or module in SMALL_FOR_A_REASON or f"{_room(module)}.*" in SMALL_FOR_A_REASON


if __name__ == "__main__":
    sys.exit(main(Path(*sys.argv[1:] or ["src/igrpo_cli"])))
