"""Completion by the shell: commands, options and their values, as bash asks for them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from command_line import ONE_THREAD

HEAVY = ("torch", "transformers", "pyarrow", "numpy", "httpx", "duckdb")
CODE = (
    "import atexit, sys\n"
    f"atexit.register(lambda: print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr))\n"
    "from igrpo_cli.__main__ import main\n"
    "main()\n"
)


def completed(line: str) -> list[str]:
    """What the script of bash gets for a line with the cursor at its end."""
    words = line.split(" ")
    asked = {"_IGRPO_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, env=ONE_THREAD | asked, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("igrpo sta", {"status", "stages"}),
        ("igrpo refine RUN --dr", {"--dry-run"}),
        ("igrpo draft RUN --set draft.temp", {"draft.temperature="}),
        ("igrpo init RUN --preset s", {"small", "smollm2"}),
        ("igrpo eval RUN --bench aime", {"aime24", "aime25", "aime26"}),
        ("igrpo study published --arm g", {"grpo8"}),
    ],
)
def test_a_word_is_completed_without_a_heavy_import(line, expected):
    assert set(completed(line)) == expected


def test_the_script_of_a_shell_asks_igrpo():
    command = [sys.executable, "-m", "igrpo_cli", "--show-completion", "bash"]
    asked = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(command, env=ONE_THREAD | asked, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert "_IGRPO_COMPLETE=complete_bash" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(" igrpo")
