"""Reward functions of the user: named in the settings, found by module or entry point, called in grading workers.

A function is called with one completion. Its parameters are any of `PARAMETERS`, and it returns a finite number:

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
    "extracted_answer": "the answer found in the completion, None if there is none",
    "verdict": "correct, wrong, no_answer or ungraded",
    "problem": "the text of the problem",
    "prompt": "the whole prompt, with the chat template",
    "num_tokens": "tokens of the completion",
    "max_completion_length": "tokens at which sampling stops",
    "finish_reason": "stop, length or abort",
}
"""The parameters that a function may have, by name."""

_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class FunctionFailedError(Exception):
    """A function failed at a row; the message names the function and holds no text of the model."""


class RewardFunction:
    """One function of the user, imported and checked."""

    def __init__(self, name: str, target: str) -> None:
        """Import `target`, a `module:function`. Raises UsageError if it cannot be imported or called."""
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
        self._parameters = self._find_parameters()

    def __call__(self, row: Mapping[str, Any]) -> float:
        """Return the value for `row`, which holds all of `PARAMETERS`. Raises FunctionFailedError."""
        try:
            value = self._function(**{name: row[name] for name in self._parameters})
        except Exception as error:
            raise FunctionFailedError(f"{self._what} raised {type(error).__name__}{_place(error)}") from error
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise FunctionFailedError(f"{self._what} returned {type(value).__name__}, not a number") from None
        if not math.isfinite(number) or isinstance(value, str):
            raise FunctionFailedError(f"{self._what} returned {type(value).__name__} {number}, not a finite number")
        return number

    def _find_parameters(self) -> list[str]:
        if not callable(self._function):
            raise UsageError(f"{self._what} is not a function but {type(self._function).__name__}")
        try:
            parameters = inspect.signature(self._function).parameters.values()
        except (TypeError, ValueError) as error:
            raise UsageError(f"{self._what} has no signature that Python can read: {error}") from error
        known = ", ".join(PARAMETERS)
        found = []
        for parameter in parameters:
            if parameter.kind is parameter.VAR_KEYWORD:
                return list(PARAMETERS)
            if parameter.name in PARAMETERS and parameter.kind is not parameter.POSITIONAL_ONLY:
                found.append(parameter.name)
            elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
                raise UsageError(
                    f"{self._what} has the parameter {parameter.name!r}, which cannot be passed by name",
                    hint=f"a reward function may have the parameters {known}",
                )
        return found


def resolve_target(name: str, target: str) -> str:
    """Return `target` as `module:function`; a word without a colon is an entry point of the group `igrpo.rewards`.

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
    """Return the SHA-256 of the file that defines `target` (`module:function`); None if it has no file.

    The module is not imported: its own imports must not slow down or change the process that samples.
    """
    spec: ModuleSpec | None = None
    folders: list[str] | None = [*sys.path, str(Path.cwd())]
    for name in target.partition(":")[0].split("."):
        # Searched by its last name in the folders of its parent: the full name would import the parent.
        spec = PathFinder.find_spec(name, folders)
        if spec is None:
            return None
        folders = list(spec.submodule_search_locations or ())
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def _place(error: Exception) -> str:
    """Return file and line of the user's code that raised `error`."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else " when it was called"
