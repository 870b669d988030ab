"""Files of a finished run that are damaged, one at a time: `verify` must refuse each and name the file."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from fault_cases import goes_on, lost, require, require_sound, same_as_undisturbed
from forked import COMMANDS, Fork, WarmRun

from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.verify import verify_run

KINDS = {
    "shard": ("iteration_0000/*/*.parquet",),
    "manifest": ("iteration_0000/*/*.json",),
    "weights": ("policies/0001/*.safetensors",),
    "optimiser state": ("iteration_0000/update/optimizer/*",),
    "config, tokenizer and record of a policy": ("policies/0001/*.json", "policies/0001/*.jinja", "policies/0000/*"),
    "problems": ("problems.*", "eval/*/problems.*"),
    "evaluation": ("eval/*/*/*",),
    "scores": ("iteration_0000/draft/scores/*/*",),
    "run.toml": ("run.toml",),
}
"""Which files are damaged."""
READERS = {
    "select": "iteration_0000/draft/*.parquet",
    "refine": "iteration_0000/select/*.parquet",
    "update": "iteration_0000/refine/*.parquet",
    "eval": "policies/0001/*",
}
"""Commands, and files that each of them reads."""


def bit_flips(warm: WarmRun, kind: str, tries: int) -> Iterator[str | None]:
    """One bit of one file is another one."""
    rng, files = random.Random(kind), _files(warm, kind)
    for n in range(tries):
        path = files[n % len(files)]
        content = path.read_bytes()
        bit = rng.randrange(len(content) * 8)
        yield _refused(warm, path, content, flipped(content, bit), f"bit {bit}")


def flips_before(warm: WarmRun, name: str, tries: int) -> Iterator[str | None]:
    """One bit of what a command reads is another one: it refuses, and once the file is mended it goes on."""
    rng = random.Random(name)
    for n in range(tries):
        files = sorted(warm.reset(name).glob(READERS[name]))
        path = files[n % len(files)]
        content = path.read_bytes()
        bit = rng.randrange(len(content) * 8)
        path.write_bytes(flipped(content, bit))
        yield lost(lambda p=path, c=content: _reads(warm, name, p, c), f"{name}, bit {bit} of {path.name}")


def _reads(warm: WarmRun, name: str, path: Path, content: bytes) -> None:
    process = Fork(*warm.command(name))
    code = process.wait()
    require(code == 1, f"exit {code}: {process.stderr}")
    require(path.stem in process.stderr and "Traceback" not in process.stderr, f"not named: {process.stderr}")
    path.write_bytes(content)
    goes_on(warm, name)


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def truncations(warm: WarmRun, kind: str) -> Iterator[str | None]:
    """Each file ends too early, at six places; the newline that ends a JSON file says nothing and is none of them."""
    for path in _files(warm, kind):
        content = path.read_bytes()
        size = len(content)
        for length in (0, 1, size // 3, size // 2, size - 8, size - 2):
            yield _refused(warm, path, content, content[:length], f"cut to {length} of {size} bytes")


def _files(warm: WarmRun, kind: str) -> list[Path]:
    run = warm.reset("grade", finished=True)
    files = sorted({path for pattern in KINDS[kind] for path in run.glob(pattern) if path.is_file()})
    require_sound(warm)
    require(files, f"no {kind} to damage")
    return files


def _refused(warm: WarmRun, path: Path, content: bytes, damaged: bytes, how: str) -> str | None:
    def check() -> None:
        path.write_bytes(damaged)
        try:
            problems = verify_run(RunDirectory(warm.work)).problems
        finally:
            path.write_bytes(content)
        said = " ".join(f"{problem.path} {problem.what}" for problem in problems)
        require(problems, "read as valid")
        require(path.stem in said, f"not named: {said}")

    return lost(check, f"{path.relative_to(warm.work)}, {how}")


def file_times(warm: WarmRun, seconds: Iterable[float]) -> Iterator[str | None]:
    """All files are of 1970, or of 2100: each command finds its work done, and makes the same when it is not."""
    for moment in seconds:
        for name in COMMANDS:
            for finished in (False, True):
                run = warm.reset(name, finished=finished)
                for path in [run, *run.rglob("*")]:
                    os.utime(path, (moment, moment))
                yield lost(lambda c=name: _runs(warm, c), f"{name}, files of {moment:.0f} s")


def clocks(warm: WarmRun, days: Iterable[int]) -> Iterator[str | None]:
    """The clock goes wrong by some days in the middle of an iteration."""
    from igrpo_cli.store import manifest

    right = manifest.datetime
    for number in days:

        class WrongClock(right):  # type: ignore[misc, valid-type]
            @classmethod
            def now(cls, tz=None, by=number):
                return right.now(tz) + by * (right(2026, 1, 2) - right(2026, 1, 1))

        for name in COMMANDS:
            warm.reset(name)
            manifest.datetime = WrongClock  # type: ignore[misc]
            try:
                yield lost(lambda c=name: _runs(warm, c), f"{name}, {number} days off")
            finally:
                manifest.datetime = right  # type: ignore[misc]


def without_hard_links(warm: WarmRun) -> Iterator[str | None]:
    """Each command on a file system that has none."""
    for name in COMMANDS:
        warm.reset(name)
        yield lost(lambda c=name: _runs(warm, c, "nolinks@1"), f"{name} without hard links")


def _runs(warm: WarmRun, name: str, fault: str | None = None) -> None:
    process = Fork(*warm.command(name), fault=fault, below=warm.work)
    code = process.wait()
    require(code == 0, f"exit {code}: {process.stderr}")
    same_as_undisturbed(warm, name)
