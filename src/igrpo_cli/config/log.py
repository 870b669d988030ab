"""The section of `run.toml` that says which trackers are told what a run comes to."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from igrpo_cli.config.sections import Positive, Section


class LogSection(Section):
    """Where the metrics of updates and evaluations are sent besides the run's own files. No stage reads it."""

    report_to: list[Literal["trackio", "tensorboard", "wandb"]] = Field(default_factory=list)
    project: str = "igrpo"
    """Of trackio and wandb: what gathers the runs that are looked at together."""
    run_name: str | None = None
    """What the run is called there; unset means the name of its directory."""
    logging_dir: str | None = None
    """A folder for event files, offline records and notes of what was sent; unset means `log` in the run directory."""
    timeout: Positive = 30.0
    """Seconds that a command waits at its end for trackers that are still at work."""

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value
