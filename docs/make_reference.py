"""Generate the pages of `docs/reference/` from the code: commands, settings, schemas, exit codes.

`python docs/make_reference.py` writes them. `--check` fails when a page differs from the code.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
from typer.models import OptionInfo

from igrpo_cli import errors
from igrpo_cli.cli.app import app
from igrpo_cli.config import STAGE_READS, RunConfig
from igrpo_cli.config.files import CHANGEABLE, FIXED_SECTIONS
from igrpo_cli.config.sections import Section
from igrpo_cli.config.study import Study
from igrpo_cli.errors import IgrpoError
from igrpo_cli.store import schema as schemas
from igrpo_cli.store.schema import CHOICES, SCHEMA_OF, name_of_schema, version_of_schema, with_critiques

REFERENCE = Path(__file__).parent / "reference"
GENERATED = "<!-- Generated from the code: `just reference`. -->"


def pages() -> dict[str, str]:
    """Return the text of each page by its file name."""
    texts = {
        "commands": commands(),
        "settings": settings(),
        "studies": study_keys(),
        "schemas": columns(),
        "exit-codes": exit_codes(),
    }
    return {f"{name}.md": f"{GENERATED}\n{text}\n" for name, text in texts.items()}


def commands() -> str:
    """Return the page of all commands with their arguments and flags, in the order of `igrpo --help`."""
    parts = [
        "# Commands",
        "`igrpo COMMAND --help` prints the same. The [exit codes](exit-codes.md) have a page of their own.",
    ]
    for command in app.registered_commands:
        assert command.callback is not None
        text, _, example = (inspect.getdoc(command.callback) or "").partition("Example: ")
        rows = [_parameter(each) for each in inspect.signature(command.callback, eval_str=True).parameters.values()]
        parts += [f"## igrpo {command.name or command.callback.__name__}", _joined(text)]
        parts += [f"```text\n{example.strip()}\n```", _table(("flag", "default", "meaning"), rows)]
    return "\n\n".join(parts)


def settings() -> str:
    """Return the page of all keys of `run.toml`."""
    parts = [
        "# Settings",
        "The sections of `run.toml`, in order. `--set section.key=value` overrides a key. "
        "The last column names the stages whose results depend on the key: shards made with another value are a "
        "conflict (exit 4) until `--overwrite`. `init` means that `igrpo init` fixes the key for the run, and a dash "
        "that the key changes no result. `igrpo set` changes the others from an iteration on, and `igrpo extend` the "
        "number of iterations. The stage `conditioned` is an evaluation with drafts.",
    ]
    for name, field in RunConfig.model_fields.items():
        if name == "changes":
            continue
        section: type[Section] = field.annotation  # type: ignore[assignment]
        described, properties = _attribute_docs(section), section.model_json_schema()["properties"]
        rows = [
            (f"`{key}`", _type(properties[key]), _default(each.get_default(call_default_factory=True)),
             described.get(key, ""), _when_it_counts(name, section, key))
            for key, each in section.model_fields.items()
        ]  # fmt: skip
        parts += [f"## {name}", _joined(inspect.getdoc(section) or "")]
        parts += [_table(("key", "value", "default", "meaning", "stages"), rows)]
    return "\n\n".join(parts)


def study_keys() -> str:
    """Return the page of all keys of the file of a study."""
    described, schema = _attribute_docs(Study), Study.model_json_schema()
    rows = []
    for key, field in Study.model_fields.items():
        default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        rows.append((f"`{key}`", _type(schema["properties"][key]), default, described.get(key, "")))
    intro = "The keys of the file that `igrpo study` reads. The [guide](../studies.md) has an example."
    return "\n\n".join(["# Studies", intro, _table(("key", "value", "default", "meaning"), rows)])


def _when_it_counts(name: str, section: type[Section], key: str) -> str:
    is_fixed = name in FIXED_SECTIONS and f"{name}.{key}" not in CHANGEABLE
    return "init" if is_fixed else ", ".join(_stages_that_read(name, section, key)) or "–"


def columns() -> str:
    """Return the page of all Parquet schemas."""
    described = _module_docs(Path(schemas.__file__))
    records = {name_of_schema(schema): record for record, schema in SCHEMA_OF.items()}
    shared = {column: text for record in records.values() for column, text in _attribute_docs(record).items()}
    parts = [
        "# Schemas",
        "The columns of the Parquet files of a run. The metadata of a file gives the name and version of its schema "
        "(`igrpo.schema`, `igrpo.schema_version`). `igrpo sql` reads all of them.",
    ]
    for variable, schema in vars(schemas).items():
        if not (isinstance(schema, pa.Schema) and variable.isupper()):
            continue
        name = name_of_schema(schema)
        own = _attribute_docs(records[name]) if name in records else shared
        rows = [
            (
                f"`{field.name}`",
                _column_type(field),
                "yes" if field.nullable else "",
                own.get(field.name) or shared.get(field.name, ""),
            )
            for field in (with_critiques(schema) if name == "rollouts" else schema)
        ]
        parts += [f"## {name}", f"Version {version_of_schema(schema)}. {described[variable]}"]
        parts += [_table(("column", "type", "may be null", "meaning"), rows)]
    return "\n\n".join(parts)


def exit_codes() -> str:
    """Return the page of all exit codes and their errors."""
    meanings = {
        errors.EXIT_DONE: ["The work is done, now or before."],
        errors.EXIT_CTRL_C: ["Stopped by Ctrl-C; run the command again to continue."],
    }
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, IgrpoError):
            text = (
                "Something failed."
                if error is IgrpoError
                else (inspect.getdoc(error) or "").splitlines()[0].replace(f" (exit {error.exit_code})", "")
            )
            meanings.setdefault(error.exit_code, []).append(text)
    rows = [(str(code), " ".join(texts)) for code, texts in sorted(meanings.items())]
    intro = (
        "An error is printed on stderr in two lines: `error: ` says what failed and where, `hint: ` what to type next."
    )
    return "\n\n".join(["# Exit codes", intro, _table(("code", "meaning"), rows)])


def _parameter(parameter: inspect.Parameter) -> tuple[str, str, str]:
    kind, info = get_args(parameter.annotation)
    is_option, is_flag = isinstance(info, OptionInfo), kind is bool
    value = info.metavar or (parameter.name if not is_option else _value_name(kind)).upper()
    if is_option:
        # Within `Annotated` typer takes the first name of a flag for its default.
        flags = ", ".join(each for each in (info.default, *(info.param_decls or ())) if isinstance(each, str))
        name = flags if is_flag else f"{flags} {value}"
    else:
        name = value
    default = info.show_default if isinstance(info.show_default, str) else parameter.default
    shown = "" if default in (None, False, "", inspect.Parameter.empty) else str(default)
    return f"`{name}`", shown, (info.help or "") + (f" Also `${info.envvar}`." if info.envvar else "")


def _value_name(kind: Any) -> str:
    """Return the metavar of a flag from its type: `INTEGER`, `TEXT`, `PATH`, `FLOAT`."""
    words = {int: "integer", str: "text"}
    plain = next((each for each in get_args(kind) if each is not type(None)), kind)
    plain = next(iter(get_args(plain)), plain)  # the type of the items of a list
    return words.get(plain, plain.__name__)


def _stages_that_read(section_name: str, section: type[Section], key: str) -> list[str]:
    def reads(names: Iterable[str]) -> bool:
        whole = section_name in names and key not in section.WITHOUT_EFFECT
        return whole or f"{section_name}.{key}" in names

    return [stage for stage, names in STAGE_READS.items() if reads(names)]


def _type(value: Mapping[str, Any]) -> str:
    """Return a JSON schema as text."""
    if "anyOf" in value or "oneOf" in value:
        forms = value.get("anyOf") or value["oneOf"]
        return " or ".join(_type(each) for each in forms if each.get("type") != "null")
    if "$ref" in value:
        return "table"
    if "enum" in value or "const" in value:
        return ", ".join(f'`"{each}"`' for each in value.get("enum", [value.get("const")]))
    if value["type"] == "array":
        return f"list of {_type(value['items'])}"
    names = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "object": "table"}
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {value[name]:g}" for name, sign in signs.items() if name in value]
    return " ".join([names[value["type"]], ", ".join(bounds)]).strip()


def _default(value: object) -> str:
    return "unset" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"


def _column_type(field: pa.Field) -> str:
    if field.name in CHOICES:
        return ", ".join(f"`{each}`" for each in CHOICES[field.name])
    return f"list of {field.type.value_type}" if pa.types.is_list(field.type) else str(field.type)


def _attribute_docs(cls: type) -> dict[str, str]:
    """Return the docstring below each attribute of a class, inherited attributes included."""
    inherited = _attribute_docs(cls.__base__) if issubclass(cls.__base__ or cls, Section) else {}
    return {**inherited, **_docs_after(ast.parse(inspect.getsource(cls)).body[0].body)}  # type: ignore[attr-defined]


def _module_docs(path: Path) -> dict[str, str]:
    return _docs_after(ast.parse(path.read_text("utf-8")).body)


def _docs_after(body: list[ast.stmt]) -> dict[str, str]:
    found = {}
    for statement, following in pairwise(body):
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        if isinstance(target, ast.Name) and isinstance(following, ast.Expr):
            found[target.id] = _joined(inspect.cleandoc(ast.literal_eval(following.value)))
    return found


def _joined(text: str) -> str:
    return " ".join(text.split())


def _table(headers: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"

    return "\n".join([line(headers), "|---" * len(headers) + "|", *map(line, rows)])


if __name__ == "__main__":
    stale = [
        name
        for name, text in pages().items()
        if not (REFERENCE / name).is_file() or (REFERENCE / name).read_text("utf-8") != text
    ]
    if "--check" in sys.argv[1:]:
        sys.exit(f"docs/reference is stale ({', '.join(stale)}): just reference" if stale else 0)
    REFERENCE.mkdir(exist_ok=True)
    for name in stale:
        (REFERENCE / name).write_text(pages()[name], "utf-8")
