"""Read and check settings from TOML files, presets and `--set`, and write `run.toml`."""

from __future__ import annotations

import difflib
import re
import shlex
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError

from igrpo_cli.config import RunConfig
from igrpo_cli.config.data import MixSource
from igrpo_cli.config.engine import SpeculativeConfig
from igrpo_cli.errors import ConflictError, UsageError
from igrpo_cli.http_client import without_secrets
from igrpo_cli.texts import INVALID_ESCAPE_CURE, TOML_CURE, control_fault

PRESETS = Path(__file__).parent / "presets"
FIXED_SECTIONS = ("run", "data", "policy")
"""Sections that `igrpo init` fixes, because shards, problems and policies depend on them."""
CHANGEABLE = ("run.eval_every", "run.eval_bench", "policy.keep")
"""Keys of these sections that can be changed all the same."""
RENAMED = {
    "update.groups_without_gradient": "update.dynamic_sampling",
    "update.old_logprobs": "update.importance_sampling_correction",
    "update.importance_cap": "update.importance_sampling_clip_max",
}
"""Earlier names of settings, for the error about an unknown one."""
ALL_SETTINGS = "`igrpo init RUN --dry-run` prints the settings with their defaults"


def preset_names() -> list[str]:
    """Return the names of the presets."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def read_preset(name: str) -> dict[str, Any]:
    """Return the settings of a preset. Raises UsageError with the nearest name for an unknown one."""
    if name not in preset_names():
        raise UsageError(f"unknown preset {name!r}{_nearest(name, preset_names())}", hint=_listing(preset_names()))
    return read_toml(PRESETS / f"{name}.toml")


def read_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file as nested dicts. Raises UsageError with the file and the place of a mistake."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no config file {path}", hint="igrpo init RUN --preset quickstart") from None
    # A number of thousands of digits raises ValueError, deeply nested brackets RecursionError.
    except (ValueError, RecursionError) as error:
        hint = INVALID_ESCAPE_CURE if "Unescaped '\\'" in str(error) else "see https://toml.io for the format"
        raise UsageError(f"{path} is not valid TOML: {error}", hint=hint) from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="give a TOML file that you can read") from None


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the settings in a file of the user. Raises as `read_toml`, and UsageError for a lost backslash."""
    settings = read_toml(path)
    for name, value in _texts(settings):
        if fault := control_fault(value):
            lines = path.read_text("utf-8").splitlines()
            where = f"{path} line {_line_of(lines, name.rpartition('.')[2], fault.command)}"
            raise UsageError(f"{where}: {name} contains {fault}", hint=TOML_CURE)
    return settings


def parse_override(text: str) -> tuple[str, str, Any]:
    """Split `section.key=value` into (section, key, value). The value is TOML; a word without quotes is a string.

    Raises UsageError for text of another form, for quotes that do not match, and for a lost backslash.
    """
    name, equals, raw = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        shown = without_secrets(text)
        raise UsageError(f"{shown!r} is not section.key=value", hint=_full_names(name.strip()))
    try:
        value = tomllib.loads(f"value = {raw.strip()}")["value"]
    except (ValueError, RecursionError) as error:
        value = raw.strip()
        if value.startswith(('"', "'")):
            hint = INVALID_ESCAPE_CURE if "Unescaped '\\'" in str(error) else "leave out the quotes, or close them"
            raise UsageError(f"--set {section}.{key} is not valid TOML: {error}", hint=hint) from None
    for _, each in _texts({key: value}):
        if fault := control_fault(each):
            raise UsageError(f"--set {section}.{key} contains {fault}", hint=TOML_CURE)
    return section, key, value


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the name and the value of each text in nested tables and lists."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _texts(each, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, name)


def _line_of(lines: Sequence[str], key: str, command: str) -> int:
    """Return the number of the line with `command`, from the line of `key` on, or else that of the key itself."""
    of_key = next((number for number, line in enumerate(lines, 1) if re.match(rf"\W*{re.escape(key)}\W*=", line)), 1)
    after = range(of_key, len(lines) + 1) if command else ()
    return next((number for number in after if command in lines[number - 1]), of_key)


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the keys of `override` replaced. A table as the value of a key is replaced as a whole."""
    merged = dict(base)
    for name, section in override.items():
        old = merged.get(name)
        merged[name] = {**old, **section} if isinstance(old, dict) and isinstance(section, dict) else section
    return merged


def apply_overrides(settings: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return `settings` with each `section.key=value` replaced.

    `reward.weights.format=0` replaces one value of a table: of the one in `settings`, or else of the default.
    """
    merged = dict(settings)
    for text in overrides:
        section, key, value = parse_override(text)
        key, *path = key.split(".")
        merged = merge(merged, {section: {key: _within(merged, section, key, path, value)}})
    return merged


def _within(settings: Mapping[str, Any], section: str, key: str, path: Sequence[str], value: Any) -> Any:
    """Return the value of a key after the value at `path` within it is replaced."""
    if not path:
        return value
    default = RunConfig.model_fields[section].default if section in RunConfig.model_fields else None
    table = settings.get(section, {}).get(key, getattr(default, key, None))
    if not isinstance(table, dict):
        raise UsageError(
            f"--set {section}.{key}.{'.'.join(path)}: {section}.{key} is no table", hint=f"--set {section}.{key}=VALUE"
        )
    name, *rest = path
    return {**table, name: _within({section: table}, section, name, rest, value)}


