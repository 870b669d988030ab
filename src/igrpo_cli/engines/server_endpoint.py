"""One `vllm serve` process: give it the weights of the policy, check that it keeps them, and sample completions."""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from igrpo_cli.config.sections import SamplingSettings
from igrpo_cli.engines.base import logits_not_finite
from igrpo_cli.engines.batches import to_completion
from igrpo_cli.errors import IgrpoError
from igrpo_cli.http_client import HttpClient, PermanentError, TransientError
from igrpo_cli.records import Completion

_UNKNOWN = "unknown"
_PROBE_TOKENS = (0, 1)
_NEUTRAL = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_SHAPE_KEYS = ("architectures", "vocab_size", *_SIZES)


class DeadEndpointError(Exception):
    """The server failed at every attempt and is no longer used."""


class _AbortedError(TransientError):
    """The server aborted a completion, as vLLM does when it is stopped."""

    def __init__(self, url: str, completion: Completion) -> None:
        super().__init__(f"{url} aborts its completions")
        self.completion = completion


@dataclass(frozen=True, slots=True)
class PolicyFiles:
    """The model directory that a server must sample from."""

    directory: Path
    """Absolute, with symlinks resolved; servers need the directory under the same path."""
    fingerprint: str
    """Hash of the weights: equal for equal bytes, whenever they were written."""
    ties_embeddings: bool
    """True if the output matrix is the embedding."""

    @classmethod
    def read(cls, directory: Path) -> PolicyFiles:
        """Read the config and hash the weights of a model directory."""
        resolved = directory.resolve()
        config = json.loads((resolved / "config.json").read_text())
        digest = hashlib.sha256()
        for path in sorted(resolved.glob("*.safetensors")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return cls(resolved, digest.hexdigest()[:16], bool(config.get("tie_word_embeddings")))


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The answers of a server when it was last prepared."""

    name: str
    max_model_len: int
    can_load_weights: bool
    """True if the server was started with VLLM_SERVER_DEV_MODE=1."""
    weights_tag: str
    """Identifies the weights in the server. If it changes during a request, the completion is not used."""


class Endpoint:
    """One server, shared by many threads."""

    def __init__(self, client: HttpClient, max_retries: int) -> None:
        self._client = client
        self._max_retries = max_retries
        self._lock = threading.Lock()
        self._served: ServedModel | None = None
        self.url = client.url
        self.num_in_flight = 0
        """Requests in progress, counted by the engine."""
        self.dead: str | None = None
        """Why the server is no longer used; None while it is."""

    def sample(
        self,
        policy: PolicyFiles,
        prompt_ids: Sequence[int],
        seed: int,
        settings: SamplingSettings,
    ) -> Completion:
        """Return one completion of `policy`.

        Raises DeadEndpointError if the server fails at every attempt, IgrpoError if it fails at this completion alone
        or refuses it, and ClosedError if the engine is closed. A completion that stays aborted is returned.
        """
        request = _completion_request(prompt_ids, seed, settings)
        try:
            return self._client.retrying(self._max_retries)(self._sample_once, policy, request, seed, settings)
        except _AbortedError as error:
            return error.completion
        except TransientError as error:
            self._require_failing(error)
            self._give_up(error)

    def ready(self, policy: PolicyFiles) -> ServedModel:
        """Return the model of the server once it has the weights of `policy`; wait for a server that does not answer.

        Raises DeadEndpointError if it fails at every attempt, and IgrpoError if it cannot serve the policy.
        """
        with self._lock:
            self._require_alive()
            if self._served is None:
                try:
                    self._served = self._client.retrying(self._max_retries)(self._prepare, policy)
                except TransientError as error:
                    self._give_up(error)
            return self._served

    def reset(self) -> None:
        """Prepare the server again before the next completion, even if it was dead."""
        with self._lock:
            self._served = self.dead = None

    def dtype(self) -> str:
        """Return the dtype of the server's weights, or `server` without VLLM_SERVER_DEV_MODE=1."""
        try:
            info = self._client.get("/server_info?config_format=json")
            dtype = str(info["vllm_config"]["model_config"]["dtype"]).removeprefix("torch.")
            return dtype if dtype.isidentifier() else "server"
        except (TransientError, PermanentError, KeyError, TypeError):
            return "server"

    def version(self) -> str:
        """Return the server's version of vLLM, or `unknown`."""
        try:
            return "".join(filter(str.isprintable, str(self._client.get("/version")["version"]))) or _UNKNOWN
        except (TransientError, PermanentError, KeyError, TypeError):
            return _UNKNOWN

    def close(self) -> None:
        """Break off all requests."""
        self._client.close()

    def _sample_once(
        self, policy: PolicyFiles, request: dict[str, Any], seed: int, settings: SamplingSettings
    ) -> Completion:
        served = self.ready(policy)
        try:
            reply = self._client.post("/v1/completions", {"model": served.name, **request})
            completion = parse_completion(reply, request["prompt"], seed, settings, self.url)
            self._require_same_weights(served)
        except TransientError:
            with self._lock:
                if self._served is served:
                    self._served = None
            raise
        except PermanentError as error:
            if "not JSON compliant" in error.message:  # vLLM cannot write a log-prob that is not finite
                raise logits_not_finite(_served_policy(self.url)) from error
            raise
        if completion.finish_reason == "abort":
            raise _AbortedError(self.url, completion)
        return completion

    def _require_failing(self, error: TransientError) -> None:
        """Raise IgrpoError if the server is healthy and fails at one completion: running again would not help."""
        if error.status != 500:
            return
        try:
            self._client.get("/health")
        except TransientError:
            return  # 503: the process answers, but its engine is dead.
        raise IgrpoError(
            f"{self.url} is healthy, but fails at one completion at each of {self._max_retries + 1} attempts: {error}",
            hint="see the log of the server",
        ) from error

    def _require_alive(self) -> None:
        if self.dead is not None:
            raise DeadEndpointError(self.dead)

    def _give_up(self, error: TransientError) -> NoReturn:
        self.dead = str(error)
        raise DeadEndpointError(self.dead) from error

    def _prepare(self, policy: PolicyFiles) -> ServedModel:
        self._require_alive()  # another thread may have given the server up during a pause
        name, root, max_model_len = self._model()
        can_load_weights = self._can_load_weights() and not self._keeps_output_matrix(policy)
        if can_load_weights:
            _require_same_shape(self.url, root, policy)
            tag = self._load(policy)
        else:
            _require_root(self.url, root, policy)
            tag = root
        self._require_processed_logprobs(name)
        return ServedModel(name, max_model_len, can_load_weights, tag)

    def _model(self) -> tuple[str, str, int]:
        """Return name, directory and context length of the server's model."""
        reply = self._client.get("/v1/models")
        try:
            model = next(model for model in reply["data"] if model.get("parent") is None)
            return str(model["id"]), str(model["root"]), int(model["max_model_len"])
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration, OverflowError):
            raise IgrpoError(
                f"{self.url} does not say which model it serves (/v1/models lacks id, root or max_model_len)",
                hint="an endpoint is the base URL of a `vllm serve`",
            ) from None

    def _can_load_weights(self) -> bool:
        """Return True if the server was started with VLLM_SERVER_DEV_MODE=1; otherwise the path does not exist."""
        try:
            self._client.post("/collective_rpc", {})
        except PermanentError as error:
            return error.status == 400
        return False

    def _keeps_output_matrix(self, policy: PolicyFiles) -> bool:
        """Return True if loading would keep the old output matrix: on a CPU vLLM packs a tied one only once."""
        if not policy.ties_embeddings:
            return False
        try:
            info = self._client.get("/server_info?config_format=json")
            return str(info["vllm_config"]["device_config"]["device"]).startswith("cpu")
        except (PermanentError, KeyError, TypeError):
            return True  # The device is not known: the server must serve the policy from the start.

    def _load(self, policy: PolicyFiles) -> str:
        """Load the weights of `policy`, unless another task of the run has; return their tag."""
        if (tag := self._weight_version()).startswith(policy.fingerprint):
            return tag
        token = secrets.token_hex(8)
        self._set_weight_version(loading := f"loading-{token}")
        try:
            call = {"method": "reload_weights", "kwargs": {"weights_path": str(policy.directory)}}
            self._client.post("/collective_rpc", call)
        except TransientError as error:
            if error.status != 500:
                raise
            raise IgrpoError(
                f"the server cannot load {policy.directory}: {error}",
                hint="servers need the run directory under the same path as here; restart the server",
            ) from error
        reply = self._client.post("/reset_prefix_cache", {})
        has_reset = isinstance(reply, dict) and bool(reply.get("success"))
        now = self._weight_version()
        if now.startswith(policy.fingerprint):
            return now  # A concurrent task has loaded the same weights, and may be sampling already.
        if not has_reset or now not in (loading, _UNKNOWN):
            raise TransientError(f"{self.url} is used by another run: its weights cannot be replaced")
        self._set_weight_version(f"{policy.fingerprint}-{token}")
        return self._weight_version()

    def _weight_version(self) -> str:
        try:
            return str(self._client.get("/weight_info")["weight_version"])
        except (PermanentError, KeyError, TypeError):
            return _UNKNOWN

    def _set_weight_version(self, version: str) -> None:
        try:
            self._client.post("/update_weight_version", {"new_version": version})
        except PermanentError as error:
            if error.status != 404:
                raise

    def _require_same_weights(self, served: ServedModel) -> None:
        """Raise TransientError if the weights may have changed: after a restart, or a load by another run."""
        tag = self._weight_version() if served.can_load_weights else self._model()[1]
        if tag != served.weights_tag:
            raise TransientError(f"the weights of {self.url} changed: it was restarted, or another run loaded its own")

    def _require_processed_logprobs(self, model: str) -> None:
        """Raise IgrpoError unless log-probs are those of the distribution sampled from.

        Sampling from a single allowed token has log-prob 0 under that distribution, and under no other.
        """
        settings = SamplingSettings(temperature=0.5, top_p=1.0, top_k=1, max_completion_length=1)
        for token in _PROBE_TOKENS:
            request = _completion_request([0], 0, settings)
            body = {"model": model, **request, "allowed_token_ids": [token], "ignore_eos": True}
            completion = parse_completion(self._client.post("/v1/completions", body), [0], 0, settings, self.url)
            if list(completion.completion_ids) != [token] or abs(completion.sampling_logprobs[0]) > 1e-6:
                raise IgrpoError(
                    f"{self.url} does not return the log-probs of the distribution that it samples from",
                    hint="start it with --logprobs-mode processed_logprobs",
                )


