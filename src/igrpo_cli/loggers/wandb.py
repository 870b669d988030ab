"""Weights & Biases: online with credentials, else files on disk for `wandb sync`. There are no prompts."""

from __future__ import annotations

import os

import wandb

from igrpo_cli.errors import IgrpoError
from igrpo_cli.loggers.entries import ITERATION, STEP, Entry, SentEntries
from igrpo_cli.loggers.trackers import TrackerSettings

AXES = {ITERATION: ("draft/*", "select/*", "refine/*", "eval/*"), STEP: ("update/*", "train/*")}


class WandbTracker:
    """A run of a wandb project, open from the first entry on. Offline, each opening creates a folder."""

    def __init__(self, settings: TrackerSettings) -> None:
        self._settings = settings
        self._sent = SentEntries(settings.directory / "wandb.json")
        self._run: wandb.Run | None = None
        self.where = f"{settings.directory / 'wandb'}"

    def is_sent(self, key: str) -> bool:
        return key in self._sent

    def send(self, entry: Entry) -> bool:
        if self._run is None:
            self._run = self._open()
        if self._run.disabled:
            self.where = "wandb is disabled (WANDB_MODE, or `wandb disabled`), and the entries stay for a later command"
            return False
        for row in entry.rows:
            self._run.log({row.axis: row.x, **row.values})
        self._sent.add(entry.key)
        return True

    def flush(self) -> None:
        pass

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
        self._sent.save()

    def _open(self) -> wandb.Run:
        settings = wandb.Settings(
            silent=True,
            console="off",
            # No data about this machine and process.
            disable_code=True,
            disable_git=True,
            host="",
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        mode = wandb.setup(settings).settings.mode  # from the environment or from wandb's own settings files
        has_key = mode != "online" or wandb.login(prompt=False)
        if os.environ.get("WANDB_MODE") == "online" and not has_key:
            raise IgrpoError("wandb: WANDB_MODE is online, but there is no key", hint="export WANDB_API_KEY=…")
        run = wandb.init(
            project=self._settings.project,
            name=self._settings.run_name,
            id=self._sent.run_id,
            resume="allow",
            dir=self._settings.directory,
            mode=None if has_key else "offline",
            config=self._settings.config,
            settings=settings,
        )
        if run.disabled:
            return run
        self.where = run.url or f"wandb sync {run.settings.sync_dir}"
        for axis, names in AXES.items():
            run.define_metric(axis)
            for name in names:
                run.define_metric(name, step_metric=axis)
        return run
