"""The data that comes with the package."""

from __future__ import annotations

from pathlib import Path

from igrpo_cli.errors import MissingInputError

PREFIX = "builtin:"
PACKAGED_SETS = ("arithmetic",)
PACKAGED_SPLITS = ("train", "test", "products")


def packaged_data() -> Path:
    """The folder of packaged data: inside the installed package, or `data/` of a source checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "data", package.parents[1] / "data"):
        if folder.is_dir():
            return folder
    raise MissingInputError("the package came without its data", hint="install it again: pip install igrpo-cli")


def model_location(model: str) -> str:
    """The model directory or Hub id that `model` names; `tiny` stands for the packaged policy."""
    return str(packaged_data() / "tiny-policy") if model == "tiny" else model


def packaged_problems(name: str) -> Path:
    """The file of `arithmetic/train`, `arithmetic/test` or `arithmetic/products`."""
    set_name, _, split = name.partition("/")
    if set_name not in PACKAGED_SETS or split not in PACKAGED_SPLITS:
        known = [f"{PREFIX}{known}/{split}" for known in PACKAGED_SETS for split in PACKAGED_SPLITS]
        raise MissingInputError(f"there is no packaged set {PREFIX}{name}", hint=f"there are {', '.join(known)}")
    path = packaged_data() / set_name / f"{split}.jsonl"
    if not path.is_file():
        raise MissingInputError(f"the packaged file {path} is missing", hint="install it again: pip install igrpo-cli")
    return path
