"""The commands that create, change or branch a run, or restore a policy: options and one call each into `commands`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from igrpo_cli.cli import completion
from igrpo_cli.cli.options import DryRun, ReportTo, Run, Sets, SkipBadRows, with_console, with_report_to
from igrpo_cli.errors import UsageError
from igrpo_cli.ui.console import Console

Stage = Literal["draft", "select", "refine", "update"]


@with_console
def init(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory to create.")],
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            autocompletion=completion.presets,
            help="quickstart, arithmetic, smollm2, small (0.5-2B, one GPU), base (7-8B, 8 GPUs) or paper.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="TOML file that overrides the preset.")
    ] = None,
    report_to: ReportTo = None,
    sets: Sets = None,
    skip_bad_rows: SkipBadRows = False,
    dry_run: DryRun = False,
    *,
    console: Console,
) -> None:
    """Create a run: fix its settings, problems and initial policy.

    Example: igrpo init runs/first --preset quickstart --set run.num_iterations=2
    """
    from igrpo_cli.commands import init as command

    sets = [*with_report_to(sets, report_to), *(["data.skip_bad_rows=true"] if skip_bad_rows else [])]
    command.run(run, preset, config, sets, dry_run=dry_run, console=console)


@with_console
def set_settings(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN] [SECTION.KEY=VALUE]...", autocompletion=completion.settings, help="Settings, after the run."
        ),
    ] = None,
    from_iteration: Annotated[
        int | None,
        typer.Option("--from-iteration", min=0, show_default="first without conflict", help="First iteration."),
    ] = None,
    dry_run: DryRun = False,
    *,
    console: Console,
) -> None:
    """Change settings of a run from an iteration on, for all later commands; without settings, print the changes.

    Example: igrpo set runs/first update.learning_rate=5e-5
    """
    from igrpo_cli.commands import set as command

    found = list(arguments or ())
    run = Path(found.pop(0)) if found and "=" not in found[0] else Path()
    for text in found:
        if "=" not in text:
            raise UsageError(f"{text!r} is not section.key=value", hint="igrpo set RUN draft.temperature=0.8")
    command.run(run, found, from_iteration, dry_run=dry_run, console=console)


@with_console
def extend(
    run: Run = Path(),
    iterations: Annotated[int | None, typer.Option("--iterations", min=1, help="Iterations in total.")] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", min=0, help="Passes over the problems in total.")] = None,
    schedule: Annotated[
        Literal["continue", "stretch"],
        typer.Option(
            "--schedule",
            metavar="continue|stretch",
            help="The learning rate schedule: keep its length, or stretch it.",
        ),
    ] = "continue",
    dry_run: DryRun = False,
    *,
    console: Console,
) -> None:
    """Give a run more iterations, finished or not.

    Example: igrpo extend runs/first --iterations 4
    """
    from igrpo_cli.commands import extend as command

    if iterations is not None and epochs is not None:
        raise UsageError("--iterations and --epochs exclude each other", hint="use one of them")
    command.run(run, iterations, epochs, schedule, dry_run=dry_run, console=console)


@with_console
def fork(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Run directory to create.")],
    iteration: Annotated[int, typer.Option("--from", min=0, metavar="K", help="First iteration of its own.")],
    stage: Annotated[Stage, typer.Option("--stage", metavar="STAGE", help="First stage of its own there.")] = "draft",
    sets: Sets = None,
    fresh_optimizer: Annotated[
        bool, typer.Option("--fresh-optimizer", help="Begin with an optimiser without moments.")
    ] = False,
    as_copy: Annotated[bool, typer.Option("--copy", help="Copy the shared files; no hard links.")] = False,
    dry_run: DryRun = False,
    *,
    console: Console,
) -> None:
    """Make a new run that shares everything with RUN up to a stage, and has its own settings from there on.

    Example: igrpo fork runs/first runs/second --from 1 --stage select --set select.strategy=worst
    """
    from igrpo_cli.commands import fork as command

    request = command.ForkRequest(
        run, new, iteration, stage, tuple(sets or ()), fresh_optimizer, as_copy=as_copy, dry_run=dry_run
    )
    command.run(request, console)


@with_console
def policy(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="[RUN] K", help="Number of the policy, after the run."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", show_default="its place in the run", help="Directory to create."),
    ] = None,
    *,
    console: Console,
) -> None:
    """Restore a policy that is stored as a difference, or copy one; its files are checked by their hashes.

    Example: igrpo policy runs/first 1 --output models/first
    """
    from igrpo_cli.commands import policy as command

    if len(arguments) > 2 or not arguments[-1].isdecimal():
        raise UsageError("which policy?", hint="igrpo policy RUN 3, or igrpo policy 3 in the run directory")
    command.run(Path(*arguments[:-1]), int(arguments[-1]), output, console=console)