def refuse_fixed(settings: Mapping[str, Any], overrides: Iterable[str], run_toml: Path) -> None:
    """Raise ConflictError for an override of a setting in `run_toml` that `igrpo init` has fixed."""
    for text in overrides:
        section, key, value = parse_override(text)
        if f"{section}.{key}" in CHANGEABLE:
            continue
        if section in FIXED_SECTIONS and settings.get(section, {}).get(key) != value:
            extends = f"igrpo extend RUN --iterations {value} adds iterations; " if key == "num_iterations" else ""
            raise ConflictError(
                f"{section}.{key} was fixed when the run was created "
                f"({settings.get(section, {}).get(key)!r} in {run_toml}, {value!r} now)",
                hint=f"{extends}igrpo init NEW_RUN --config {shlex.quote(str(run_toml))} --set {shlex.quote(text)}",
            )


def check_config(settings: Mapping[str, Any], origin: str) -> RunConfig:
    """Return the checked config. Raises UsageError with the wrong key, the reason and the nearest known key.

    `origin` is the file or flag of the settings, for the error.
    """
    try:
        return RunConfig.model_validate(dict(settings))
    except ValidationError as error:
        raise UsageError(explain(error, origin), hint=ALL_SETTINGS) from None


def with_changes(
    settings: Mapping[str, Any], changes: Sequence[Mapping[str, Any]], names: Sequence[str], origin: str
) -> RunConfig:
    """Return the checked settings with `changes`. `names` are those of the changes and `origin` that of the settings.

    Raises UsageError, with the name, for a change after which no run could have the settings.
    """
    config = check_config({**settings, "changes": list(changes)}, origin)
    for number, name in enumerate(names, 1):
        earlier = config.model_copy(update={"changes": config.changes[:number]})
        try:
            earlier.changed(earlier.changes[-1].from_iteration)
        except ValidationError as error:
            raise UsageError(explain(error, name), hint="igrpo set RUN section.key=value changes a setting") from None
    return config


def key_of(override: str) -> tuple[str, str]:
    """Return section and key of `section.key=value`, also where a value within a table is named."""
    section, key, _ = parse_override(override)
    return section, key.partition(".")[0]


def write_config(config: RunConfig) -> bytes:
    """Return the bytes of `run.toml`. Unset keys are left out, because TOML has no null."""
    values = config.model_dump(mode="json", exclude_none=True)
    return tomli_w.dumps(values).encode()


def explain(error: ValidationError, origin: str, model: type[BaseModel] = RunConfig) -> str:
    """Return the mistakes in a file of the user as one line, each with its key and the nearest known one."""
    lines = []
    for item in error.errors():
        # A part in parentheses is the form of a value that has several, such as `config.sections.Temperature`.
        key = ".".join(str(part) for part in item["loc"] if not str(part).startswith("("))
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key {key}{_nearest(key, _known_keys(item['loc'], model))}")
        elif item["loc"] and item["type"] == "value_error":  # raised by a validator of a section
            lines.append(f"{key}{'.' if len(item['loc']) == 1 else ': '}{item['msg'].removeprefix('Value error, ')}")
        elif item["loc"]:
            lines.append(f"{key} = {without_secrets(repr(item['input']))}: {item['msg'][:1].lower()}{item['msg'][1:]}")
        else:
            lines.append(item["msg"].removeprefix("Value error, "))
    return f"{origin}: " + "; ".join(lines)


def _known_keys(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """Return the full names of the keys or sections that an unknown name may stand for."""
    section = model.model_fields.get(str(location[0]))
    if len(location) == 1 or section is None:
        return list(model.model_fields)
    if location[:2] == ("data", "mix") and len(location) > 3:
        return [f"data.mix.{location[2]}.{key}" for key in MixSource.model_fields]
    if location[:2] == ("engine", "speculative_config") and len(location) > 2:
        return [f"engine.speculative_config.{key}" for key in SpeculativeConfig.model_fields]
    within = section.annotation
    assert isinstance(within, type)
    assert issubclass(within, BaseModel)
    here = [f"{location[0]}.{key}" for key in within.model_fields]
    elsewhere = [name for name in _all_keys() if name.partition(".")[0] != location[0]]
    # If several sections have a key of this name, take the first: stages come before judge and eval.
    same_key = [name for name in elsewhere if name.endswith(f".{location[-1]}")]
    return same_key[:1] or here


def _full_names(key: str) -> str:
    """Return what to type for a key without its section, as far as a section has it; else an example."""
    names = " or ".join(f"{name}=VALUE" for name in _all_keys() if name.partition(".")[2] == key)
    return names or "for example draft.temperature=0.8"


def _all_keys() -> Iterator[str]:
    """Yield the full name of each key of each section."""
    for name, field in RunConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from (f"{name}.{key}" for key in field.annotation.model_fields)


def _nearest(name: str, known: Iterable[str]) -> str:
    if name in RENAMED:
        return f"; it is called {RENAMED[name]} now"
    # The section is the same in all, so it says nothing about which key is meant.
    keys = {each.rpartition(".")[2]: each for each in known}
    matches = difflib.get_close_matches(name.rpartition(".")[2], list(keys), n=1, cutoff=0.6)
    return f"; did you mean {keys[matches[0]]}?" if matches else ""


def _listing(names: Iterable[str]) -> str:
    return "known: " + ", ".join(names)