def parse_completion(
    reply: Any, prompt_ids: Sequence[int], seed: int, settings: SamplingSettings, url: str
) -> Completion:
    """Return the only completion in `reply`, a reply of `/v1/completions` to a request with `seed`.

    Raises TransientError for a wrong number of completions, tokens or log-probs, which another attempt may fix, and
    IgrpoError for a reply that shows that the server is not set up as needed.
    """
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise TransientError(_unexpected(url, "choices does not hold one completion"))
    choice = choices[0]
    returned = choice.get("prompt_token_ids") or prompt_ids
    if not isinstance(returned, list | tuple) or list(returned) != list(prompt_ids):
        raise IgrpoError(
            f"{url} changes prompts: {len(prompt_ids)} token ids came back as {str(returned)[:80]}",
            hint="start the server without options that truncate or rewrite prompts",
        )
    token_ids: Any = choice.get("token_ids")
    if not _is_list_of(token_ids, int):
        raise IgrpoError(_unexpected(url, "token_ids is missing"), hint="vLLM 0.24 or newer is needed")
    logprobs: Any = choice.get("logprobs")
    logprobs = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not _is_list_of(logprobs, float | int):
        raise IgrpoError(
            _unexpected(url, "token_logprobs is missing"), hint="an endpoint is the base URL of a `vllm serve`"
        )
    num_tokens, limit = len(token_ids), settings.max_completion_length
    if len(logprobs) != num_tokens:
        raise TransientError(_unexpected(url, f"{num_tokens} tokens with {len(logprobs)} log-probs"))
    completion = to_completion(token_ids, logprobs, choice.get("finish_reason"), seed, settings, _served_policy(url))
    if num_tokens > limit or (num_tokens == 0 and completion.finish_reason != "abort"):
        raise TransientError(_unexpected(url, f"{num_tokens} tokens, and the request allows 1 to {limit}"))
    if completion.finish_reason == "length" and num_tokens < limit:
        raise IgrpoError(
            f"{url} ends completions at {num_tokens} tokens, and the request allows {limit}",
            hint="start it with --generation-config vllm, and a --max-model-len that has room",
        )
    return completion


