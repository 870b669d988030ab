"""A sample of every fault of `just faults`, and that a promise that is broken is seen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import ONE_THREAD

HERE = Path(__file__).parent
TABLE = HERE / "table.py"


def run_table(*arguments: str, before: str = "") -> tuple[int, dict[str, int], str]:
    """The table in a process of its own, since it forks; `before` is run ahead of it. Exit code, last line, stderr."""
    prepare = f"import runpy, sys; sys.argv = {[str(TABLE), *arguments]!r}"
    code = f"{prepare}\n{before}\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], env=ONE_THREAD, capture_output=True, text=True, timeout=600)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.slow
def test_a_sample_of_every_fault_loses_nothing():
    code, totals, stderr = run_table("--small")
    lost = [line for line in stderr.splitlines() if line.startswith("lost: ")]
    assert not lost
    assert code == 0
    assert set(totals) == {"faults", "tries", "survived", "lost"}
    assert totals["survived"] == totals["tries"] >= 40


BROKEN = {
    "kill at operation n of select": """
import os, shutil
from pathlib import Path
from igrpo_cli.store import atomic
def install_in_two_steps(temporary, path):
    path.write_bytes(temporary.read_bytes()[:100])
    os.fsync(os.open(path, os.O_RDONLY))
    shutil.copyfile(temporary, path)
    return True
atomic._link = install_in_two_steps
""",
    "bit flip: weights": """
from igrpo_cli.store.verify import _Verifier
known = {}
def hash_once(self, path, compute=_Verifier.hash_of):
    return known.get(path) or known.setdefault(path, compute(self, path))
_Verifier.hash_of = hash_once
""",
}
"""What breaks a promise, and the fault that shows it."""


@pytest.mark.slow
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_promise_is_seen(fault):
    sample = ["--small"] if fault == "bit flip: weights" else []
    code, totals, stderr = run_table(*sample, "--only", fault, before=BROKEN[fault])
    assert code == 1
    assert totals["lost"] >= 1
    assert "lost: " in stderr
