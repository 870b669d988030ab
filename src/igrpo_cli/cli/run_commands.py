"""The commands that sample, grade and train: their options and one call each into `commands`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from igrpo_cli.cli import completion
from igrpo_cli.cli.options import (
    BenchDir,
    Cascade,
    DryRun,
    Endpoints,
    Engine,
    Iteration,
    Markdown,
    Overwrite,
    Png,
    Run,
    Scores,
    Sets,
    Shard,
    SkipBadRows,
    TakeOver,
    with_console,
    with_engine,
)
from igrpo_cli.errors import UsageError
from igrpo_cli.ui.console import Console

HERE = Path()
STAGES = {
    "draft": "Sample N drafts of each problem and grade them.",
    "refine": "Sample G refinements of each problem and grade them. The prompt contains the selected draft.",
}
Model = Annotated[str | None, typer.Option("--model", help="Model directory or Hub id, instead of RUN.")]
Benches = Annotated[
    list[str] | None,
    typer.Option(
        "--bench",
        autocompletion=completion.benches,
        help="Benchmark name (--list), or a JSONL or Parquet file; repeatable.",
    ),
]
PolicyNumber = Annotated[
    int | None, typer.Option("--iteration", min=0, show_default="newest", help="Number of the policy of RUN.")
]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Only the first problems. Short for --set eval.limit.")
]
WithDraft = Annotated[
    bool, typer.Option("--with-draft", help="Refine the samples of the evaluation without draft (eval.selection).")
]
Comparison = Annotated[
    tuple[str, str] | None,
    typer.Option(
        "--compare",
        metavar="A B",
        help="Compare two complete evaluations: policies of RUN by number, models by name, or directories of results.",
    ),
]


def sampling_stage(name: str) -> Callable[..., None]:
    """Return the command `igrpo draft` or `igrpo refine`."""

    def stage(
        run: Run = HERE,
        iteration: Iteration = None,
        shard: Shard = None,
        take_over: TakeOver = False,
        engine: Engine = None,
        endpoint: Endpoints = None,
        sets: Sets = None,
        overwrite: Overwrite = False,
        cascade: Cascade = False,
        dry_run: DryRun = False,
        *,
        console: Console,
    ) -> None:
        from igrpo_cli.commands import stage as command

        options = command.StageOptions(
            iteration, shard, overwrite=overwrite, dry_run=dry_run, take_over=take_over, cascade=cascade
        )
        command.run(name, run, options, with_engine(sets, engine, endpoint), console)

    stage.__doc__ = f"{STAGES[name]}\n\nExample: igrpo {name} runs/first --iteration 0"
    return with_console(stage)


@with_console
def select(
    run: Run = HERE,
    iteration: Iteration = None,
    shard: Shard = None,
    scores: Scores = None,
    sets: Sets = None,
    overwrite: Overwrite = False,
    cascade: Cascade = False,
    dry_run: DryRun = False,
    *,
    console: Console,
) -> None:
    """Select the draft that the refinements of each problem see.

    Example: igrpo select runs/first --iteration 0
    """
    from igrpo_cli.commands import stage as command

    options = command.StageOptions(iteration, shard, overwrite=overwrite, dry_run=dry_run, cascade=cascade)
    command.run("select", run, options, _with_scores(sets, "select", scores), console)


@with_console
def update(
    run: Run = HERE,
    iteration: Iteration = None,
    shard: Shard = None,
    scores: Scores = None,
    device_memory: Annotated[
        str | None,
        typer.Option("--device-memory", metavar="SIZE", help="With --dry-run: predict for GPUs of this memory, 80GiB."),
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option("--ranks", min=1, help="With --dry-run: predict for this number of ranks.", show_default="1"),
    ] = None,
    sets: Sets = None,
    overwrite: Overwrite = False,
    cascade: Cascade = False,
    dry_run: DryRun = False,
    *,
    console: Console,
) -> None:
    """Train on the rollouts and publish the next policy. With --dry-run, predict the memory that this takes.

    Example: igrpo update runs/first --iteration 0
    """
    from igrpo_cli.commands import stage as command

    memory = command.memory_request(device_memory, ranks, dry_run=dry_run)
    options = command.StageOptions(
        iteration, shard, overwrite=overwrite, dry_run=dry_run, cascade=cascade, memory=memory
    )
    command.run("update", run, options, _with_scores(sets, "update", scores), console)


def _with_scores(sets: list[str] | None, stage: str, scores: str | None) -> list[str]:
    return [*(sets or []), *([] if scores is None else [f"{stage}.scores={json.dumps(scores)}"])]


@with_console
def run_all(
    run: Run = HERE,
    iterations: Annotated[
        int | None, typer.Option("--iterations", min=1, help="Stop after this many more iterations.")
    ] = None,
    engine: Engine = None,
    endpoint: Endpoints = None,
    sets: Sets = None,
    bench_dir: BenchDir = None,
    dry_run: DryRun = False,
    *,
    console: Console,
) -> None:
    """Run all remaining stages in one process, or on several GPUs under torchrun.

    Example: igrpo run runs/first --iterations 1
    """
    from igrpo_cli.commands import run as command

    command.run(run, iterations, with_engine(sets, engine, endpoint), bench_dir, dry_run=dry_run, console=console)


@with_console
def evaluate(
    run: Run = HERE,
    benches: Benches = None,
    model: Model = None,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Samples per problem, in all.")] = None,
    limit: Limit = None,
    with_draft: WithDraft = False,
    comparison: Comparison = None,
    list_benches: Annotated[bool, typer.Option("--list", help="List the benchmarks that have a name.")] = False,
    bench_dir: BenchDir = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder for the results of --model.", show_default="eval")
    ] = None,
    iteration: PolicyNumber = None,
    shard: Shard = None,
    take_over: TakeOver = False,
    engine: Engine = None,
    endpoint: Endpoints = None,
    sets: Sets = None,
    skip_bad_rows: SkipBadRows = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    markdown: Markdown = False,
    *,
    console: Console,
) -> None:
    """Evaluate a policy on benchmarks with k samples per problem.

    Example: igrpo eval runs/first --bench arithmetic --samples 2 --set eval.limit=8
    """
    if list_benches:
        from igrpo_cli.commands.eval import list_benches as print_benches

        print_benches(console, markdown=markdown)
        return
    if comparison is not None:
        from igrpo_cli.commands import compare

        _refuse_sampling(model, samples, iteration, overwrite, dry_run)
        pair = compare.CompareRequest(output or run, comparison, with_draft, tuple(sets or ()))
        compare.run(pair, benches or [], console, markdown=markdown)
        return
    from igrpo_cli.commands import eval as command

    request = command.EvalRequest(
        run=run,
        model=model,
        samples=samples,
        with_draft=with_draft,
        bench_dir=bench_dir,
        output=output,
        iteration=iteration,
        shard=shard,
        take_over=take_over,
        sets=(*with_engine(sets, engine, endpoint), *([] if limit is None else [f"eval.limit={limit}"])),
        skip_bad_rows=skip_bad_rows,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    command.run(request, benches or [], console, markdown=markdown)


def _refuse_sampling(*values: object) -> None:
    """Raise UsageError for an option that a comparison would ignore."""
    flags = ("--model", "--samples", "--iteration", "--overwrite", "--dry-run")
    for flag, value in zip(flags, values, strict=True):
        if value not in (None, False):
            raise UsageError(
                f"--compare reads complete evaluations and takes no {flag}",
                hint="igrpo eval RUN --bench aime24 --compare 0 3; A and B may be models or directories of results too",
            )


@with_console
def grade(
    path: Annotated[Path, typer.Argument(metavar="FILE|RUN", help="JSONL with `gold` and `answer` in rows, or a run.")],
    stage: Annotated[str | None, typer.Option("--stage", help="For a run: draft or refine.")] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            "--reward",
            metavar="PART[=WEIGHT]",
            help="A part of the reward; repeatable.",
            show_default="the weights of the run",
        ),
    ] = None,
    scores: Annotated[
        str | None, typer.Option("--scores", metavar="NAME", help="Name of the scores.", show_default="the parts")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="NAME", help="Scores to compare with.", show_default="as recorded"),
    ] = None,
    from_file: Annotated[
        Path | None,
        typer.Option(
            "--from-file",
            metavar="FILE",
            help="Take rewards from a file with group_id, sample_id, reward; a completion without row is left out.",
        ),
    ] = None,
    iteration: Iteration = None,
    shard: Shard = None,
    sets: Sets = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    *,
    console: Console,
) -> None:
    """Grade the rows of a file, or score the completions of a run.

    Example: igrpo grade runs/first --stage draft --iteration 0 --reward accuracy --reward length=0.1
    """
    from igrpo_cli.commands import grade as command

    request = command.GradeRequest(
        stage, tuple(reward or ()), scores, against, iteration, shard, overwrite, dry_run, from_file
    )
    command.run(path, request, sets or [], console)


@with_console
def quickstart(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="Run directory.", show_default="runs/quickstart-SEED"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the run.")] = 0,
    sets: Sets = None,
    *,
    console: Console,
) -> None:
    """Train a tiny policy to add numbers in a few minutes.

    Example: igrpo quickstart runs/quick --set run.num_iterations=1 --set eval.limit=8
    """
    from igrpo_cli.commands import quickstart as command

    command.run(run, seed, sets or [], console)


@with_console
def stages(
    copy_to: Annotated[
        Path, typer.Option("--copy-to", metavar="DIR", help="Directory of the copies. Other files there are kept.")
    ],
    *,
    console: Console,
) -> None:
    """Copy the Slurm scripts of the stages, to use and to adapt them.

    Example: igrpo stages --copy-to stages
    """
    from igrpo_cli.commands import stages as command

    command.run(copy_to, console)


@with_console
def study(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="STUDY",
            autocompletion=completion.studies,
            help="File with the arms and seeds, or a packaged study.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="Directory of all its runs.", show_default="runs/NAME"),
    ] = None,
    arms: Annotated[
        list[str] | None, typer.Option("--arm", autocompletion=completion.arms, help="Run only this arm; repeatable.")
    ] = None,
    seeds: Annotated[
        list[str] | None, typer.Option("--seed", metavar="LIST", help="Run only these seeds: 0, or 0-4,10; repeatable.")
    ] = None,
    cell: Annotated[
        str | None,
        typer.Option(
            "--cell",
            envvar="SLURM_ARRAY_TASK_ID",
            metavar="LIST",
            help="Run only these cells: 3, or 0,4-7, or all. --dry-run lists them.",
        ),
    ] = None,
    sets: Sets = None,
    bench_dir: BenchDir = None,
    report: Annotated[bool, typer.Option("--report", help="Run nothing; report on what is there.")] = False,
    png: Png = False,
    dry_run: DryRun = False,
    markdown: Markdown = False,
    *,
    console: Console,
) -> None:
    """Train arms x seeds from one file, and compare the arms.

    Example: igrpo study published --seed 0 --set run.num_iterations=1 --set eval.limit=8
    """
    from igrpo_cli.commands import study as command

    request = command.StudyRequest(
        file=command.study_file(file),
        output=output,
        arms=tuple(arms or ()),
        seeds=tuple(seeds or ()),
        cells=cell,
        sets=tuple(sets or ()),
        bench_dir=bench_dir,
        only_report=report,
        dry_run=dry_run,
        as_png=png,
    )
    command.run(request, console, markdown=markdown)
