"""The flags that mean the same in every command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from igrpo_cli.errors import UsageError
from igrpo_cli.ui.console import NORMAL, QUIET, VERBOSE, Console

Run = Annotated[Path, typer.Argument(metavar="[RUN]", help="Run directory.", show_default="current directory")]
Iteration = Annotated[
    int | None,
    typer.Option("--iteration", min=0, show_default="first unfinished", help="Iteration to work on."),
]
Shard = Annotated[
    str | None,
    typer.Option("--shard", envvar="SLURM_ARRAY_TASK_ID", metavar="LIST", help="Shards, for example 3 or 0,4-7."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting for this command; repeatable."),
]
Scores = Annotated[
    str | None,
    typer.Option("--scores", metavar="NAME", help="Rewards of a set of scores that `igrpo grade RUN` made."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Make finished results anew, replacing what is there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; sample and write nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown to paste instead of plain text.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Errors only on stderr.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="More detail on stderr.")]
Preset = Annotated[str | None, typer.Option("--preset", help="quickstart, smollm2 or paper.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="TOML laid over the preset.")]
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Count and skip rows that cannot be used instead of refusing them.")
]
Bench = Annotated[str, typer.Option("--bench", help="Benchmark name, or a JSONL or Parquet file.")]
Benches = Annotated[
    list[str] | None,
    typer.Option("--bench", help="Benchmark name (--list), or a JSONL or Parquet file; repeatable."),
]
BenchDir = Annotated[
    Path | None,
    typer.Option("--bench-dir", envvar="IGRPO_BENCH_DIR", help="Folder of local benchmark files."),
]
Missing = Annotated[
    str | None,
    typer.Option(
        "--missing",
        metavar="STAGE",
        help="Print only the missing shards of draft, select, refine, update or eval, "
        "as sbatch --array takes them (3,7,12-15), and nothing when all are there.",
    ),
]
Watch = Annotated[bool, typer.Option("--watch", help="Show it again and again until the run is finished.")]
Every = Annotated[float, typer.Option("--every", min=0.2, metavar="SECONDS", help="How often --watch looks.")]
Engine = Annotated[
    str | None,
    typer.Option("--engine", metavar="NAME", help="auto, transformers, vllm or server: short for --set engine.name."),
]
Endpoints = Annotated[
    list[str] | None,
    typer.Option("--endpoint", metavar="URL", help="A running `vllm serve`, for --engine server; repeatable."),
]
HelpOthers = Annotated[bool, typer.Option("--take-over", help="Then sample blocks that other shards have not begun.")]


def console_of(as_json: bool, quiet: bool, verbose: bool, *, markdown: bool = False) -> Console:
    """The output that `--json`, `-q` and `-v` ask for. Raises UsageError for JSON and Markdown at once."""
    if as_json and markdown:
        raise UsageError("--json and --markdown are two outputs", hint="ask for one of them")
    return Console(as_json=as_json, verbosity=VERBOSE if verbose else QUIET if quiet else NORMAL)


def with_engine(sets: list[str] | None, engine: str | None, endpoints: list[str] | None) -> list[str]:
    """`--engine` and `--endpoint` as the settings that they are short for."""
    short = [] if engine is None else [f"engine.name={json.dumps(engine)}"]
    if endpoints:
        short.append(f"engine.endpoints={json.dumps(endpoints)}")
    return [*(sets or []), *short]
