"""Resolve the name of a problem set to its location: a path, a packaged set, a named set, or a Hub id."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from igrpo_cli.errors import MissingInputError
from igrpo_cli.problems.files import SUFFIXES, splits_below
from igrpo_cli.records import AnswerForm

AIME_REPEATS = 64
OTHER_REPEATS = 8


@dataclass(frozen=True, slots=True)
class ProblemSource:
    """Describes where problems are and how to read them. None means that the value is found from the data."""

    location: Path | str
    """A local file or folder (`Path`), or a Hub id (`str`)."""
    split: str | None = None
    configs: tuple[str, ...] = ()
    """Hub configs, or subfolders of a local folder, in the order of reading. Empty: the default config or all files."""
    problem_column: str | None = None
    answer_column: str | None = None
    id_column: str | None = None
    """Column of the identifiers; `none` numbers the rows."""
    answer_form: AnswerForm = "auto"
    revision: str | None = None
    choices_column: str | None = None
    """Column with the list of choices; the answer names one of them. `none` ignores such a column."""
    wrong_columns: tuple[str, ...] = ()
    """Columns of the wrong choices. `answer_column` must then be given; it holds the text of the right choice."""
    system_column: str | None = None
    """Column of the system prompts; `none` ignores such a column."""
    columns: tuple[str, ...] | None = None
    """Other columns to keep. None: all that are neither binary nor too large."""


@dataclass(frozen=True, slots=True)
class NamedSet:
    """Gives a short name to a problem set on the Hub."""

    name: str
    source: ProblemSource
    repeats: int = OTHER_REPEATS
    """Samples per problem in the evaluation of the paper (arXiv 2602.09000); unused for a training set."""


def _table(*sets: NamedSet) -> dict[str, NamedSet]:
    return {named.name: named for named in sets}


BENCHES: dict[str, NamedSet] = _table(
    NamedSet(
        "aime24",
        ProblemSource("HuggingFaceH4/aime_2024", "train", problem_column="problem", answer_column="answer"),
        AIME_REPEATS,
    ),
    NamedSet(
        "aime25",
        ProblemSource("math-ai/aime25", "test", problem_column="problem", answer_column="answer"),
        AIME_REPEATS,
    ),
    NamedSet(
        "aime26",
        ProblemSource("MathArena/aime_2026", "train", problem_column="problem", answer_column="answer"),
        AIME_REPEATS,
    ),
    NamedSet("amc23", ProblemSource("math-ai/amc23", "test")),
    NamedSet(
        "math500",
        ProblemSource("HuggingFaceH4/MATH-500", "test", problem_column="problem", answer_column="answer"),
    ),
    NamedSet(
        "gsm8k",
        ProblemSource("openai/gsm8k", "test", ("main",), "question", "answer", answer_form="solution"),
    ),
    NamedSet("minerva", ProblemSource("math-ai/minervamath", "test")),
    NamedSet(
        "olympiadbench",
        ProblemSource("Hothan/OlympiadBench", "train", ("OE_TO_maths_en_COMP",), "question", "final_answer"),
    ),
    NamedSet(
        "gpqa",
        ProblemSource(
            "Idavidrein/gpqa",
            "train",
            ("gpqa_diamond",),
            "Question",
            "Correct Answer",
            wrong_columns=("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
        ),
    ),
    NamedSet(
        "mmlu_pro",
        ProblemSource(
            "TIGER-Lab/MMLU-Pro",
            "test",
            problem_column="question",
            answer_column="answer",
            choices_column="options",
        ),
    ),
)
"""Benchmarks of the paper and their successors. Some Hub datasets name the split of their test problems `train`."""

TRAINING_SETS: dict[str, NamedSet] = _table(
    NamedSet(
        "gsm8k",
        ProblemSource("openai/gsm8k", "train", ("main",), "question", "answer", answer_form="solution"),
    ),
    NamedSet(
        "math",
        ProblemSource(
            "DigitalLearningGmbH/MATH-lighteval",
            "train",
            problem_column="problem",
            answer_column="solution",
            answer_form="solution",
        ),
    ),
    NamedSet(
        "deepscaler",
        ProblemSource(
            "agentica-org/DeepScaleR-Preview-Dataset",
            "train",
            problem_column="problem",
            answer_column="answer",
        ),
    ),
    NamedSet(
        "dapo",
        ProblemSource(
            "open-r1/DAPO-Math-17k-Processed",
            "train",
            problem_column="prompt",
            answer_column="solution",
            answer_form="plain",
        ),
    ),
    NamedSet("acereason", ProblemSource("nvidia/AceReason-Math", "train")),
)
"""Training sets by name. The column `solution` of `dapo` holds only the final answer."""

PREFIX = "builtin:"
PACKAGED_SETS = {"arithmetic": ("train", "test", "digits-train", "digits-test"), "columns": ("train", "test")}
"""The splits of each packaged set."""
PACKAGED_POLICIES = {"tiny": "tiny-policy", "columns": "columns-policy"}
"""The folder of each packaged policy by its name in `policy.model`."""


def packaged_folder(name: Literal["data", "studies", "stages"]) -> Path:
    """Return a folder of packaged files: in the installed package, or at the top of a source checkout.

    Raises `MissingInputError` when neither exists.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / name, package.parents[1] / name):
        if folder.is_dir():
            return folder
    raise MissingInputError(f"the {name} of the package are missing", hint="install it again: pip install igrpo-cli")


