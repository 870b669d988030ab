"""From what a user typed to where the problems lie: a path, a packaged set, a named set, or a Hub id."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from igrpo_cli.errors import MissingInputError
from igrpo_cli.problems.benches import BENCHES, OTHER_REPEATS, TRAINING_SETS, NamedSet, ProblemSource
from igrpo_cli.problems.files import SUFFIXES, splits_below
from igrpo_cli.problems.packaged import PACKAGED_SETS, PREFIX, packaged_problems

Use = Literal["train", "test"]
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
NO_HUB_HINT = (
    "put the files in a folder and name it (--bench-dir DIR, or IGRPO_BENCH_DIR), "
    "or read the Hub: pip install 'igrpo-cli[hub]'"
)

TRAINING_HINT = "--set data.train=PATH of a JSONL or Parquet file, or of a folder of them"


def resolve_bench(name_or_path: str, bench_dir: Path | None = None) -> ProblemSource:
    """Where the benchmark `name_or_path` lies; the first of these that exists:

    a path; in `bench_dir` the file `<name>` or `<name>_test` (`.jsonl`, `.json`, `.parquet`) or the folder
    `<name>`; a packaged set (its test split); a named benchmark on the Hub; a Hub id. A folder with several
    splits is read for `test`. Raises `MissingInputError` for any other word.
    """
    return _resolve(name_or_path, BENCHES, bench_dir, "test")


def resolve_training(name_or_path: str, train_dir: Path | None = None) -> ProblemSource:
    """Where the training set `name_or_path` lies: as `resolve_bench`, but `train`."""
    return _resolve(name_or_path, TRAINING_SETS, train_dir, "train")


def default_repeats(name_or_path: str) -> int:
    """Samples per problem in the paper's evaluation: 64 for the small AIME sets, else 8."""
    named = BENCHES.get(name_or_path) or _by_hub_id(name_or_path, BENCHES)
    return named.repeats if named else OTHER_REPEATS


def _resolve(name: str, table: Mapping[str, NamedSet], folder: Path | None, use: Use) -> ProblemSource:
    if name.startswith(PREFIX):
        return ProblemSource(packaged_problems(name.removeprefix(PREFIX)))
    path = os.path.expanduser(name)
    if os.path.exists(path):
        return _local(Path(path), use)
    found = _below(folder, name, use) if folder is not None else None
    if found is not None:
        return _local(found, use)
    if name in PACKAGED_SETS:
        return ProblemSource(packaged_problems(f"{name}/{use}"))
    named = table.get(name) or _by_hub_id(name, table)
    if named is not None:
        return named.source
    if Path(name).suffix in SUFFIXES or not HUB_ID.fullmatch(name):
        raise _unknown(name, table, folder, use)
    return ProblemSource(name)


def _local(path: Path, use: Use) -> ProblemSource:
    """A folder that holds several splits is read for the one that fits its use."""
    splits = splits_below(path) if path.is_dir() else []
    return ProblemSource(path, split=use if len(splits) > 1 and use in splits else None)


def _below(folder: Path, name: str, use: Use) -> Path | None:
    if not folder.is_dir():
        what = f"{folder} is no folder" if folder.exists() else f"the folder {folder} does not exist"
        raise MissingInputError(what, hint="name the folder that holds the files of the benchmarks")
    if not name or Path(name).name != name:
        return None
    stems = (name, f"{name}_{use}")
    candidates = [folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
    return next((path for path in [*candidates, folder / name] if os.path.exists(path)), None)


def _by_hub_id(name: str, table: Mapping[str, NamedSet]) -> NamedSet | None:
    return next((named for named in table.values() if named.source.location == name), None)


def _unknown(name: str, table: Mapping[str, NamedSet], folder: Path | None, use: Use) -> MissingInputError:
    if Path(name).suffix in SUFFIXES or name != Path(name).name:
        return MissingInputError(f"{name} does not exist", hint=NO_HUB_HINT if use == "test" else TRAINING_HINT)
    local = [path.stem for path in folder.iterdir()] if folder is not None else []
    known = sorted({*table, *PACKAGED_SETS, *local})
    near = difflib.get_close_matches(name, known, n=3) or known
    return MissingInputError(
        f"there are no problems called {name!r}", hint=f"there are {', '.join(near)}; or name a file"
    )
