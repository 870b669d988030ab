"""`igrpo status`: where a run stands, from its directory listing alone."""

from __future__ import annotations

from pathlib import Path

from igrpo_cli.console import Console, table
from igrpo_cli.session import Session, open_session
from igrpo_cli.shards.layout import ShardPath, format_shards


def run(path: Path, console: Console) -> None:
    """Print the stages of the current iteration and the newest policy."""
    with open_session(path, [], console) as session:
        iteration, total = session.current_iteration(), session.num_iterations()
        stages = {stage: _stage(session, iteration, stage) for stage in session.config.stages()}
        newest = max(session.run.policy_iterations(), default=None)
        payload = {
            "run": str(path),
            "iteration": iteration,
            "num_iterations": total,
            "finished": session.run.update(total - 1).manifest.exists(),
            "stages": stages,
            "policy": None if newest is None else str(session.run.policy(newest)),
        }
        rows = [(name, stage["done"], stage["total"], stage["missing"] or "–") for name, stage in stages.items()]
        heading = f"{path}: iteration {iteration} of {total}, newest policy {payload['policy']}"
        console.data(payload, f"{heading}\n\n{table(('stage', 'done', 'of', 'missing shards'), rows)}")


def _stage(session: Session, iteration: int, stage: str) -> dict[str, object]:
    paths: tuple[ShardPath, ...] = (session.run.update(iteration).shard,)
    if stage != "update":
        paths = session.run.shards(iteration, stage, session.config.run.num_shards)
    missing = [path.shard for path in paths if not path.manifest.exists()]
    return {"done": len(paths) - len(missing), "total": len(paths), "missing": format_shards(missing)}
