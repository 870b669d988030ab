"""JSON over HTTP to one server, and the check that a server's URL holds no secret.

httpx and tenacity are imported with the first client: settings use the functions on URLs, and must load fast.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import weakref
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from igrpo_cli.errors import IgrpoError, UsageError

if TYPE_CHECKING:
    from tenacity import Retrying

WITHOUT_SECRETS = "leave them out of the URL, for example http://node7:8000"

_CREDENTIALS = re.compile(r"""(?:(?<=//)|[^\s"'<>\[\]=/]+:(?!//))[^\s"'<>]*@""")
_QUERY = re.compile(r"""(//[^\s"'<>?#]*[?#])[^\s"'<>]*""")

_CONNECT_SECONDS = 10.0
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_MAX_BODY_BYTES = 64 * 2**20
"""A larger reply is none that any request of ours gets."""
_MAX_MESSAGE_CHARACTERS = 500
"""Characters of a server's message that an error repeats."""


class TransientError(Exception):
    """An error that another attempt may not meet: no connection, no answer in time, status 429 or 5xx."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status; None if there was no answer."""


class PermanentError(IgrpoError):
    """An answer that every attempt would get: status 3xx or 4xx, or a body that is not JSON."""

    def __init__(self, message: str, status: int, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class ClosedError(Exception):
    """The client is closed, or was closed during the request."""


class HttpClient:
    """A client of one server. Any number of threads may share it; each request has a connection of its own."""

    def __init__(self, endpoint: str, timeout: float, api_key_variable: str) -> None:
        """Prepare requests to `endpoint`, a base URL with or without `/v1`; makes no request yet.

        `timeout` is in seconds and bounds each request. The API key is read from the environment variable
        `api_key_variable`, and from nowhere else. Raises UsageError for a bad URL or a key that no header can carry.
        """
        import ssl

        import httpx

        self.url = _base_url(endpoint, api_key_variable)
        self._timeout = timeout
        self._api_key_variable = api_key_variable
        self._api_key = _api_key(api_key_variable)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        headers = {"Content-Type": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        self._client = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS), pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            verify=ssl.create_default_context(),
            trust_env=False,  # no proxy between the nodes of a cluster, and no key from a .netrc
        )

    def get(self, path: str) -> Any:
        """Return the JSON at `path`. Raises TransientError, PermanentError and ClosedError."""
        return self._request("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send `body` to `path` and return the JSON of the reply. Raises the errors of `get`."""
        return self._request("POST", path, json.dumps(body).encode())

    def retrying(self, max_retries: int) -> Retrying:
        """Return a tenacity object that calls a function again after a TransientError, up to `max_retries` times.

        Pauses grow exponentially and have jitter. The error of the last attempt is raised as it is. `close` ends a
        pause, and the next attempt raises ClosedError.
        """
        import tenacity

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientError),
            stop=tenacity.stop_after_attempt(max_retries + 1),
            wait=tenacity.wait_exponential(multiplier=_FIRST_PAUSE, max=_LONGEST_PAUSE)
            + tenacity.wait_random(0, min(_FIRST_PAUSE, _LONGEST_PAUSE)),
            sleep=tenacity.sleep_using_event(self._closing),
            reraise=True,
        )

    def close(self) -> None:
        """Break off all requests; a server such as vLLM stops decoding for a client that is gone."""
        self._closing.set()
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            _shut_down(each)
        self._client.close()

    def _request(self, method: str, path: str, body: bytes | None) -> Any:
        status, data = self._exchange(method, path, body)
        if 200 <= status < 300:
            try:
                return json.loads(data) if data else None
            except (ValueError, RecursionError):
                raise PermanentError(f"{self.url}{path} did not return JSON: {self._shown(data)}", status) from None
        message = f"{self.url}{path} answered {status}: {self._shown(_error_text(data))}"
        if status == 429 or status >= 500:
            raise TransientError(message, status)
        hint = f"set {self._api_key_variable} to a key that the server accepts"
        raise PermanentError(message, status, hint=hint if status == 401 else None)

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Return status and body. A timer bounds the whole request: httpx bounds each wait, and a server may drip."""
        import httpx

        if self._closing.is_set():
            raise ClosedError
        deadline = _Deadline(self._timeout)
        data = bytearray()

        def remember(event: str, info: dict[str, Any]) -> None:
            # httpx calls this at each step of a request.
            if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
                opened = info["return_value"].get_extra_info("socket")
                deadline.applies_to(opened)
                self._remember_socket(opened)

        try:
            with (
                deadline,
                self._client.stream(method, self.url + path, content=body, extensions={"trace": remember}) as response,
            ):
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > _MAX_BODY_BYTES:
                        limit = f"{_MAX_BODY_BYTES // 2**20} MiB"
                        raise PermanentError(f"{self.url}{path} sent more than {limit}", response.status_code)
                return response.status_code, bytes(data)
        except Exception as error:
            if self._closing.is_set():
                raise ClosedError from error
            is_http_error = isinstance(error, httpx.RequestError | OSError)
            if isinstance(error, httpx.TimeoutException) or (deadline.has_passed and is_http_error):
                raise TransientError(f"{self.url} did not answer within {self._timeout:g} s") from error
            if isinstance(error, httpx.RequestError):
                reason = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
                raise TransientError(f"{self.url} does not answer: {reason}") from error
            raise

    def _remember_socket(self, opened: socket.socket) -> None:
        """Keep the socket of a new connection for `close`."""
        with self._lock:
            self._sockets.add(opened)
        if self._closing.is_set():
            _shut_down(opened)

    def _shown(self, text: str | bytes) -> str:
        """Return the server's text as a message may show it: short, and without keys that the server repeats."""
        shown = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        if self._api_key:
            shown = shown.replace(self._api_key, "***")
        return " ".join(without_secrets(shown)[:_MAX_MESSAGE_CHARACTERS].split())


class _Deadline:
    """Ends the connections of one request when its time is over."""

    def __init__(self, seconds: float) -> None:
        self.has_passed = False
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()

    def applies_to(self, opened: socket.socket) -> None:
        with self._lock:
            self._sockets.append(opened)
            if self.has_passed:
                _shut_down(opened)

    def _end(self) -> None:
        with self._lock:
            self.has_passed = True
            for opened in self._sockets:
                _shut_down(opened)


def secret_in(endpoint: str) -> str | None:
    """Return why `endpoint` may hold a secret, without repeating the secret; None if it holds none."""
    if "@" in endpoint:
        return f"the endpoint at {_host(endpoint.rpartition('@')[2])} carries credentials, which would end up in files"
    if "?" in endpoint or "#" in endpoint:
        return f"the endpoint {_host(endpoint)} has a query or a fragment, which would end up in files"
    return None


def without_secrets(text: str) -> str:
    """Return `text` with *** for the credentials and the query of every URL in it."""
    return _QUERY.sub(r"\1***", _CREDENTIALS.sub("***@", text))


def _shut_down(opened: socket.socket) -> None:
    """End a connection so that a thread that reads from it wakes up; closing alone would leave it waiting."""
    with contextlib.suppress(OSError):
        opened.shutdown(socket.SHUT_RDWR)


def _host(endpoint: str) -> str:
    return re.split("[?#]", endpoint, maxsplit=1)[0]


def _base_url(endpoint: str, api_key_variable: str) -> str:
    """Return scheme, host, port and path of `endpoint` without `/v1`. Raises UsageError."""
    hint = "for example http://node7:8000"
    try:
        parts = urlsplit(endpoint)
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        raise UsageError("an endpoint is not a valid URL", hint=hint) from None
    if secret := secret_in(endpoint):
        raise UsageError(secret, hint=f"{WITHOUT_SECRETS}; an API key is read from {api_key_variable}")
    if parts.scheme not in ("http", "https") or not has_host:
        raise UsageError(f"the endpoint {endpoint!r} is not the base URL of a server", hint=hint)
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"


def _api_key(variable: str) -> str:
    key = os.environ.get(variable, "")
    if key and not (key.isascii() and key.isprintable()):
        raise UsageError(
            f"the API key in {variable} has characters that no HTTP header can carry",
            hint=f"export {variable} without line breaks and with ASCII characters only",
        )
    return key


def _error_text(data: bytes) -> str:
    """Return the message of a JSON error object, or the text as it came."""
    try:
        error = json.loads(data)
        error = error.get("error", error.get("detail", error))
        return str(error["message"] if isinstance(error, dict) and "message" in error else error)
    except (ValueError, AttributeError, RecursionError):
        return data.decode("utf-8", "replace")