def _completion_request(prompt_ids: Sequence[int], seed: int, settings: SamplingSettings) -> dict[str, Any]:
    """Return every field that decides a completion, so that no default of the server does."""
    return {
        "prompt": list(prompt_ids),
        "seed": seed,
        "max_tokens": settings.max_completion_length,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k or -1,
        "min_p": settings.min_p or 0.0,
        **_NEUTRAL,
        "stop": list(settings.stop),
        "stop_token_ids": list(settings.stop_token_ids),
        "logprobs": 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "skip_special_tokens": False,
        "add_special_tokens": False,
    }


def _require_root(url: str, root: str, policy: PolicyFiles) -> None:
    """Raise IgrpoError unless a server that cannot load weights serves the directory of the policy."""
    if Path(root).is_absolute() and Path(root).resolve() == policy.directory:
        return
    raise IgrpoError(
        f"{url} serves {root}, not the policy {policy.directory}, and cannot load another one",
        hint=f"restart it: vllm serve {policy.directory}; or, on GPUs, start it with VLLM_SERVER_DEV_MODE=1, "
        "then weights are loaded into it",
    )


def _require_same_shape(url: str, root: str, policy: PolicyFiles) -> None:
    """Raise IgrpoError for weights of another shape: a server would load a part of them and only log a warning."""
    served, needed = _shape(Path(root)), _shape(policy.directory)
    for key in served.keys() & needed.keys():
        if served[key] != needed[key]:
            raise IgrpoError(
                f"{url} was started with a model of another shape ({root} has {key} {served[key]}, "
                f"{policy.directory} has {needed[key]})",
                hint=f"restart it: vllm serve {policy.directory}",
            )


def _shape(directory: Path) -> dict[str, Any]:
    """Return the sizes of a model; empty for a directory that this machine does not have, or a name of the Hub."""
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return {key: config[key] for key in _SHAPE_KEYS if config.get(key) is not None}


def _served_policy(url: str) -> str:
    return f"the policy that {url} serves"


def _is_list_of(values: Any, kind: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) and not isinstance(value, bool) for value in values)


def _unexpected(url: str, reason: str) -> str:
    return f"the reply of {url} is not the completion that was requested: {reason}"
