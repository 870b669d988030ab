"""Sampling from running `vllm serve` processes: one request a completion, spread over all servers by their load."""

from __future__ import annotations

import importlib.metadata
import queue
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from igrpo_cli.engines.base import EngineSettings, require_room
from igrpo_cli.engines.batches import Batch
from igrpo_cli.engines.hub import check_model_directory, read_text_config
from igrpo_cli.engines.server_endpoint import DeadEndpointError, Endpoint
from igrpo_cli.engines.server_policy import PolicyFiles
from igrpo_cli.engines.tokenization import PolicyTokenizer
from igrpo_cli.errors import IgrpoError, Interrupted, UsageError
from igrpo_cli.http_client import ClosedError, HttpClient
from igrpo_cli.records import Completion, SamplingGroup, SamplingSettings

API_KEY_VARIABLE = "VLLM_API_KEY"

_Row = tuple[Batch, int, int]
"""A completion to be sampled: its batch, its group, its position in the group."""
_Result = TypeVar("_Result")


class ServerEngine:
    """An `Engine`: see there. A completion depends on the others of the same server by rounding alone."""

    name = "server"
    step_timeout: float | None = None
    """Each request has a limit of its own."""

    def __init__(self, policy_directory: Path, settings: EngineSettings) -> None:
        if not settings.server.endpoints:
            raise UsageError(
                'engine.name = "server" needs the servers to sample from',
                hint="--endpoint http://NODE:8000 for each running `vllm serve`",
            )
        self._settings = settings
        self._closing = threading.Event()
        self._endpoints = [
            Endpoint(
                HttpClient(url, settings.server.timeout, API_KEY_VARIABLE), settings.server.max_retries, self._closing
            )
            for url in dict.fromkeys(settings.server.endpoints)
        ]
        number = len(self._endpoints)
        self.device = f"server ({number} endpoint{'s' if number > 1 else ''})"
        self._batches: list[Batch] = []
        self._error: BaseException | None = None
        self._num_threads = 0
        self._choosing = threading.Lock()
        self._todo: queue.SimpleQueue[_Row | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[_Row, Completion | BaseException]] = queue.SimpleQueue()
        try:
            self.load_policy(policy_directory)
        except BaseException:
            self.close()
            raise
        live = [endpoint for endpoint in self._endpoints if endpoint.dead is None]
        self.dtype = _joined(_all_at_once([endpoint.dtype for endpoint in live]))
        vllm = _joined(_all_at_once([endpoint.version for endpoint in live]))
        self.versions = {"vllm": vllm, "transformers": importlib.metadata.version("transformers")}

    @property
    def num_unfinished(self) -> int:
        return len(self._batches)

    @property
    def has_room(self) -> bool:
        """While fewer completions are under way than the servers may have at a time."""
        return sum(batch.num_missing for batch in self._batches) < self._settings.max_num_seqs

    def submit(self, key: Hashable, groups: Sequence[SamplingGroup], settings: SamplingSettings) -> None:
        if self._closing.is_set():
            raise IgrpoError("this engine is closed: it has no policy to sample from")
        for index, group in enumerate(groups):
            length = len(group.prompt_ids)
            require_room(index, length, settings.max_completion_length, self._max_model_len, self._policy.directory)
        batch = Batch(key, groups, settings)
        self._batches.append(batch)
        for index, sample in batch.rows:
            self._todo.put((batch, index, sample))
        under_way = sum(batch.num_missing for batch in self._batches)
        while self._num_threads < min(under_way, self._settings.max_num_seqs):
            self._num_threads += 1
            threading.Thread(target=self._work, name=f"igrpo-server-{self._num_threads}", daemon=True).start()

    def step(self) -> list[tuple[Hashable, list[list[Completion]]]]:
        """Wait for a completion, and take all that have come. Finished batches go before errors."""
        if self._error is None and self._batches and all(batch.num_missing for batch in self._batches):
            self._take(self._done.get())
        while self._error is None and not self._done.empty():
            self._take(self._done.get())
        finished = [batch for batch in self._batches if not batch.num_missing]
        self._batches = [batch for batch in self._batches if batch.num_missing]
        if self._error is not None and not finished:
            raise self._error
        return [batch.given_back() for batch in finished]

    def load_policy(self, directory: Path) -> None:
        """Have every server sample from another policy; those that were given up are tried again."""
        if self._batches:
            raise IgrpoError("the policy cannot be exchanged while completions of it are under way")
        check_model_directory(directory)
        self._policy = PolicyFiles.of(directory)
        self.tokenizer = PolicyTokenizer(directory, self._settings.trust_remote_code)
        self.vocab_size = int(read_text_config(directory, self._settings.trust_remote_code).vocab_size)
        for endpoint in self._endpoints:
            endpoint.reset()
        served = _all_at_once([partial(endpoint.ready, self._policy) for endpoint in self._endpoints])
        if not served:
            raise self._interrupted()
        limits = [each.max_model_len for each in served]
        if self._settings.max_model_len is not None:
            limits.append(self._settings.max_model_len)
        self._max_model_len = min(limits)

    def sleep(self) -> None:
        """Nothing to give back: the servers have accelerators of their own."""

    def close(self) -> None:
        """Break off the requests under way."""
        self._closing.set()
        for endpoint in self._endpoints:
            endpoint.close()
        for _ in range(self._num_threads):
            self._todo.put(None)
        self._batches = []

    def _take(self, done: tuple[_Row, Completion | BaseException]) -> None:
        (batch, index, sample), outcome = done
        if isinstance(outcome, BaseException):
            self._error = outcome
        else:
            batch.put(index, sample, outcome)

    def _work(self) -> None:
        """What each thread does: one completion after the other. Threads are daemons: none holds up the end."""
        while (row := self._todo.get()) is not None and not self._closing.is_set():
            try:
                self._done.put((row, self._sample(row)))
            except ClosedError:
                return
            except BaseException as error:
                self._done.put((row, error))

    def _sample(self, row: _Row) -> Completion:
        batch, index, sample = row
        group = batch.groups[index]
        while True:
            endpoint = self._choose()
            try:
                return endpoint.sample(
                    self._policy, group.prompt_ids, group.seeds[sample], batch.settings, self.tokenizer.eos_token_ids
                )
            except DeadEndpointError:
                continue
            finally:
                with self._choosing:
                    endpoint.num_in_flight -= 1

    def _choose(self) -> Endpoint:
        """The live server with the fewest requests under way."""
        with self._choosing:
            live = [endpoint for endpoint in self._endpoints if endpoint.dead is None]
            if not live:
                raise self._interrupted()
            endpoint = min(live, key=lambda endpoint: endpoint.num_in_flight)
            endpoint.num_in_flight += 1
        return endpoint

    def _interrupted(self) -> Interrupted:
        reasons = "; ".join(endpoint.dead or endpoint.url for endpoint in self._endpoints)
        tries = self._settings.server.max_retries + 1
        return Interrupted(
            f"no server is left, after {tries} tries each: {reasons}; finished blocks are kept",
            hint="start the server again, then run the same command again, it goes on where it stopped",
        )


def _all_at_once(calls: Sequence[Callable[[], _Result]]) -> list[_Result]:
    """What the calls return, in their order, but for those that find their server dead; the first other error."""
    done: queue.SimpleQueue[tuple[int, _Result | BaseException]] = queue.SimpleQueue()

    def work(number: int, call: Callable[[], _Result]) -> None:
        try:
            done.put((number, call()))
        except BaseException as error:
            done.put((number, error))

    for number, call in enumerate(calls):
        threading.Thread(target=work, args=(number, call), daemon=True).start()
    results: dict[int, _Result] = {}
    for _ in calls:
        number, outcome = done.get()
        if isinstance(outcome, DeadEndpointError):
            continue
        if isinstance(outcome, BaseException):
            raise outcome
        results[number] = outcome
    return [results[number] for number in sorted(results)]


def _joined(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))
