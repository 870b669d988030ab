"""The command line: flags in, one call into `commands`, an exit code out. Imports nothing heavy."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from igrpo_cli import __version__
from igrpo_cli.cli.evaluation import evaluate
from igrpo_cli.cli.exit_codes import Commands, exit_code
from igrpo_cli.cli.flags import (
    Bench,
    BenchDir,
    ConfigFile,
    DryRun,
    Endpoints,
    Engine,
    Every,
    HelpOthers,
    Iteration,
    Json,
    Missing,
    Overwrite,
    Preset,
    Quiet,
    Run,
    Scores,
    Sets,
    Shard,
    SkipBadRows,
    Verbose,
    Watch,
    with_engine,
)
from igrpo_cli.cli.flags import console_of as _console
from igrpo_cli.cli.inspection import diff, log, report, show, sql

app = typer.Typer(
    name="igrpo",
    cls=Commands,
    help="iGRPO as files: draft, select, refine and update, each a command that reads and writes Parquet shards.\n\n"
    "Example: igrpo quickstart runs/quick",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

HERE = Path()


def _version(asked: bool) -> None:
    if asked:
        print(f"igrpo {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Version.")] = False,
) -> None:
    pass


@app.command()
def init(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory to create.")],
    preset: Preset = None,
    config: ConfigFile = None,
    sets: Sets = None,
    skip_bad_rows: SkipBadRows = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Create a run: settings fixed, problems frozen, initial policy identified.

    Example: igrpo init runs/first --preset quickstart --set run.num_iterations=2
    """
    from igrpo_cli.commands import init as command

    sets = [*(sets or []), *(["data.skip_bad_rows=true"] if skip_bad_rows else [])]
    command.run(run, preset, config, sets, dry_run=dry_run, console=_console(as_json, quiet, verbose))


STAGE_HELP = {
    "draft": "Sample N drafts of each problem and grade them.",
    "select": "Choose the draft that each problem's refinements see.",
    "refine": "Sample G refinements conditioned on that draft.",
    "update": "Take the gradient step and publish the next policy.",
}


def _add_sampling_stage(name: str) -> None:
    def stage(
        run: Run = HERE,
        iteration: Iteration = None,
        shard: Shard = None,
        take_over: HelpOthers = False,
        engine: Engine = None,
        endpoint: Endpoints = None,
        sets: Sets = None,
        overwrite: Overwrite = False,
        dry_run: DryRun = False,
        as_json: Json = False,
        quiet: Quiet = False,
        verbose: Verbose = False,
    ) -> None:
        from igrpo_cli.commands import stage as command

        options = command.StageOptions(iteration, shard, overwrite=overwrite, dry_run=dry_run, take_over=take_over)
        command.run(name, run, options, with_engine(sets, engine, endpoint), _console(as_json, quiet, verbose))

    stage.__doc__ = _stage_help(name)
    app.command(name)(stage)


def _add_stage(name: str) -> None:
    def stage(
        run: Run = HERE,
        iteration: Iteration = None,
        shard: Shard = None,
        scores: Scores = None,
        sets: Sets = None,
        overwrite: Overwrite = False,
        dry_run: DryRun = False,
        as_json: Json = False,
        quiet: Quiet = False,
        verbose: Verbose = False,
    ) -> None:
        from igrpo_cli.commands import stage as command

        options = command.StageOptions(iteration, shard, overwrite=overwrite, dry_run=dry_run)
        sets = [*(sets or []), *([] if scores is None else [f"{name}.scores={json.dumps(scores)}"])]
        command.run(name, run, options, sets, _console(as_json, quiet, verbose))

    stage.__doc__ = _stage_help(name)
    app.command(name)(stage)


def _stage_help(name: str) -> str:
    return f"{STAGE_HELP[name]}\n\nExample: igrpo {name} runs/first --iteration 0"


for _name in STAGE_HELP:
    (_add_sampling_stage if _name in ("draft", "refine") else _add_stage)(_name)


@app.command("run")
def run_all(
    run: Run = HERE,
    iterations: Annotated[
        int | None, typer.Option("--iterations", min=1, help="Stop after this many more iterations.")
    ] = None,
    engine: Engine = None,
    endpoint: Endpoints = None,
    sets: Sets = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run all that is left, stage by stage, in one process.

    Example: igrpo run runs/first --iterations 1
    """
    from igrpo_cli.commands import run as command

    sets = with_engine(sets, engine, endpoint)
    command.run(run, iterations, sets, dry_run=dry_run, console=_console(as_json, quiet, verbose))


app.command("eval")(evaluate)


@app.command()
def status(
    run: Run = HERE,
    missing: Missing = None,
    bench: Bench = "",
    bench_dir: BenchDir = None,
    iteration: Iteration = None,
    watch: Watch = False,
    every: Every = 2.0,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Show where a run stands: shards, policies, evaluations, accuracy by iteration, tokens and time.

    Example: igrpo status runs/first --iteration 0
    """
    from igrpo_cli.commands import status as command

    options = command.StatusOptions(iteration, missing, bench, bench_dir, every if watch else None)
    return command.run(run, options, _console(as_json, quiet, verbose))


@app.command()
def verify(run: Run = HERE, as_json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Check every file of a run against its manifest.

    Example: igrpo verify runs/first
    """
    from igrpo_cli.commands import verify as command

    command.run(run, _console(as_json, quiet, verbose))


app.command()(log)
app.command()(report)
app.command()(show)
app.command()(diff)
app.command()(sql)


@app.command()
def doctor(run: Run = HERE, as_json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Try what a run needs here: device, engine, grading, files.

    Example: igrpo doctor runs/first
    """
    from igrpo_cli.commands import doctor as command

    command.run(run, _console(as_json, quiet, verbose))


@app.command()
def grade(
    path: Annotated[Path, typer.Argument(metavar="FILE|RUN", help="JSONL with `gold` and `answer` in rows, or a run.")],
    stage: Annotated[str | None, typer.Option("--stage", help="Of a run: draft or refine.")] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option("--reward", metavar="PART[=WEIGHT]", help="A part of the reward; default: the run's own weights."),
    ] = None,
    scores: Annotated[
        str | None, typer.Option("--scores", metavar="NAME", help="Name of the scores.", show_default="the parts")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="NAME", help="Scores to compare with.", show_default="as recorded"),
    ] = None,
    iteration: Iteration = None,
    shard: Shard = None,
    sets: Sets = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Grade the rows of a file, a JSON line per row; or score the completions of a run anew, beside its shards.

    Example: igrpo grade runs/first --stage draft --iteration 0 --reward accuracy --reward length=0.1
    """
    from igrpo_cli.commands import grade as command

    request = command.GradeRequest(
        stage, tuple(reward or ()), scores, against, iteration, shard, overwrite=overwrite, dry_run=dry_run
    )
    command.run(path, request, sets or [], _console(as_json, quiet, verbose))


@app.command()
def quickstart(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="Run directory.", show_default="runs/quickstart-SEED"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the run.")] = 0,
    sets: Sets = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Watch a tiny policy learn arithmetic in a few minutes.

    Example: igrpo quickstart runs/quick --set run.num_iterations=1 --set eval.limit=8
    """
    from igrpo_cli.commands import quickstart as command

    command.run(run, seed, sets or [], _console(as_json, quiet, verbose))


def main(arguments: Sequence[str] | None = None) -> None:
    """One command line in this process: turns every outcome into one of the exit codes of `errors`."""
    sys.exit(exit_code(app, list(sys.argv[1:] if arguments is None else arguments)))
