"""The commands that look into runs: their flags, and one call each into `commands`. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from igrpo_cli.cli.flags import Json, Markdown, Quiet, Run, Sets, Verbose, console_of
from igrpo_cli.errors import UsageError

ShownIteration = Annotated[
    int | None,
    typer.Option("--iteration", min=0, show_default="newest with anything to show", help="Iteration to look into."),
]


def show(
    run: Run = Path(),
    iteration: ShownIteration = None,
    problem: Annotated[str | None, typer.Option("--problem", metavar="ID", help="Only this problem.")] = None,
    fixed: Annotated[bool, typer.Option("--fixed", help="Selected draft not right, some refinement right.")] = False,
    broken: Annotated[bool, typer.Option("--broken", help="Selected draft right, some refinement not.")] = False,
    no_gradient: Annotated[
        bool, typer.Option("--no-gradient", help="The rewards of the refinements are all equal.")
    ] = False,
    verdict: Annotated[
        str | None, typer.Option("--verdict", help="Some completion is correct, wrong, no_answer or ungraded.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Problems to show; 0 shows all that match.")] = 1,
    full: Annotated[bool, typer.Option("--full", help="Leave nothing out of long texts.")] = False,
    markdown: Markdown = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show problems through one iteration: prompt, drafts, selection, refinements and what these changed.

    Example: igrpo show runs/first --broken
    """
    from igrpo_cli.commands import show as command

    request = command.ShowRequest(run, iteration, problem, fixed, broken, no_gradient, verdict, limit, full)
    command.run(request, console_of(as_json, quiet, verbose, markdown=markdown), markdown=markdown)


def diff(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] A B", help="Two iterations by number, or two runs, iterations or policies by path."
        ),
    ],
    iteration: Annotated[
        int | None,
        typer.Option("--iteration", min=0, show_default="newest that both have", help="Iteration of two runs."),
    ] = None,
    markdown: Markdown = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show how B differs from A: figures, problems gained and lost, settings and evaluations.

    Example: igrpo diff runs/first 0 1
    """
    from igrpo_cli.commands import diff as command

    command.run(names, iteration, console_of(as_json, quiet, verbose, markdown=markdown), markdown=markdown)


def sql(
    query: Annotated[str, typer.Argument(help="In DuckDB's SQL.")],
    run: Run = Path(),
    rows: Annotated[int, typer.Option("--rows", min=0, help="Rows that the table shows; 0 shows all.")] = 40,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all rows as CSV.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Ask a run in SQL: rollouts, selections, metrics, advantages, problems, scores, evals.

    Example: igrpo sql "SELECT stage, verdict, count(*) FROM rollouts GROUP BY ALL ORDER BY ALL" runs/first
    """
    from igrpo_cli.commands import sql as command

    if as_json and as_csv:
        raise UsageError("--json and --csv are two outputs", hint="ask for one of them")
    command.run(run, query, rows, console_of(as_json, quiet, verbose), as_csv=as_csv)


def log(
    run: Run = Path(),
    trackers: Annotated[
        list[str] | None,
        typer.Option(
            "--to", metavar="TRACKER", help="trackio, tensorboard or wandb; repeatable; default: log.report_to."
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Send what is new again at each line of stdin.")] = False,
    sets: Sets = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Send the metrics of updates and evaluations to a tracker; what it has already is not sent again.

    Example: igrpo log runs/first --to tensorboard
    """
    from igrpo_cli.commands import log as command

    command.run(run, trackers or [], sets or [], follow=follow, console=console_of(as_json, quiet, verbose))


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN", help="Runs, drawn over each other.", show_default="current directory"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Where to write.", show_default="RUN/report.html, ./report.html"),
    ] = None,
    as_png: Annotated[bool, typer.Option("--png", help="Write the figures as PNG too, in a folder beside it.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write one HTML file that shows what a run learnt: curves, evaluations, costs and problems to click through.

    Example: igrpo report runs/first
    """
    from igrpo_cli.commands import report as command

    request = command.ReportRequest(tuple(runs or [Path()]), output, as_png)
    command.run(request, console_of(as_json, quiet, verbose))
