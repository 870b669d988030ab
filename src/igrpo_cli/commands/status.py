"""`igrpo status`: where a run stands, from its directory listing alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from igrpo_cli.console import Console, table
from igrpo_cli.errors import UsageError
from igrpo_cli.session import Session, open_session
from igrpo_cli.shards.layout import ShardPath, bench_name, format_shards


def run(path: Path, missing: str | None, bench: str, iteration: int | None, console: Console) -> None:
    """Print the stages of an iteration and the newest policy; with `missing` only that stage's missing shards."""
    if bench and missing != "eval":
        raise UsageError("--bench goes with --missing eval", hint=f"igrpo status --missing eval --bench {bench}")
    with open_session(path, [], console) as session:
        if missing is None:
            payload = _payload(session, path, session.iteration_or_current(iteration))
            console.data(payload, _text(payload))
            return
        shards = format_shards(_missing(_paths_asked_for(session, missing, bench, iteration)))
        if console.as_json:
            shown = None if missing == "eval" else iteration
            console.data(_payload(session, path, session.iteration_or_current(shown)) | {"missing": shards}, "")
        elif shards:
            console.data({}, shards)


def _payload(session: Session, path: Path, iteration: int) -> dict[str, Any]:
    total = session.num_iterations()
    newest = max(session.run.policy_iterations(), default=None)
    return {
        "run": str(path),
        "iteration": iteration,
        "num_iterations": total,
        "num_shards": session.config.run.num_shards,
        "finished": session.run.update(total - 1).manifest.exists(),
        "unfinished": [number for number in range(total) if not session.run.update(number).manifest.exists()],
        "stages": {stage: _stage(session, iteration, stage) for stage in session.config.stages()},
        "policy": None if newest is None else str(session.run.policy(newest)),
    }


def _text(payload: dict[str, Any]) -> str:
    rows = [(name, stage["done"], stage["total"], stage["missing"] or "–") for name, stage in payload["stages"].items()]
    place = f"iteration {payload['iteration']} of {payload['num_iterations']}"
    heading = f"{payload['run']}: {place}, newest policy {payload['policy']}"
    return f"{heading}\n\n{table(('stage', 'done', 'of', 'missing shards'), rows)}"


def _stage(session: Session, iteration: int, stage: str) -> dict[str, Any]:
    paths = _paths(session, iteration, stage)
    missing = _missing(paths)
    return {"done": len(paths) - len(missing), "total": len(paths), "missing": format_shards(missing)}


def _missing(paths: tuple[ShardPath, ...]) -> list[int]:
    """A shard exists when its manifest exists; whether its bytes are right is for `igrpo verify` to say."""
    return [path.shard for path in paths if not path.manifest.exists()]


def _paths(session: Session, iteration: int, stage: str) -> tuple[ShardPath, ...]:
    if stage == "update":
        return (session.run.update(iteration).shard,)
    return session.run.shards(iteration, stage, session.config.run.num_shards)


def _paths_asked_for(session: Session, stage: str, bench: str, iteration: int | None) -> tuple[ShardPath, ...]:
    """The shards that `--missing` speaks of; for eval the iteration is that of the policy, by default the newest."""
    if stage == "eval":
        return _eval_paths(session, bench, iteration)
    stages = session.config.stages()
    if stage not in stages:
        raise UsageError(
            f'run.method = "{session.config.run.method}" has no stage {stage!r}',
            hint=f"its stages: {', '.join(stages)}; an evaluation: --missing eval --bench aime24",
        )
    return _paths(session, session.iteration_or_current(iteration), stage)


def _eval_paths(session: Session, bench: str, iteration: int | None) -> tuple[ShardPath, ...]:
    if not bench:
        raise UsageError("eval needs a benchmark", hint="igrpo status --missing eval --bench aime24")
    last = session.num_iterations()
    if iteration is not None and iteration > last:
        raise UsageError(f"policy {iteration} does not exist: the last one of the run is {last}", hint="igrpo status")
    policy = max(session.run.policy_iterations(), default=0) if iteration is None else iteration
    num_shards = session.config.run.num_shards
    return tuple(session.run.eval_shard(bench_name(bench), policy, shard, num_shards) for shard in range(num_shards))
