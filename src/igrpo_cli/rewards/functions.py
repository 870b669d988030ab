"""A user's own reward functions: named in the settings, found by module or entry point, called in grading workers.

A function takes those of `PARAMETERS` that it names, of one completion, and returns a finite number:

    def brevity(num_tokens, max_completion_length):
        return 1 - num_tokens / max_completion_length
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module, metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from igrpo_cli.errors import UsageError

ENTRY_POINTS = "igrpo.rewards"
PARAMETERS = {
    "completion": "the text of the completion",
    "answer": "the reference answer",
    "extracted_answer": "the answer found in the completion, None where there is none",
    "verdict": "correct, wrong, no_answer or ungraded",
    "problem": "the text of the problem",
    "prompt": "the whole prompt, as the policy read it",
    "num_tokens": "tokens of the completion",
    "max_completion_length": "tokens at which sampling stops",
    "finish_reason": "stop, length or abort",
}
"""What a function may ask for, by the name of its parameter."""

_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class FunctionFailedError(Exception):
    """A function gave no finite number for a row; the message names the function and holds no text of the model."""


class RewardFunction:
    """One function, ready to be called."""

    def __init__(self, name: str, target: str) -> None:
        """Imports `target`, a `module:function`. Raises UsageError where it cannot be called as it must be."""
        self.name = name
        self._what = f"the reward function {name} ({target})"
        module, _, attribute = target.partition(":")
        try:
            function: Any = import_module(module)
            for part in attribute.split("."):
                function = getattr(function, part)
        except Exception as error:
            raise UsageError(
                f"{self._what} cannot be imported: {type(error).__name__}: {error}",
                hint="the module must be installed, on PYTHONPATH or in the current directory",
            ) from error
        self._function: Callable[..., Any] = function
        self._wanted = self._find_wanted()

    def __call__(self, row: Mapping[str, Any]) -> float:
        """Its value for `row`, which holds all of `PARAMETERS`. Raises FunctionFailedError."""
        try:
            value = self._function(**{name: row[name] for name in self._wanted})
        except Exception as error:
            raise FunctionFailedError(f"{self._what} raised {type(error).__name__}{_place(error)}") from error
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise FunctionFailedError(f"{self._what} returned {type(value).__name__}, not a number") from None
        if not math.isfinite(number) or isinstance(value, str):
            raise FunctionFailedError(f"{self._what} returned {type(value).__name__} {number}, not a finite number")
        return number

    def _find_wanted(self) -> list[str]:
        if not callable(self._function):
            raise UsageError(f"{self._what} is no function but {type(self._function).__name__}")
        try:
            parameters = inspect.signature(self._function).parameters.values()
        except (TypeError, ValueError) as error:
            raise UsageError(f"{self._what} has no signature that Python can read: {error}") from error
        known = ", ".join(PARAMETERS)
        wanted = []
        for parameter in parameters:
            if parameter.kind is parameter.VAR_KEYWORD:
                return list(PARAMETERS)
            if parameter.name in PARAMETERS and parameter.kind is not parameter.POSITIONAL_ONLY:
                wanted.append(parameter.name)
            elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
                raise UsageError(
                    f"{self._what} asks for {parameter.name!r}, which it cannot be given by name",
                    hint=f"a reward function may ask for {known}",
                )
        return wanted


def resolve_target(name: str, target: str) -> str:
    """`target` as `module:function`; a word without a colon is an entry point of the group `igrpo.rewards`.

    Raises UsageError for anything else. Imports nothing.
    """
    if _TARGET.fullmatch(target):
        return target
    entry_points = metadata.entry_points(group=ENTRY_POINTS)
    if ":" in target or target not in entry_points.names:
        known = ", ".join(sorted(entry_points.names)) or "none is installed"
        raise UsageError(
            f"reward.functions.{name} = {target!r} is neither module:function nor an entry point",
            hint=f"entry points of the group {ENTRY_POINTS}: {known}",
        )
    return entry_points[target].value.partition("[")[0].strip()


def source_sha256(target: str) -> str | None:
    """SHA-256 of the file in which `target` (`module:function`) is defined; None where it has no file of its own.

    Found without importing it: what a user's module imports is of no concern to the process that samples.
    """
    spec: ModuleSpec | None = None
    places: list[str] | None = [*sys.path, str(Path.cwd())]
    for name in target.partition(":")[0].split("."):
        # By its last name, in its parent's places: by its whole name the parent would have to be imported.
        spec = PathFinder.find_spec(name, places)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or ())
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def _place(error: Exception) -> str:
    """Where in the user's file it was raised."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else " when it was called"
