"""`igrpo extend`: give a run more iterations, finished or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from igrpo_cli.errors import UsageError
from igrpo_cli.pipeline.changes import record
from igrpo_cli.pipeline.session import Session, open_session
from igrpo_cli.store.completion import count_problems
from igrpo_cli.store.hints import command_line
from igrpo_cli.ui.console import Console

Schedule = Literal["continue", "stretch"]


def run(
    path: Path,
    iterations: int | None,
    epochs: float | None,
    schedule: Schedule,
    *,
    dry_run: bool,
    console: Console,
) -> None:
    """Set the number of iterations of the run at `path`, or of passes over its problems, from the current one on.

    `continue` keeps the learning rate schedule as it was, and the iterations after its end have its last rate.
    `stretch` computes it over all iterations, from the first one whose update is not complete. Raises UsageError for
    fewer iterations than there are.
    """
    with open_session(path, [], console) as session:
        before = session.num_iterations()
        total = iterations if iterations is not None else _iterations_of(session, epochs)
        if total < before:
            raise UsageError(
                f"the run has {before} iterations, and {total} are fewer",
                hint=f"{command_line(path, 'run')} --iterations N stops after N more; a fork ends where you want",
            )
        section = session.run_config.latest.update
        settings: dict[str, dict[str, Any]] = {"run": {"num_iterations": total}}
        if total > before and section.lr_scheduler_type != "constant":
            if schedule == "continue":
                scheduled = session.num_scheduled()
                settings["update"] = {"lr_scheduler_iterations": scheduled}
                session.console.note(
                    f"the schedule {section.lr_scheduler_type} stays over {scheduled} iterations, and those after it "
                    "keep its last learning rate; --schedule stretch computes it over all"
                )
            elif section.lr_scheduler_iterations is not None:
                settings["update"] = {"lr_scheduler_iterations": total}
        current = session.current_iteration()
        is_complete = session.run.update(current).manifest.exists()
        record(session, current + is_complete, settings, dry_run=dry_run)


def _iterations_of(session: Session, epochs: float | None) -> int:
    if epochs is None:
        raise UsageError("to what length?", hint="--iterations N, or --epochs E")
    passes = epochs * count_problems(session.run.problems())
    return max(1, round(passes / session.run_config.data.problems_sampled))
