"""`igrpo status`: where a run stands, from its listings, its manifests and what its updates measured."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from igrpo_cli.errors import EXIT_CTRL_C, EXIT_DONE, UsageError
from igrpo_cli.inspection.shard_states import missing_shards
from igrpo_cli.pipeline.run_state import RunStatus, paths_of_stage
from igrpo_cli.pipeline.session import Session, open_session
from igrpo_cli.store.layout import ShardPath, bench_name, command_line, format_shards
from igrpo_cli.store.lineage import newest_policy
from igrpo_cli.ui.console import Console
from igrpo_cli.ui.status_screen import status_line, status_text

SECONDS_UNTIL_SECOND_LOOK = 0.1


@dataclass(frozen=True)
class Asked:
    """What the command line asked for."""

    iteration: int | None
    missing: str | None
    """The stage whose missing shards are printed, and nothing else."""
    bench: str
    bench_dir: Path | None
    every: float | None
    """Seconds between two looks, to watch the run; None for a single look."""


def run(path: Path, asked: Asked, console: Console) -> int:
    """Print the state of a run, or only the missing shards of a stage; returns the exit code."""
    if asked.bench and asked.missing != "eval":
        raise UsageError(
            "--bench goes with --missing eval",
            hint=command_line(path, "status", f"--missing eval --bench {asked.bench}"),
        )
    if asked.every is not None and asked.missing is not None:
        raise UsageError(
            "--watch shows all stages, --missing the shards of one", hint=command_line(path, "status", "--watch")
        )
    with open_session(path, [], console, only_looks=True) as session:
        status = RunStatus(session, path)
        if asked.every is not None:
            return _watch(status, asked.iteration, asked.every, console)
        if asked.missing is not None:
            _print_missing(session, status, asked.missing, asked)
        else:
            payload = status.read(asked.iteration)
            console.data(payload, status_text(payload))
    return EXIT_DONE


def _print_missing(session: Session, status: RunStatus, stage: str, asked: Asked) -> None:
    shards = format_shards(missing_shards(_paths_asked_for(session, stage, asked)))
    if session.console.as_json:
        payload = status.read(None if stage == "eval" else asked.iteration)
        session.console.data(payload | {"missing": shards}, "")
    elif shards:
        session.console.data({}, shards)


def _watch(status: RunStatus, iteration: int | None, seconds: float, console: Console) -> int:
    """Until the run is finished, or Ctrl-C. Without a terminal only changes are told, each in a line."""
    told = None
    with suppress(KeyboardInterrupt), console.redrawn() as draw:
        while True:
            try:
                payload = status.read(iteration)
            except FileNotFoundError:
                time.sleep(SECONDS_UNTIL_SECOND_LOOK)  # A command has just taken away what it has finished.
                continue
            if draw is not None:
                draw(status_text(payload))
            elif (line := status_line(payload)) != told:
                console.data(payload, f"{time.strftime('%H:%M:%S')} {line}")
                told = line
            if not payload["unfinished"]:
                return EXIT_DONE
            time.sleep(seconds)
    return EXIT_CTRL_C


def _paths_asked_for(session: Session, stage: str, asked: Asked) -> tuple[ShardPath, ...]:
    """The shards that `--missing` speaks of; for eval the iteration is that of the policy, by default the newest."""
    if stage == "eval":
        return _eval_paths(session, asked)
    stages = session.config.stages()
    if stage not in stages:
        raise UsageError(
            f'run.method = "{session.config.run.method}" has no stage {stage!r}',
            hint=f"its stages: {', '.join(stages)}; an evaluation: --missing eval --bench aime24",
        )
    return paths_of_stage(session, session.iteration_or_current(asked.iteration), stage)


def _eval_paths(session: Session, asked: Asked) -> tuple[ShardPath, ...]:
    name, iteration = bench_name(asked.bench), asked.iteration
    if not asked.bench:
        raise UsageError(
            "eval needs a benchmark", hint=command_line(session.run.root, "status", "--missing eval --bench aime24")
        )
    last = session.num_iterations()
    if iteration is not None and iteration > last:
        raise UsageError(
            f"policy {iteration} does not exist: the last one of the run is {last}",
            hint=command_line(session.run.root, "status"),
        )
    policy = newest_policy(session.run) if iteration is None else iteration
    if not session.run.eval_problems(name).data.parent.is_dir():
        _check_bench(asked)
    num_shards = session.config.run.num_shards
    return tuple(session.run.eval_shard(name, policy, shard, num_shards) for shard in range(num_shards))


def _check_bench(asked: Asked) -> None:
    """Nothing is there of it: of a name with a slip of the pen all shards would be missing for ever."""
    from igrpo_cli.problems.sources import resolve_bench

    resolve_bench(asked.bench, asked.bench_dir)
