"""HTTP to one server: JSON in, JSON out, connections kept alive, and every failure told apart by what it calls for."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import socket
import threading
from typing import Any
from urllib.parse import SplitResult, urlsplit

from igrpo_cli.endpoints import WITHOUT_SECRETS, secret_in, without_secrets
from igrpo_cli.errors import IgrpoError, UsageError

_CONNECT_SECONDS = 10.0
_LONGEST_PAUSE = 30.0
_MOST_TEXT = 500
"""Characters of a server's message that are passed on."""


class TransientError(Exception):
    """What may be over at the next try: no connection, no answer in time, 429 or 5xx."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """Of HTTP; None: there was no answer."""


class PermanentError(IgrpoError):
    """An answer that will be the same at every try: 3xx, 4xx, or no JSON."""

    def __init__(self, message: str, status: int, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class ClosedError(Exception):
    """The client was closed while a request was under way."""


class HttpClient:
    """One server. Any number of threads may call at the same time, each on a connection of its own."""

    def __init__(self, endpoint: str, timeout: float, api_key_variable: str) -> None:
        """`endpoint` is a base URL, with or without `/v1`; the key is read from the environment alone."""
        parts = _checked(endpoint, api_key_variable)
        assert parts.hostname is not None
        self._is_https = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.url = f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{self._base}"
        self._timeout = timeout
        self._api_key_variable = api_key_variable
        self._api_key = os.environ.get(api_key_variable, "")
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._busy: set[http.client.HTTPConnection] = set()
        self._is_closed = False

    def get(self, path: str) -> Any:
        """The JSON at `path`. Raises TransientError, PermanentError, ClosedError."""
        return self._call("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that comes back for `body`. Raises as `get` does."""
        return self._call("POST", path, json.dumps(body).encode())

    def close(self) -> None:
        """Break off all requests under way; a server such as vLLM stops decoding for a client that is gone."""
        with self._lock:
            self._is_closed = True
            connections = [*self._idle, *self._busy]
            self._idle.clear()
        for connection in connections:
            if connection.sock is not None:
                # A thread that reads from it wakes up; closing alone would leave it waiting.
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def _call(self, method: str, path: str, body: bytes | None) -> Any:
        status, data = self._exchange(method, path, body)
        if 200 <= status < 300:
            try:
                return json.loads(data) if data else None
            except ValueError:
                raise PermanentError(f"{self.url}{path} answers no JSON: {self._shown(data)}", status) from None
        message = f"{self.url}{path} answers {status}: {self._shown(_message_of(data))}"
        if status == 429 or status >= 500:
            raise TransientError(message, status)
        key = f"set {self._api_key_variable} to a key that the server takes"
        raise PermanentError(message, status, hint=key if status == 401 else None)

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        while True:
            connection, is_kept = self._take()
            try:
                if not is_kept:
                    connection.connect()
                    connection.sock.settimeout(self._timeout)
                if self._is_closed:
                    raise ConnectionError("closed")
                connection.request(method, self._base + path, body, headers)
                response = connection.getresponse()
                status, data = response.status, response.read()
            except (OSError, http.client.HTTPException) as error:
                self._drop(connection)
                if is_kept and isinstance(error, ConnectionError):
                    continue  # The server closed it while it was idle.
                raise TransientError(f"{self.url} {_in_words(error, self._timeout)}") from error
            self._give_back(connection, keep=not response.will_close)
            return status, data

    def _take(self) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            if self._is_closed:
                raise ClosedError
            if self._idle:
                connection, is_kept = self._idle.pop(), True
            else:
                kind = http.client.HTTPSConnection if self._is_https else http.client.HTTPConnection
                connection, is_kept = kind(self._host, self._port, timeout=min(self._timeout, _CONNECT_SECONDS)), False
            self._busy.add(connection)
        return connection, is_kept

    def _give_back(self, connection: http.client.HTTPConnection, *, keep: bool) -> None:
        with self._lock:
            if keep and not self._is_closed:
                self._busy.discard(connection)
                self._idle.append(connection)
                return
        self._drop(connection)

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._busy.discard(connection)
            is_closed = self._is_closed
        connection.close()
        if is_closed:
            raise ClosedError

    def _shown(self, text: str | bytes) -> str:
        """Text of the server as a message may show it: short, and without keys, whatever the server repeats."""
        shown = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        if self._api_key:
            shown = shown.replace(self._api_key, "***")
        shown = without_secrets(shown)
        return " ".join(shown[:_MOST_TEXT].split())


def pause_before_retry(attempt: int, closing: threading.Event) -> None:
    """Wait after try `attempt`, from 0: twice as long every time, and not in step with others that wait for the server.

    Raises ClosedError as soon as `closing` is set.
    """
    seconds = min(_LONGEST_PAUSE, 0.5 * 2**attempt)
    if closing.wait(seconds * random.uniform(0.5, 1.0)):
        raise ClosedError


def _checked(endpoint: str, api_key_variable: str) -> SplitResult:
    hint = "for example http://node7:8000"
    try:
        parts = urlsplit(endpoint)
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        raise UsageError("an endpoint is no URL that can be read", hint=hint) from None
    if secret := secret_in(endpoint):
        raise UsageError(secret, hint=f"{WITHOUT_SECRETS}; an API key is read from {api_key_variable}")
    if parts.scheme not in ("http", "https") or not has_host:
        raise UsageError(f"the endpoint {endpoint!r} is no base URL of a server", hint=hint)
    return parts


def _message_of(data: bytes) -> str:
    """What vLLM says in its error object, or the text as it came."""
    try:
        error = json.loads(data)
        error = error.get("error", error.get("detail", error))
        return str(error["message"] if isinstance(error, dict) and "message" in error else error)
    except (ValueError, AttributeError):
        return data.decode("utf-8", "replace")


def _in_words(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"has not answered within {timeout:g} s"
    if isinstance(error, socket.gaierror):
        return f"cannot be found: {error.strerror}"
    return f"does not answer: {getattr(error, 'strerror', None) or error or type(error).__name__}"
