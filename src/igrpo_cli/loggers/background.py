"""Trackers in background processes, one for each: a tracker that hangs, fails or prints does not disturb training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from igrpo_cli.errors import Interrupted

MAX_SECONDS_AFTER_SIGNAL = 4.0
"""Maximum time that a command waits for trackers after a signal."""


class BackgroundTrackers:
    """Runs `igrpo log --follow` for each of `log.report_to`, from the first entry on."""

    def __init__(self, run: Path, section: Mapping[str, Any], note: Callable[[str], None]) -> None:
        """Take the settings of `[log]` from `section`. `note` gets the first failure of each tracker."""
        settings = [f"log.{name}={json.dumps(value, ensure_ascii=False)}" for name, value in section.items()]
        self._timeout = float(section["timeout"])
        self._senders = [_Sender(run, name, settings, note) for name in dict.fromkeys(section["report_to"])]

    def wake(self) -> None:
        """Let the trackers send new entries. Does not wait for them."""
        for sender in self._senders:
            sender.wake()

    def close(self) -> None:
        """Wait for all trackers, at most `log.timeout` seconds, and end those that are not done."""
        is_stopped = isinstance(sys.exc_info()[1], Interrupted | KeyboardInterrupt)
        deadline = time.monotonic() + (min(self._timeout, MAX_SECONDS_AFTER_SIGNAL) if is_stopped else self._timeout)
        for sender in self._senders:
            sender.finish()
        for sender in self._senders:
            sender.wait(deadline)


class _Sender:
    def __init__(self, run: Path, tracker: str, settings: list[str], note: Callable[[str], None]) -> None:
        overrides = [piece for setting in settings for piece in ("--set", setting)]
        self._arguments = ["log", str(run.resolve()), "--to", tracker, "--follow", *overrides]
        self._tracker = tracker
        self._next_step = f"igrpo log {run} --to {tracker} sends the rest"
        self._note = note
        self._has_complained = False
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] = BytesIO()

    def wake(self) -> None:
        try:
            if self._process is not None and self._process.poll() is not None:
                self._collect(self._process)
            process = self._process = self._process or self._start()
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # the process is ending; `_collect` reports the reason
                process.stdin.write(b"\n")
        except OSError as error:
            self._complain(str(error))

    def finish(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def wait(self, deadline: float) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            self._complain("it took too long (log.timeout)")
        finally:
            self._collect(self._process)

    def _start(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115, closed in `_collect`
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "igrpo_cli", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            bufsize=0,
            # Ctrl-C must reach only the training process. This one ends when stdin is closed.
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )

    def _collect(self, process: subprocess.Popen[bytes]) -> None:
        """End the process if it still runs, and report its error if it failed."""
        self._process = None
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        with self._stderr:
            self._stderr.seek(0)
            lines = self._stderr.read().decode(errors="replace").splitlines()
        if process.returncode:
            errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            self._complain(errors[-1] if errors else f"it ended with exit code {process.returncode}")

    def _complain(self, what: str) -> None:
        if not self._has_complained:
            self._has_complained = True
            self._note(f"some metrics were not sent to {self._tracker}: {what}; {self._next_step}")
