"""The commands that show, check and publish runs: their options and one call each into `commands`."""

from pathlib import Path
from typing import Annotated

import typer

from igrpo_cli.cli import completion
from igrpo_cli.cli.options import BenchDir, Iteration, Markdown, Png, Run, Sets, with_console
from igrpo_cli.errors import UsageError
from igrpo_cli.ui.console import Console

HERE = Path()


@with_console
def status(
    run: Run = HERE,
    missing: Annotated[
        str | None,
        typer.Option(
            "--missing",
            metavar="STAGE",
            help="Print only the missing shards of draft, select, refine, update or eval, "
            "as sbatch --array takes them (3,7,12-15). Print nothing when none is missing.",
        ),
    ] = None,
    bench: Annotated[
        str,
        typer.Option(
            "--bench",
            autocompletion=completion.benches,
            help="For --missing eval: benchmark name, or a JSONL or Parquet file.",
        ),
    ] = "",
    bench_dir: BenchDir = None,
    iteration: Iteration = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show the state again and again until the run is complete.")
    ] = False,
    every: Annotated[
        float, typer.Option("--every", min=0.2, metavar="SECONDS", help="Time between two reads of --watch.")
    ] = 2.0,
    *,
    console: Console,
) -> int:
    """Show the state of a run.

    Shards, policies, evaluations, accuracy by iteration, tokens and time.

    Example: igrpo status runs/first --iteration 0
    """
    from igrpo_cli.commands import status as command

    options = command.StatusOptions(iteration, missing, bench, bench_dir, every if watch else None)
    return command.run(run, options, console)


@with_console
def verify(
    run: Run = HERE,
    replay: Annotated[
        str | None,
        typer.Option(
            "--replay",
            metavar="LIST",
            help="Compute the policies that the updates of these iterations made again, for example 3 or 0-4, "
            "and compare the hashes, instead of checking the files.",
        ),
    ] = None,
    *,
    console: Console,
) -> None:
    """Check every file of a run against its manifest.

    Example: igrpo verify runs/first
    """
    from igrpo_cli.commands import verify as command

    if replay is None:
        command.run(run, console)
    else:
        command.replay(run, replay, console)


@with_console
def log(
    run: Run = HERE,
    trackers: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            metavar="TRACKER",
            help="trackio, tensorboard or wandb; repeatable.",
            show_default="log.report_to",
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Send new metrics at each line of stdin.")] = False,
    sets: Sets = None,
    *,
    console: Console,
) -> None:
    """Send metrics of updates and evaluations to a tracker.

    Metrics are not sent twice.

    Example: igrpo log runs/first --to tensorboard
    """
    from igrpo_cli.commands import log as command

    command.run(run, trackers or [], sets or [], follow=follow, console=console)


@with_console
def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN", help="One run, or several to compare.", show_default="current directory"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Where to write.", show_default="RUN/report.html, ./report.html"),
    ] = None,
    as_png: Png = False,
    *,
    console: Console,
) -> None:
    """Write an HTML report of one run, or of several.

    One file with curves, evaluations, costs and sample problems.

    Example: igrpo report runs/first
    """
    from igrpo_cli.commands import report as command

    command.run(command.ReportRequest(tuple(runs or [Path()]), output, as_png), console)


@with_console
def show(
    run: Run = HERE,
    iteration: Annotated[
        int | None,
        typer.Option("--iteration", min=0, show_default="newest with a match", help="Iteration to show."),
    ] = None,
    problem: Annotated[str | None, typer.Option("--problem", metavar="ID", help="Only this problem.")] = None,
    fixed: Annotated[
        bool, typer.Option("--fixed", help="The selected draft is not correct, some refinement is.")
    ] = False,
    broken: Annotated[
        bool, typer.Option("--broken", help="The selected draft is correct, some refinement is not.")
    ] = False,
    equal_rewards: Annotated[
        bool, typer.Option("--equal-rewards", help="The rewards of the refinements are all equal.")
    ] = False,
    verdict: Annotated[
        str | None, typer.Option("--verdict", help="Some completion is correct, wrong, no_answer or ungraded.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Problems to show; 0 shows all that match.")] = 1,
    full: Annotated[bool, typer.Option("--full", help="Show long texts whole.")] = False,
    markdown: Markdown = False,
    *,
    console: Console,
) -> None:
    """Show problems of one iteration.

    Prompt, drafts, selection, refinements and what they changed.

    Example: igrpo show runs/first --broken
    """
    from igrpo_cli.commands import show as command

    request = command.ShowRequest(run, iteration, problem, fixed, broken, equal_rewards, verdict, limit, full)
    command.run(request, console, markdown=markdown)


