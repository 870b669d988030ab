"""The command `igrpo eval`: its flags, and which part of it they ask for. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from igrpo_cli.cli.flags import (
    BenchDir,
    Benches,
    DryRun,
    Endpoints,
    Engine,
    HelpOthers,
    Iteration,
    Json,
    Markdown,
    Overwrite,
    Quiet,
    Run,
    Sets,
    Shard,
    SkipBadRows,
    Verbose,
    console_of,
    with_engine,
)
from igrpo_cli.errors import UsageError
from igrpo_cli.ui.console import Console

Model = Annotated[str | None, typer.Option("--model", help="Model directory or Hub id, instead of RUN.")]
Samples = Annotated[int | None, typer.Option("--samples", min=1, help="Samples per problem.")]
Conditioned = Annotated[
    bool, typer.Option("--conditioned", help="Refine the bare samples; eval.selection says which drafts are shown.")
]
Output = Annotated[
    Path | None, typer.Option("--output", help="Folder for the results of --model.", show_default="eval")
]
Comparison = Annotated[
    tuple[str, str] | None,
    typer.Option(
        "--compare",
        metavar="A B",
        help="Compare two finished evaluations: policies of RUN by number, models by name, or directories of results.",
    ),
]
List = Annotated[bool, typer.Option("--list", help="List the benchmarks that have a name.")]


def evaluate(
    run: Run = Path(),
    benches: Benches = None,
    model: Model = None,
    samples: Samples = None,
    conditioned: Conditioned = False,
    comparison: Comparison = None,
    list_benches: List = False,
    bench_dir: BenchDir = None,
    output: Output = None,
    iteration: Iteration = None,
    shard: Shard = None,
    take_over: HelpOthers = False,
    engine: Engine = None,
    endpoint: Endpoints = None,
    sets: Sets = None,
    skip_bad_rows: SkipBadRows = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    markdown: Markdown = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure a policy on benchmarks: k samples per problem.

    Example: igrpo eval runs/first --bench arithmetic --samples 2 --set eval.limit=8
    """
    console = console_of(as_json, quiet, verbose, markdown=markdown)
    if list_benches:
        _list(console, markdown=markdown)
        return
    if comparison is not None:
        _refuse_sampling(model, samples, iteration, overwrite, dry_run)
        _compare(comparison, output or run, benches, conditioned, sets, console, markdown=markdown)
        return
    from igrpo_cli.commands import eval as command

    command.run(
        command.EvalRequest(
            run=run,
            model=model,
            samples=samples,
            conditioned=conditioned,
            bench_dir=bench_dir,
            output=output,
            iteration=iteration,
            shard=shard,
            take_over=take_over,
            sets=tuple(with_engine(sets, engine, endpoint)),
            skip_bad_rows=skip_bad_rows,
            overwrite=overwrite,
            dry_run=dry_run,
        ),
        benches or [],
        console,
        markdown=markdown,
    )


def _list(console: Console, *, markdown: bool) -> None:
    from igrpo_cli.commands import benches as command

    command.run(console, markdown=markdown)


def _compare(
    names: tuple[str, str],
    root: Path,
    benches: list[str] | None,
    conditioned: bool,
    sets: list[str] | None,
    console: Console,
    *,
    markdown: bool,
) -> None:
    from igrpo_cli.commands import compare as command

    request = command.CompareRequest(root, names, conditioned, tuple(sets or ()))
    command.run(request, benches or [], console, markdown=markdown)


def _refuse_sampling(*values: object) -> None:
    """A comparison samples nothing: what says how to sample is not passed over in silence."""
    flags = ("--model", "--samples", "--iteration", "--overwrite", "--dry-run")
    for flag, value in zip(flags, values, strict=True):
        if value not in (None, False):
            raise UsageError(
                f"--compare reads evaluations that are finished, and takes no {flag}",
                hint="igrpo eval RUN --bench aime24 --compare 0 3; A and B may be models or directories of results too",
            )
