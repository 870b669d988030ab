"""One `vllm serve` process: whether what it serves is the policy, and one completion of it at a time."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from igrpo_cli.engines.base import logits_not_finite
from igrpo_cli.engines.server_policy import PolicyFiles, require_root, require_same_shape
from igrpo_cli.engines.server_replies import parse_completion, served_policy
from igrpo_cli.errors import IgrpoError
from igrpo_cli.http_client import ClosedError, HttpClient, PermanentError, TransientError, pause_before_retry
from igrpo_cli.records import Completion, SamplingSettings

_UNKNOWN = "unknown"
_PROBED_TOKENS = (0, 1)


class DeadEndpointError(Exception):
    """This server is given up: it failed at every try."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a server said of itself when it was last looked at."""

    model: str
    max_model_len: int
    can_load: bool
    """Whether weights can be loaded into it, which is VLLM_SERVER_DEV_MODE=1."""
    stamp: str
    """Of its weights. If it is another one after a request, the completion may not be the policy's."""


class Endpoint:
    """One server, shared by many threads."""

    def __init__(self, client: HttpClient, max_retries: int, closing: threading.Event) -> None:
        self._client = client
        self._max_retries = max_retries
        self._closing = closing
        self._lock = threading.Lock()
        self._served: Served | None = None
        self.url = client.url
        self.num_in_flight = 0
        """Kept by the engine, for whom it is."""
        self.dead: str | None = None
        """Why it was given up; None while it is of use."""

    def sample(
        self,
        policy: PolicyFiles,
        prompt_ids: Sequence[int],
        seed: int,
        settings: SamplingSettings,
        eos_token_ids: Sequence[int],
    ) -> Completion:
        """One completion, certain to be the policy's. Raises DeadEndpointError after `max_retries` failures."""
        request = _request(prompt_ids, seed, settings, eos_token_ids)
        for attempt in range(self._max_retries + 1):
            served = self.ready(policy)
            is_last = attempt == self._max_retries
            try:
                reply = self._client.post("/v1/completions", {"model": served.model, **request})
                completion = parse_completion(reply, prompt_ids, seed, settings, self.url)
                self._require_stamp(served)
                # A server that is being stopped cuts its completions off: another try says more.
                if completion.finish_reason != "abort" or is_last:
                    return completion
                error = TransientError(f"{self.url} aborts its completions")
            except TransientError as passing:
                error = passing
                self._forget(served)
            except PermanentError as refused:
                if "not JSON compliant" in refused.message:  # how vLLM fails to write a log-prob that is no number
                    raise logits_not_finite(served_policy(self.url)) from refused
                raise
            if is_last:
                self._require_failing(error)
                self._give_up(error)
            pause_before_retry(attempt, self._closing)
        raise AssertionError("the last attempt returns or raises")

    def _require_failing(self, error: TransientError) -> None:
        """Raise IgrpoError where the server is well but for this one completion: running again would not help."""
        if error.status != 500:
            return
        try:
            self._client.get("/health")
        except TransientError:
            return  # 503: the process answers, but its engine is dead.
        raise IgrpoError(
            f"{self.url} is well, but fails at one completion at every one of {self._max_retries + 1} tries: {error}",
            hint="the server's log says why",
        ) from error

    def ready(self, policy: PolicyFiles) -> Served:
        """See to it that the server has the policy, waiting for it if need be. Raises DeadEndpointError, IgrpoError."""
        with self._lock:
            for attempt in range(self._max_retries + 1):
                if self.dead is not None:
                    raise DeadEndpointError(self.dead)
                if self._closing.is_set():
                    raise ClosedError
                if self._served is not None:
                    return self._served
                try:
                    self._served = self._prepare(policy)
                except TransientError as error:
                    if attempt == self._max_retries:
                        self._give_up(error)
                    pause_before_retry(attempt, self._closing)
        assert self._served is not None
        return self._served

    def reset(self) -> None:
        """Look at the server anew before the next completion, even if it was given up."""
        with self._lock:
            self._served = self.dead = None

    def dtype(self) -> str:
        """The one that the server computes with, where it says so (VLLM_SERVER_DEV_MODE=1), else `server`."""
        try:
            info = self._client.get("/server_info?config_format=json")
            return str(info["vllm_config"]["model_config"]["dtype"]).removeprefix("torch.")
        except (TransientError, PermanentError, KeyError, TypeError):
            return "server"

    def version(self) -> str:
        """Of vLLM."""
        try:
            return str(self._client.get("/version")["version"])
        except (TransientError, PermanentError, KeyError, TypeError):
            return _UNKNOWN

    def close(self) -> None:
        """Break off what is under way."""
        self._client.close()

    def _forget(self, served: Served) -> None:
        with self._lock:
            if self._served is served:
                self._served = None

    def _give_up(self, error: TransientError) -> None:
        self.dead = str(error)
        raise DeadEndpointError(self.dead) from error

    def _prepare(self, policy: PolicyFiles) -> Served:
        model, root, max_model_len = self._model()
        can_load = self._can_load_weights() and not self._keeps_old_head(policy)
        if can_load:
            require_same_shape(self.url, root, policy)
            stamp = self._load(policy)
        else:
            require_root(self.url, root, policy)
            stamp = root
        self._require_processed_logprobs(model)
        return Served(model, max_model_len, can_load, stamp)

    def _model(self) -> tuple[str, str, int]:
        reply = self._client.get("/v1/models")
        try:
            served = next(model for model in reply["data"] if model.get("parent") is None)
            return str(served["id"]), str(served["root"]), int(served["max_model_len"])
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration):
            raise IgrpoError(
                f"{self.url} does not say which model it serves (/v1/models lacks id, root or max_model_len)",
                hint="an endpoint is the base URL of a `vllm serve`",
            ) from None

    def _can_load_weights(self) -> bool:
        """Whether it was started with VLLM_SERVER_DEV_MODE=1: else this path does not exist."""
        try:
            self._client.post("/collective_rpc", {})
        except PermanentError as error:
            return error.status == 400
        return False

    def _keeps_old_head(self, policy: PolicyFiles) -> bool:
        """Whether loading would leave the old output matrix: on a CPU vLLM packs a tied one, and only once."""
        if not policy.ties_embeddings:
            return False
        try:
            info = self._client.get("/server_info?config_format=json")
            return str(info["vllm_config"]["device_config"]["device"]).startswith("cpu")
        except (PermanentError, KeyError, TypeError):
            return True  # It does not say: then it must serve the policy from the start.

    def _load(self, policy: PolicyFiles) -> str:
        """Load the policy's weights, unless a task of the same run has; returns their stamp."""
        if (stamp := self._weight_version()).startswith(policy.fingerprint):
            return stamp
        token = secrets.token_hex(8)
        self._set_weight_version(loading := f"being loaded-{token}")
        try:
            call = {"method": "reload_weights", "kwargs": {"weights_path": str(policy.directory)}}
            self._client.post("/collective_rpc", call)
        except TransientError as error:
            if error.status != 500:
                raise
            raise IgrpoError(
                f"the server cannot load {policy.directory}: {error}",
                hint="servers need the run directory under the same path as here; start the server again",
            ) from error
        has_reset = self._client.post("/reset_prefix_cache", {})["success"]
        now = self._weight_version()
        if now.startswith(policy.fingerprint):
            return now  # Another task has loaded the same weights meanwhile, and is sampling by now.
        if not has_reset or now not in (loading, _UNKNOWN):
            raise TransientError(f"{self.url} is in use by somebody else: its weights cannot be exchanged")
        self._set_weight_version(f"{policy.fingerprint}-{token}")
        return self._weight_version()

    def _weight_version(self) -> str:
        try:
            return str(self._client.get("/weight_info")["weight_version"])
        except PermanentError:
            return _UNKNOWN

    def _set_weight_version(self, version: str) -> None:
        try:
            self._client.post("/update_weight_version", {"new_version": version})
        except PermanentError as error:
            if error.status != 404:
                raise

    def _require_stamp(self, served: Served) -> None:
        """Raise TransientError where the weights may have been others: a server started again, or loaded by others."""
        stamp = self._weight_version() if served.can_load else self._model()[1]
        if stamp != served.stamp:
            raise TransientError(f"{self.url} has got other weights meanwhile: started again, or loaded by another run")

    def _require_processed_logprobs(self, model: str) -> None:
        """Sample from one token alone: its log-prob is 0 under the distribution sampled from, and no other."""
        settings = SamplingSettings(temperature=0.5, top_p=1.0, top_k=1, max_completion_length=1)
        for token in _PROBED_TOKENS:
            request = _request([0], 0, settings, ())
            asked = {"model": model, **request, "allowed_token_ids": [token], "ignore_eos": True}
            completion = parse_completion(self._client.post("/v1/completions", asked), [0], 0, settings, self.url)
            if list(completion.completion_ids) != [token] or abs(completion.sampling_logprobs[0]) > 1e-6:
                raise IgrpoError(
                    f"{self.url} does not give the log-probs of the distribution that it samples from",
                    hint="start it with --logprobs-mode processed_logprobs",
                )


def _request(
    prompt_ids: Sequence[int], seed: int, settings: SamplingSettings, eos_token_ids: Sequence[int]
) -> dict[str, Any]:
    """Everything that decides a completion, so that nothing is left to the server's own defaults."""
    return {
        "prompt": list(prompt_ids),
        "seed": seed,
        "max_tokens": settings.max_completion_length,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k or -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": list(eos_token_ids),
        "logprobs": 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "skip_special_tokens": False,
        "add_special_tokens": False,
    }