@with_console
def diff(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] A B", help="Two iterations by number, or two runs, iterations or policies by path."
        ),
    ],
    iteration: Annotated[
        int | None,
        typer.Option("--iteration", min=0, show_default="newest of both", help="Iteration of two runs."),
    ] = None,
    markdown: Markdown = False,
    *,
    console: Console,
) -> None:
    """Compare two iterations or runs.

    Figures, problems gained and lost, settings and evaluations.

    Example: igrpo diff runs/first 0 1
    """
    from igrpo_cli.commands import diff as command

    command.run(names, iteration, console, markdown=markdown)


@with_console
def what_if(
    run: Run = HERE,
    iterations: Annotated[
        str | None,
        typer.Option(
            "--iteration",
            metavar="LIST",
            show_default="newest complete",
            help="Iterations to ask, for example 3 or 0-4; figures are means over them.",
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Another setting, of all variants; repeatable."),
    ] = None,
    varied: Annotated[
        list[str] | None,
        typer.Option("--vary", metavar="SECTION.KEY=V1,V2", help="A variant for each of these values; repeatable."),
    ] = None,
    gradient: Annotated[
        bool,
        typer.Option("--gradient", help="Also compare gradients, which takes a backward pass for each variant."),
    ] = False,
    against: Annotated[
        int | None,
        typer.Option(
            "--against",
            min=0,
            metavar="POLICY",
            help="Also print the effective sample size of importance weights against this policy, by number.",
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option("--figures", metavar="FOLDER", help="Draw each column over the iterations as an SVG file."),
    ] = None,
    as_png: Png = False,
    markdown: Markdown = False,
    *,
    console: Console,
) -> None:
    """Ask what other settings would do with stored rollouts.

    Another reward, selection, allocation, normalisation or loss. Nothing is sampled and no file of the run is changed.

    Example: igrpo what-if runs/first --vary select.strategy=best,random,wrong,worst
    """
    from igrpo_cli.commands import what_if as command

    request = command.WhatIfRequest(
        run, iterations, tuple(sets or ()), tuple(varied or ()), gradient, against, figures, as_png
    )
    command.run(request, console, markdown=markdown)


@with_console
def sql(
    query: Annotated[str, typer.Argument(help="A query in DuckDB's SQL.")],
    run: Run = HERE,
    rows: Annotated[int, typer.Option("--rows", min=0, help="Rows that the table shows; 0 shows all.")] = 40,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all rows as CSV.")] = False,
    *,
    console: Console,
) -> None:
    """Query a run in SQL.

    Tables: rollouts, selections, metrics, advantages, problems, scores, evals.

    Example: igrpo sql "SELECT stage, verdict, count(*) FROM rollouts GROUP BY ALL ORDER BY ALL" runs/first
    """
    from igrpo_cli.commands import sql as command

    command.run(run, query, rows, console, as_csv=as_csv)


@with_console
def push(
    run: Run = HERE,
    repo: Annotated[str, typer.Option("--repo", metavar="USER/NAME", help="Repository on the Hub.")] = "",
    policy: Annotated[
        int | None, typer.Option("--policy", min=0, metavar="K", show_default="newest", help="Policy, by number.")
    ] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Push the LoRA adapter instead of the merged weights.")
    ] = False,
    base_model: Annotated[
        str | None,
        typer.Option("--base-model", metavar="ID", show_default="that of the run", help="Hub id of the base model."),
    ] = None,
    card: Annotated[
        Path | None, typer.Option("--card", metavar="FILE", help="Your own model card instead of the generated one.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public. Without it it is private.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace other files of the repository.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the card, list the files and send nothing.")
    ] = False,
    *,
    console: Console,
) -> None:
    """Upload a policy and its model card to the Hugging Face Hub, in one commit.

    Every file of the policy is verified first. Nothing else of the run is sent.

    Example: igrpo push runs/first --policy 2 --repo USER/NAME --dry-run
    """
    from igrpo_cli.commands import push as command

    if not repo:
        raise UsageError("push needs a repository", hint="igrpo push RUN --repo USER/NAME")
    request = command.PushRequest(run, repo, policy, adapter, base_model, card, public, overwrite, dry_run)
    command.run(request, console)


@with_console
def doctor(
    run: Run = HERE,
    model: Annotated[
        str | None, typer.Option("--model", help="Check this model instead: a folder, a Hub id, `tiny` or `columns`.")
    ] = None,
    *,
    console: Console,
) -> None:
    """Check what a run needs on this machine.

    Device, engine, grading, files. With --model: the chat template, what ends a completion, and tags of thoughts.

    Example: igrpo doctor runs/first
    """
    from igrpo_cli.commands import doctor as command

    command.run(run, model, console)
