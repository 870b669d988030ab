"""Reward functions of the user: named in the settings, found by module or entry point, called in grading workers.

A function is called with one completion. Its parameters are any of `PARAMETERS` and of the columns of the data, and it
returns a finite number:

    def brevity(num_tokens, max_completion_length):
        return 1 - num_tokens / max_completion_length

A function with a parameter `completions`, `prompts` or `completion_ids` is called with all completions of a group, and
has the form of TRL. Each of its parameters is a list, and it returns a list:

    def brevity(completions, **kwargs):
        return [1 / (1 + len(completion)) for completion in completions]
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
import sys
import traceback
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
"""The parameters that a function may have, by name. A column of the data with one of these names is not passed."""

LISTS = {"completion": "completions", "prompt": "prompts"}
"""The parameters whose lists have another name, which is TRL's. The list of any other parameter has its own name."""
MAX_ERROR_TEXT = 120
"""Characters of the text of an exception in a message. It may quote a completion."""
COMPLETION_IDS = "completion_ids"
"""Parameter with the token ids of each completion of a group, as in TRL."""

_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class FunctionFailedError(Exception):
    """A function failed at a row; the message names the function."""


@dataclass(frozen=True, slots=True)
class FunctionSignature:
    """What a reward function is called with."""

    target: str
    """Its `module:function`."""
    parameters: Sequence[str]
    """Names of the values that it gets if they exist: of `PARAMETERS`, `completion_ids`, and columns of the data."""
    columns: Sequence[str] = ()
    """Columns among the parameters that have no default. It cannot be called without them."""
    takes_all: bool = False
    """True for `**kwargs`."""
    is_batched: bool = False
    """True if it is called with the lists of a whole group."""

    def wants(self, name: str) -> bool:
        """Return True if the function is called with the value `name`, where that exists."""
        return (self.takes_all or name in self.parameters) and (self.is_batched or name != COMPLETION_IDS)

    def missing(self, known: Container[str]) -> list[str]:
        """Return the columns that the function cannot be called without, and that are not `known`."""
        return [name for name in self.columns if name not in known]


class RewardFunction:
    """One function of the user, imported and checked."""

    def __init__(self, name: str, target: str) -> None:
        """Import `target`, a `module:function`. Raises UsageError if it cannot be imported or called."""
        self.name = name
        self._target = target
        self._what = _named(name, target)
        module, _, attribute = target.partition(":")
        try:
            function: Any = import_module(module)
            for part in attribute.split("."):
                function = getattr(function, part)
        except Exception as error:
            hint = "the module must be installed, on PYTHONPATH or in the current directory"
            if module.endswith(".py"):
                hint = f"write the module, not its file: {Path(module).stem}:{attribute}; {hint}"
            raise UsageError(f"{self._what} cannot be imported: {type(error).__name__}: {error}", hint=hint) from error
        self._function: Callable[..., Any] = function
        self.signature = self._read_signature()

    def __call__(self, row: Mapping[str, Any]) -> float:
        """Return the value for `row`, which holds `PARAMETERS` and columns. Raises FunctionFailedError."""
        return self._number(self._call(partial(self._function, **{name: row[name] for name in self._names(row)})))

    def of_group(self, rows: Sequence[Mapping[str, Any]]) -> list[float | FunctionFailedError]:
        """Return the value for each row of a group, or why it is none. Raises FunctionFailedError for all rows."""
        lists = {LISTS.get(name, name): [row[name] for row in rows] for name in self._names(rows[0])}
        returned = self._call(partial(self._function, **lists))
        if isinstance(returned, str | bytes | Mapping) or not isinstance(returned, Iterable):
            raise FunctionFailedError(f"{self._what} returned {type(returned).__name__}, not a list of numbers")
        values = self._call(partial(list, returned))  # which runs the code of a generator
        if len(values) != len(rows):
            raise FunctionFailedError(f"{self._what} returned {len(values)} values for {len(rows)} completions")
        return [self._number_or_error(value, place) for place, value in enumerate(values)]

    def _names(self, row: Mapping[str, Any]) -> list[str]:
        taken = LISTS.values() if self.signature.is_batched else ()
        return [name for name in row if self.signature.wants(name) and name not in taken]

    def _call(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            text = " ".join(str(error).split())
            what = f"{type(error).__name__}{_place(error)}{f': {text[:MAX_ERROR_TEXT]}' if text else ''}"
            raise FunctionFailedError(f"{self._what} raised {what}") from error

    def _number(self, value: Any, where: str = "") -> float:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise FunctionFailedError(f"{self._what} returned {type(value).__name__}{where}, not a number") from None
        if not math.isfinite(number) or isinstance(value, str):
            what = f"{type(value).__name__} {number}{where}"
            raise FunctionFailedError(f"{self._what} returned {what}, not a finite number")
        return number

    def _number_or_error(self, value: Any, place: int) -> float | FunctionFailedError:
        try:
            return self._number(value, f" at place {place} of its list")
        except FunctionFailedError as error:
            return error

    def _read_signature(self) -> FunctionSignature:
        if not callable(self._function):
            raise UsageError(f"{self._what} is not a function but {type(self._function).__name__}")
        try:
            parameters = inspect.signature(self._function).parameters.values()
        except (TypeError, ValueError) as error:
            raise UsageError(f"{self._what} has no signature that Python can read: {error}") from error
        is_batched = any(each.name in (*LISTS.values(), COMPLETION_IDS) for each in parameters)
        singular = {many: one for one, many in LISTS.items()} if is_batched else {}
        passed = {*PARAMETERS} - {*LISTS} | {*singular, COMPLETION_IDS} if is_batched else {*PARAMETERS}
        found, columns, takes_all = [], [], False
        for parameter in parameters:
            kind, name = parameter.kind, parameter.name
            if kind is parameter.VAR_POSITIONAL:
                continue
            if kind is parameter.VAR_KEYWORD:
                takes_all = True
            elif kind is parameter.POSITIONAL_ONLY or (is_batched and name in LISTS):
                if parameter.default is parameter.empty:
                    raise self._cannot_pass(name)
            else:
                found.append(singular.get(name, name))
                if name not in passed and parameter.default is parameter.empty:
                    columns.append(name)
        return FunctionSignature(self._target, found, columns, takes_all, is_batched)

    def _cannot_pass(self, name: str) -> UsageError:
        return UsageError(
            f"{self._what} has the parameter {name!r}, which cannot be passed by name",
            hint=f"a reward function may have the parameters {', '.join(PARAMETERS)}, and columns of the data; "
            f"one of a whole group {', '.join((*LISTS.values(), COMPLETION_IDS))} and the others",
        )


def require_columns(signatures: Mapping[str, FunctionSignature], known: Sequence[str]) -> None:
    """Raise UsageError for a function with a parameter that is neither passed to all nor a column of the data."""
    for name, signature in signatures.items():
        for missing in signature.missing(known):
            columns = f"the other columns of the data are {', '.join(known)}" if known else "the data has no others"
            raise UsageError(
                f"{_named(name, signature.target)} has the parameter {missing!r}, which is no column of the data",
                hint=f"{columns}; each function may have the parameters {', '.join(PARAMETERS)}",
            )


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


def _named(name: str, target: str) -> str:
    return f"the reward function {name} ({target})"


def _place(error: Exception) -> str:
    """Return file and line of the user's code that raised `error`."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else " when it was called"
