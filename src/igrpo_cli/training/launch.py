"""The ranks of `igrpo run` under torchrun between two updates: who does what, and whether all of them are alive.

Ranks sample independently for hours, so they do not wait for each other in collective communication. They share the
key-value store of torchrun instead. Work is claimed there, and a rank that waits looks for files and for signs of life
of the others. Each update runs in a process of its own on every rank (`igrpo update` under torchrun). A process has one
default group of ranks, which vLLM takes for its engine, and the end of the process frees all of its GPU memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from igrpo_cli.errors import IgrpoError, Interrupted, UsageError
from igrpo_cli.torchrun import rank_and_size
from igrpo_cli.training.ranks import launch_store

_T = TypeVar("_T")

POLL_SECONDS = 0.1
"""How often a rank that waits looks again."""
BEAT_SECONDS = 5.0
"""How often a rank gives a sign of life, and a rank that waits looks for those of the others."""
LOST_SECONDS = 300.0
"""A rank without a sign of life for so long is lost. On its own machine torchrun ends the others earlier."""
STORE_TIMEOUT = timedelta(seconds=60)
SECONDS_TO_END = 5.0
"""Time that the process of an update has to end after SIGTERM, and the thread of the signs of life."""


class Launch:
    """One rank of a launch. `close` it at the end.

    Methods raise Interrupted where the store of torchrun does not answer any more.
    """

    def __init__(self) -> None:
        self.rank, self.size = rank_and_size()
        with _reachable():
            self._store = launch_store("run", STORE_TIMEOUT)
        self._beats = dict.fromkeys(set(range(self.size)) - {self.rank}, 0)
        """Signs of life of each other rank."""
        self._silent = dict.fromkeys(self._beats, 0.0)
        """Seconds of waiting without a new one."""
        self._waited = 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="igrpo-alive", daemon=True)
        self._thread.start()

    @property
    def is_first(self) -> bool:
        """True for the rank that prints and decides."""
        return self.rank == 0

    def claim(self, work: str) -> bool:
        """Return True for the first rank that claims this piece of work, and False for all later calls."""
        with _reachable():
            return bool(self._store.add(f"claim/{work}", 1) == 1)

    def is_claimed(self, work: str) -> bool:
        """Return True if a rank of this launch has claimed this piece of work."""
        with _reachable():
            return bool(self._store.check([f"claim/{work}"]))

    def share(self, name: str, make: Callable[[], _T]) -> _T:
        """Return what `make()` returns on the first rank, a JSON value, on all ranks. `name` is used once."""
        key = f"value/{name}"
        if self.is_first:
            value = make()
            with _reachable():
                self._store.set(key, json.dumps(value))
            return value
        self.wait_until(lambda: bool(self._store.check([key])))
        with _reachable():
            shared: _T = json.loads(self._store.get(key))
        return shared

    def wait_until(self, is_reached: Callable[[], bool]) -> None:
        """Wait until `is_reached()` is true. Raises as `pause`."""
        while True:
            with _reachable():
                if is_reached():
                    return
            self.pause()

    def pause(self) -> None:
        """Wait a moment for other ranks. Raises Interrupted if one of them is lost."""
        time.sleep(POLL_SECONDS)
        # Pauses are added up instead of reading the clock: a machine that was suspended has lost nobody.
        self._waited += POLL_SECONDS
        if self._waited < BEAT_SECONDS:
            return
        waited, self._waited = self._waited, 0.0
        for rank, before in self._beats.items():
            with _reachable():
                self._beats[rank] = self._store.add(f"alive/{rank}", 0)
            self._silent[rank] = self._silent[rank] + waited if self._beats[rank] == before else 0.0
            if self._silent[rank] >= LOST_SECONDS:
                raise Interrupted(
                    f"rank {rank} has given no sign of life for {LOST_SECONDS:.0f} s; finished blocks are kept",
                    hint="run the same command again to continue",
                )

    def train(self, arguments: Sequence[str]) -> None:
        """Run an igrpo command in a process of its own, which joins those of the other ranks, and wait for it.

        Raises IgrpoError with the exit code of the command if it fails. The process ends with this one.
        """
        # This process and no other hosts the store, if it does.
        environment = {**os.environ, "TORCHELASTIC_USE_AGENT_STORE": "True"}
        command = [sys.executable, "-m", "igrpo_cli", *arguments]
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            while process.poll() is None:
                self.pause()
        finally:
            _end(process)
        if code := process.returncode:
            how = f"exit code {code}" if code > 0 else f"signal {-code}"
            error = IgrpoError(
                f"rank {self.rank}: the process of igrpo {arguments[0]} ended with {how}",
                hint="its error is above; when the cause is gone, run the same command again to continue",
            )
            error.exit_code = code if code > 0 else IgrpoError.exit_code
            raise error

    def close(self) -> None:
        """Give no more signs of life."""
        self._closed.set()
        # A thread that is in the store at the end of Python would abort the process.
        self._thread.join(SECONDS_TO_END)

    def _beat(self) -> None:
        with suppress(RuntimeError):  # The main thread notices it too, as soon as it waits.
            while not self._closed.is_set():
                self._store.add(f"alive/{self.rank}", 1)
                self._closed.wait(BEAT_SECONDS)


def take_device() -> None:
    """Make the GPU of this rank the only one that this process and its children see; nothing on a CPU.

    Must be called before CUDA is used. Raises UsageError for more ranks than GPUs.
    """
    local_rank, number = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if not number:
        return
    if local_rank >= number:
        raise UsageError(
            f"torchrun started more ranks than this machine has GPUs ({number})", hint=f"--nproc-per-node {number}"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(number)))
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[local_rank].strip()
    os.environ["LOCAL_RANK"] = "0"


@contextmanager
def _reachable() -> Iterator[None]:
    """Raise Interrupted for a store that does not answer: the launcher that hosts it has ended."""
    try:
        yield
    except dist.DistError as error:
        raise Interrupted(
            f"the store of torchrun does not answer, so its launcher has ended ({str(error).partition(chr(10))[0]})",
            hint="run the same command again to continue",
        ) from error


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
    if process.poll() is None:
        process.kill()
        process.wait()
