"""The server engine: samples from running `vllm serve` processes, one request per completion, balanced by load."""

from __future__ import annotations

import importlib.metadata
import queue
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import TypeVar

from igrpo_cli.config.engine import EngineSection
from igrpo_cli.config.sections import SamplingSettings
from igrpo_cli.engines.base import ignore_progress, require_room
from igrpo_cli.engines.batches import Batch
from igrpo_cli.engines.hub import check_model_directory, read_text_config
from igrpo_cli.engines.server_endpoint import DeadEndpointError, Endpoint, PolicyFiles
from igrpo_cli.engines.tokenization import PolicyTokenizer
from igrpo_cli.errors import IgrpoError, Interrupted, UsageError
from igrpo_cli.http_client import HttpClient
from igrpo_cli.records import Completion, SamplingGroup

API_KEY_VARIABLE = "VLLM_API_KEY"

_Result = TypeVar("_Result")


class ServerEngine:
    """An `Engine` on servers. Other requests to the same server change a completion by rounding errors only."""

    name = "server"
    step_timeout: float | None = None
    """None: each request has a timeout of its own."""

    def __init__(self, policy_directory: Path, config: EngineSection, trust_remote_code: bool = False) -> None:
        if not config.endpoints:
            raise UsageError(
                'engine.name = "server" needs the servers to sample from',
                hint="--endpoint http://NODE:8000 for each running `vllm serve`",
            )
        self.on_sampled: Callable[[int, int], None] = ignore_progress
        self._config = config
        self._trust_remote_code = trust_remote_code
        self._endpoints = [
            Endpoint(HttpClient(url, config.timeout, API_KEY_VARIABLE), config.max_retries)
            for url in dict.fromkeys(config.endpoints)
        ]
        number = len(self._endpoints)
        self.device = f"server ({number} endpoint{'s' if number > 1 else ''})"
        self._batches: list[Batch] = []
        self._error: BaseException | None = None
        self._is_closed = False
        self._choosing = threading.Lock()
        self._threads = ThreadPoolExecutor(config.max_num_seqs, "igrpo-server")
        self._done: queue.SimpleQueue[tuple[Batch, int, int, Future[Completion]]] = queue.SimpleQueue()
        try:
            self.load_policy(policy_directory)
            self.dtype = _joined(self._of_each(Endpoint.dtype))
            vllm = _joined(self._of_each(Endpoint.version))
        except BaseException:
            self.close()
            raise
        self.versions = {"vllm": vllm, "transformers": importlib.metadata.version("transformers")}

    @property
    def num_unfinished(self) -> int:
        return len(self._batches)

    @property
    def has_room(self) -> bool:
        """True while fewer completions are in progress than `max_num_seqs`."""
        return sum(batch.num_missing for batch in self._batches) < self._config.max_num_seqs

    def submit(self, key: Hashable, groups: Sequence[SamplingGroup], settings: SamplingSettings) -> None:
        if self._is_closed:
            raise IgrpoError("this engine is closed: it has no policy to sample from")
        for index, group in enumerate(groups):
            length = len(group.prompt_ids)
            require_room(index, length, settings.max_completion_length, self._max_model_len, self._policy.directory)
        batch = Batch(key, groups, self.tokenizer.with_all_stops(settings))
        self._batches.append(batch)
        for index, sample in batch.rows:
            future = self._threads.submit(self._sample, batch, index, sample)
            future.add_done_callback(partial(self._put_done, batch, index, sample))

    def step(self) -> list[tuple[Hashable, list[list[Completion]]]]:
        """Wait for a completion, take all that are done, and return complete batches before raising an error."""
        if self._error is None and self._batches and all(batch.num_missing for batch in self._batches):
            self._take(*self._done.get())
        while self._error is None and not self._done.empty():
            self._take(*self._done.get())
        complete = [batch for batch in self._batches if not batch.num_missing]
        self._batches = [batch for batch in self._batches if batch.num_missing]
        if self._error is not None and not complete:
            raise self._error
        return [batch.result() for batch in complete]

    def load_policy(self, directory: Path) -> None:
        """Make every server sample from another policy; servers that were dead are tried again."""
        if self._batches:
            raise IgrpoError("the policy cannot be replaced while its completions are in progress")
        check_model_directory(directory)
        self._policy = PolicyFiles.read(directory)
        self.tokenizer = PolicyTokenizer(directory, self._trust_remote_code)
        self.vocab_size = int(read_text_config(directory, self._trust_remote_code).vocab_size)
        for endpoint in self._endpoints:
            endpoint.reset()
        served = self._of_each(lambda endpoint: endpoint.ready(self._policy))
        if not served:
            raise self._no_server_left()
        limits = [each.max_model_len for each in served]
        if self._config.max_model_len is not None:
            limits.append(self._config.max_model_len)
        self._max_model_len = min(limits)

    def sleep(self) -> None:
        """Do nothing: the servers have accelerators of their own."""

    def close(self) -> None:
        """Break off all requests."""
        self._is_closed = True
        for endpoint in self._endpoints:
            endpoint.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._batches = []

    def _put_done(self, batch: Batch, index: int, sample: int, future: Future[Completion]) -> None:
        if not self._is_closed:
            self._done.put((batch, index, sample, future))

    def _take(self, batch: Batch, index: int, sample: int, future: Future[Completion]) -> None:
        self._error = future.exception()
        if self._error is None:
            completion = future.result()
            batch.put(index, sample, completion)
            self.on_sampled(1, len(completion.completion_ids))

    def _sample(self, batch: Batch, index: int, sample: int) -> Completion:
        """Sample one completion on the least busy server, or on another one if that server dies."""
        group, settings = batch.groups[index], batch.settings_of(index, sample)
        while True:
            endpoint = self._choose()
            try:
                return endpoint.sample(self._policy, group.prompt_ids, group.seeds[sample], settings)
            except DeadEndpointError:
                continue
            finally:
                with self._choosing:
                    endpoint.num_in_flight -= 1

    def _choose(self) -> Endpoint:
        """Return the live server with the fewest requests in progress."""
        with self._choosing:
            live = [endpoint for endpoint in self._endpoints if endpoint.dead is None]
            if not live:
                raise self._no_server_left()
            endpoint = min(live, key=lambda endpoint: endpoint.num_in_flight)
            endpoint.num_in_flight += 1
        return endpoint

    def _of_each(self, call: Callable[[Endpoint], _Result]) -> list[_Result]:
        """Call a function with every live server at once. Leave dead ones out, and raise any other error at once."""
        live = [endpoint for endpoint in self._endpoints if endpoint.dead is None]
        threads = ThreadPoolExecutor(len(self._endpoints), "igrpo-server")
        futures = [threads.submit(call, endpoint) for endpoint in live]
        threads.shutdown(wait=False)
        for future in as_completed(futures):
            if not isinstance(future.exception(), DeadEndpointError):
                future.result()
        return [future.result() for future in futures if future.exception() is None]

    def _no_server_left(self) -> Interrupted:
        reasons = "; ".join(endpoint.dead or endpoint.url for endpoint in self._endpoints)
        attempts = self._config.max_retries + 1
        return Interrupted(
            f"no server is left, after {attempts} attempts each: {reasons}; complete blocks are kept",
            hint="restart the server, then run the same command again: it continues",
        )


def _joined(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))