def packaged_data() -> Path:
    """Return the folder of the packaged policies and problems. Raises as `packaged_folder`."""
    return packaged_folder("data")


def packaged_studies() -> dict[str, Path]:
    """Return the files of the packaged studies by name."""
    return {path.stem: path for path in sorted(packaged_folder("studies").glob("*.toml"))}


def model_location(model: str) -> str:
    """Return the model directory or Hub id for `model`; `tiny` and `columns` are packaged policies."""
    folder = PACKAGED_POLICIES.get(model)
    return model if folder is None else str(packaged_data() / folder)


def packaged_problems(name: str) -> Path:
    """Return the file of a packaged set, for example `arithmetic/train` or `columns/test`.

    Raises `MissingInputError` for any other name.
    """
    set_name, _, split = name.partition("/")
    if split not in PACKAGED_SETS.get(set_name, ()):
        known = [f"{PREFIX}{known}/{split}" for known, splits in PACKAGED_SETS.items() for split in splits]
        raise MissingInputError(f"there is no packaged set {PREFIX}{name}", hint=f"there are {', '.join(known)}")
    path = packaged_data() / set_name / f"{split}.jsonl"
    if not path.is_file():
        raise MissingInputError(f"the packaged file {path} is missing", hint="install it again: pip install igrpo-cli")
    return path


Use = Literal["train", "test"]
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
NO_HUB_HINT = (
    "put the files into a folder and name it (--bench-dir DIR, or IGRPO_BENCH_DIR), "
    "or read from the Hub: pip install 'igrpo-cli[hub]'"
)

TRAINING_HINT = "--set data.train=PATH of a CSV, TSV, JSON, JSONL or Parquet file, or of a folder of them"


def resolve_bench(name_or_path: str, bench_dir: Path | None = None) -> ProblemSource:
    """Return the source of the benchmark `name_or_path`: the first of these that exists.

    1. a path that is no run directory
    2. in `bench_dir`, the file `<name>` or `<name>_test` (`.jsonl`, `.json`, `.parquet`), or the folder `<name>`
    3. the test split of a packaged set
    4. a named benchmark on the Hub
    5. a Hub id

    The split `test` is read from a folder with several splits. Raises `MissingInputError` for any other name.
    """
    return _resolve(name_or_path, BENCHES, bench_dir, "test")


def resolve_training(name_or_path: str, train_dir: Path | None = None) -> ProblemSource:
    """Return the source of a training set. The rules are those of `resolve_bench`, with `train` in place of `test`."""
    return _resolve(name_or_path, TRAINING_SETS, train_dir, "train")


def default_repeats(name_or_path: str) -> int:
    """Return the samples per problem of the paper's evaluation: 64 for the small AIME sets, else 8."""
    named = BENCHES.get(name_or_path) or _by_hub_id(name_or_path, BENCHES)
    return named.repeats if named else OTHER_REPEATS


def _resolve(name: str, table: Mapping[str, NamedSet], folder: Path | None, use: Use) -> ProblemSource:
    if name.startswith(PREFIX):
        return ProblemSource(packaged_problems(name.removeprefix(PREFIX)))
    path = os.path.expanduser(name)
    if os.path.exists(path) and not os.path.exists(os.path.join(path, "run.toml")):
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
    """Return a local source; in a folder with several splits, the split for `use`."""
    splits = splits_below(path) if path.is_dir() else []
    return ProblemSource(path, split=use if len(splits) > 1 and use in splits else None)


def _below(folder: Path, name: str, use: Use) -> Path | None:
    if not folder.is_dir():
        what = f"{folder} is not a folder" if folder.exists() else f"the folder {folder} does not exist"
        raise MissingInputError(what, hint="name the folder that contains the benchmark files")
    if not name or Path(name).name != name:
        return None
    stems = (name, f"{name}_{use}")
    candidates = [folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
    return next((path for path in [*candidates, folder / name] if os.path.exists(path)), None)


def _by_hub_id(name: str, table: Mapping[str, NamedSet]) -> NamedSet | None:
    return next((named for named in table.values() if named.source.location == name), None)


def _unknown(name: str, table: Mapping[str, NamedSet], folder: Path | None, use: Use) -> MissingInputError:
    if Path(name).suffix in SUFFIXES or name != Path(name).name:
        path = Path(name).expanduser()
        others = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, others, n=1)
        meant = f"; did you mean {Path(name).with_name(near[0])}?" if near else ""
        hint = NO_HUB_HINT if use == "test" else TRAINING_HINT
        return MissingInputError(f"{name} does not exist{meant}", hint=hint)
    local = [path.stem for path in folder.iterdir()] if folder is not None else []
    known = sorted({*table, *PACKAGED_SETS, *local})
    near = difflib.get_close_matches(name, known, n=3) or known
    return MissingInputError(f"there is no problem set {name!r}", hint=f"there are {', '.join(near)}; or name a file")
