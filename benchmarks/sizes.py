"""List source files over 300 lines and functions over 60, and fail when there are any."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60


def oversized(root: Path) -> list[str]:
    """One line per file or function under `root` that is too long."""
    found = []
    for path in sorted(root.rglob("*.py")):
        source = path.read_text("utf-8")
        lines = source.count("\n")
        if lines > MAX_FILE_LINES:
            found.append(f"{path}: {lines} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    found.append(f"{path}:{node.lineno} {node.name}: {length} lines")
    return found


if __name__ == "__main__":
    too_long = [line for root in sys.argv[1:] or ["src"] for line in oversized(Path(root))]
    print("\n".join(too_long) or f"no file over {MAX_FILE_LINES} lines, no function over {MAX_FUNCTION_LINES}")
    sys.exit(1 if too_long else 0)
