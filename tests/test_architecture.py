"""Which room may import which: the table of CONTRIBUTING.md, checked against the imports of every file."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "igrpo_cli"
LIGHT = ("records", "errors", "extras", "seeds", "thoughts", "texts")
ROOMS = {
    "records": (),
    "errors": (),
    "extras": (),
    "seeds": (),
    "thoughts": (),
    "texts": (),
    "torchrun": (),
    "devices": (),
    "http_client": (),
    "algo": (),
    "config": ("algo", "http_client"),
    "store": (),
    "problems": ("store",),
    "inspection": ("algo", "config", "store"),
    "ui": ("algo", "inspection", "store", "torchrun"),
    "loggers": ("inspection", "store"),
    "report": ("inspection", "store", "ui"),
    "prompts": ("config",),
    "rewards": ("config", "http_client", "store"),
    "engines": ("config", "devices", "http_client", "torchrun"),
    "training": ("algo", "config", "devices", "engines", "torchrun"),
    "watchdog": ("ui",),
    "rollouts": ("config", "engines", "rewards", "ui", "watchdog"),
    "pipeline": (
        "algo",
        "config",
        "engines",
        "inspection",
        "loggers",
        "problems",
        "prompts",
        "rewards",
        "rollouts",
        "store",
        "torchrun",
        "training",
        "ui",
    ),
    "evaluation": (
        "algo",
        "config",
        "engines",
        "inspection",
        "pipeline",
        "prompts",
        "rewards",
        "rollouts",
        "store",
        "ui",
    ),
    "commands": (
        "algo",
        "config",
        "devices",
        "engines",
        "evaluation",
        "inspection",
        "loggers",
        "pipeline",
        "problems",
        "prompts",
        "report",
        "rewards",
        "rollouts",
        "store",
        "torchrun",
        "training",
        "ui",
    ),
    "cli": ("commands", "config", "problems", "ui"),
    "__main__": ("cli", "torchrun"),
    "__init__": ("inspection",),
}
"""What each room may import besides itself and LIGHT. A room imports only rooms above it in this table."""
OWNERS = {
    "pyarrow": {"store"},
    "math_verify": {"rewards"},
    "sympy": {"rewards"},
    "vllm": {"engines"},
    "datasets": {"problems"},
    "transformers": {"engines", "training"},
    "torch": {"engines", "training", "algo", "devices"},
    "typer": {"cli"},
    "duckdb": {"commands"},
    "jinja2": {"engines", "report"},
    "resvg_py": {"report"},
    "tensorboard": {"loggers"},
    "trackio": {"loggers"},
    "wandb": {"loggers"},
    "rich": {"ui"},
    "httpx": {"http_client"},
    "tenacity": {"http_client"},
    "pydantic": {"config", "store"},
}
COMPOSITIONS = {"stage", "run", "quickstart", "study", "what_if"}
"""Commands made of other commands; no other command imports one."""

FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def own_rooms(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("igrpo_cli.")} - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_knows_only_the_rooms_below_it(path):
    room = room_of(path)
    assert own_rooms(imported(path)) <= {*ROOMS[room], *LIGHT, room}


def test_the_rooms_form_no_cycle():
    order = list(ROOMS)
    for room, allowed in ROOMS.items():
        assert all(order.index(name) < order.index(room) for name in allowed), room


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_each_heavy_dependency_has_its_owner_rooms(path):
    for name in imported(path):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or room_of(path) in owners, f"{name} belongs to {owners}"


FOLDERS = ("benchmarks", "docs", ".ci", "data", "studies")
SCRIPTS = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_name_of_the_package_that_a_script_imports_exists(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("igrpo_cli"):
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}"), name


@pytest.mark.parametrize("path", sorted((PACKAGE / "commands").glob("*.py")), ids=lambda p: p.stem)
def test_no_command_imports_another_but_the_compositions(path):
    others = {name for name in imported(path) if name.startswith("igrpo_cli.commands.")}
    assert not others or path.stem in COMPOSITIONS


@pytest.mark.parametrize("arguments", [["--help"], ["draft", "--help"], ["eval", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    heavy = "torch", "vllm", "transformers", "pyarrow", "sympy", "math_verify", "numpy", "duckdb", "httpx"
    code = (
        "import sys\n"
        "from igrpo_cli.cli.app import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        f"print('HEAVY', [name for name in {heavy!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "HEAVY []"
