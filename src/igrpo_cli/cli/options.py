"""The options that several commands have, each declared once.

`igrpo --help` reads these annotations. As objects they cost nothing. As strings (`from __future__ import annotations`)
each would be compiled again.
"""

import inspect
import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from igrpo_cli.cli import completion
from igrpo_cli.errors import UsageError
from igrpo_cli.extras import require_extra
from igrpo_cli.ui.console import NORMAL, QUIET, VERBOSE, Console

Run = Annotated[Path, typer.Argument(metavar="[RUN]", help="Run directory.", show_default="current directory")]
Iteration = Annotated[
    int | None,
    typer.Option("--iteration", min=0, show_default="first unfinished", help="Iteration to work on."),
]
Shard = Annotated[
    str | None,
    typer.Option("--shard", envvar="SLURM_ARRAY_TASK_ID", metavar="LIST", help="Shards: 3, or 0,4-7, or all."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        autocompletion=completion.settings,
        help="Override a setting for this command; repeatable.",
    ),
]
Scores = Annotated[
    str | None,
    typer.Option("--scores", metavar="NAME", help="Take the rewards from a set of scores made by `igrpo grade RUN`."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that are complete.")]
Cascade = Annotated[
    bool, typer.Option("--cascade", help="Remove later results that do not follow from this stage any more.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan; sample and write nothing.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown instead of plain text.")]
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Count and skip unusable rows. Without it they are an error.")
]
BenchDir = Annotated[
    Path | None,
    typer.Option("--bench-dir", envvar="IGRPO_BENCH_DIR", help="Folder of local benchmark files."),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="NAME",
        autocompletion=completion.engines,
        help="auto, transformers, vllm or server. Short for --set engine.name.",
    ),
]
Endpoints = Annotated[
    list[str] | None,
    typer.Option("--endpoint", metavar="URL", help="A running `vllm serve`, for --engine server; repeatable."),
]
ReportTo = Annotated[
    list[str] | None,
    typer.Option(
        "--report-to",
        metavar="NAME",
        autocompletion=completion.trackers,
        help="tensorboard, trackio or wandb. Short for --set log.report_to.",
    ),
]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="When these shards are complete, sample blocks of shards of other tasks.")
]


def _with_png(is_requested: bool) -> bool:
    if is_requested:
        require_extra("png", "--png")
    return is_requested


Png = Annotated[
    bool,
    typer.Option("--png", callback=_with_png, help="Also write the figures as PNG files, in a folder."),
]
_OUTPUT = {
    "as_json": Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")],
    "quiet": Annotated[bool, typer.Option("-q", "--quiet", help="Print only errors on stderr.")],
    "verbose": Annotated[bool, typer.Option("-v", "--verbose", help="Print more details on stderr.")],
}
_OTHER_FORMATS = {"markdown": "--markdown", "as_csv": "--csv"}


def with_console(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options `--json`, `-q` and `-v`, and give the command the `console` that they describe.

    The command raises UsageError for two output formats at once.
    """

    @wraps(command)
    def with_output_options(*, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> Any:
        for name, flag in _OTHER_FORMATS.items():
            if as_json and options.get(name):
                raise UsageError(f"--json and {flag} exclude each other", hint="use one of them")
        verbosity = VERBOSE if verbose else QUIET if quiet else NORMAL
        return command(**options, console=Console(as_json=as_json, verbosity=verbosity))

    signature = inspect.signature(command)
    own = [each for name, each in signature.parameters.items() if name != "console"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    output = [inspect.Parameter(name, keyword, default=False, annotation=kind) for name, kind in _OUTPUT.items()]
    with_output_options.__signature__ = signature.replace(parameters=[*own, *output])  # type: ignore[attr-defined]
    return with_output_options


def with_report_to(sets: list[str] | None, report_to: list[str] | None) -> list[str]:
    """Return `sets` with the setting for which `--report-to` is short."""
    return [*(sets or []), *([f"log.report_to={json.dumps(report_to)}"] if report_to else [])]


def with_engine(sets: list[str] | None, engine: str | None, endpoints: list[str] | None) -> list[str]:
    """Return `sets` with the settings for which `--engine` and `--endpoint` are short."""
    short = [] if engine is None else [f"engine.name={json.dumps(engine)}"]
    if endpoints:
        short.append(f"engine.endpoints={json.dumps(endpoints)}")
    return [*(sets or []), *short]
