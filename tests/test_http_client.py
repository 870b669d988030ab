"""The client for servers that behave badly: slow bodies, hanging connections, and keys that no header can carry."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from igrpo_cli import http_client
from igrpo_cli.errors import UsageError
from igrpo_cli.http_client import ClosedError, HttpClient, PermanentError, TransientError

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"


@pytest.fixture
def serve():
    """`serve(answer)`: the URL of a server that calls `answer(connection, request)` and closes the connection."""
    listeners = []

    def start(answer):
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def work():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        answer(connection, connection.recv(65536))

        threading.Thread(target=work, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for each in listeners:
        each.close()


@pytest.fixture
def client_of():
    made = []

    def make(url, timeout=0.5):
        made.append(HttpClient(url, timeout, "NO_SUCH_KEY"))
        return made[-1]

    yield make
    for each in made:
        each.close()


def drop_by_drop(connection, _):
    connection.sendall(HEAD)
    for _ in range(100):
        connection.sendall(b" ")
        time.sleep(0.05)


def test_a_body_that_comes_in_drops_ends_with_the_timeout_of_the_request(serve, client_of):
    start = time.monotonic()
    with pytest.raises(TransientError, match=r"did not answer within 0\.5 s"):
        client_of(serve(drop_by_drop)).get("/")
    assert time.monotonic() - start < 3


def header_by_header(connection, _):
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in range(100):
        connection.sendall(b"X-%d: x\r\n" % number)
        time.sleep(0.05)


def chunk_size_by_digit(connection, _):
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(100):
        connection.sendall(b"0")
        time.sleep(0.05)


@pytest.mark.parametrize("answer", [header_by_header, chunk_size_by_digit])
def test_headers_that_come_in_drops_end_with_the_timeout_of_the_request(serve, client_of, answer):
    start = time.monotonic()
    with pytest.raises(TransientError, match=r"did not answer within 0\.5 s"):
        client_of(serve(answer)).get("/")
    assert time.monotonic() - start < 3


def test_a_body_without_end_is_refused(serve, client_of, monkeypatch):
    def endless(connection, _):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    monkeypatch.setattr(http_client, "_MAX_BODY_BYTES", 2**20)
    with pytest.raises(PermanentError, match="sent more than 1 MiB"):
        client_of(serve(endless), timeout=20).get("/")


def test_json_that_is_nested_too_deeply_is_no_json(serve, client_of):
    body = b"[" * 200_000

    def answer(connection, _):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    with pytest.raises(PermanentError, match="did not return JSON"):
        client_of(serve(answer), timeout=20).get("/")


@pytest.mark.parametrize(
    "reply", [b"", b"no HTTP\r\n\r\n", HEAD + b"{}", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"]
)
def test_a_reply_that_is_no_whole_answer_may_pass(serve, client_of, reply):
    with pytest.raises(TransientError, match="does not answer") as caught:
        client_of(serve(lambda connection, _: connection.sendall(reply))).get("/")
    assert caught.value.status is None


@pytest.mark.parametrize("status", [b"301 Moved\r\nLocation: /elsewhere", b"404 Not Found", b"200 OK"])
def test_a_redirect_an_error_or_a_text_is_permanent(serve, client_of, status):
    reply = b"HTTP/1.1 " + status + b"\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>"
    with pytest.raises(PermanentError, match="<html>"):
        client_of(serve(lambda connection, _: connection.sendall(reply))).get("/")


def test_closing_ends_a_request_in_progress(serve, client_of):
    client = client_of(serve(lambda connection, _: time.sleep(2)), timeout=60.0)
    closing = threading.Timer(0.2, client.close)
    closing.start()
    start = time.monotonic()
    with pytest.raises(ClosedError):
        client.get("/")
    assert time.monotonic() - start < 1.5
    with pytest.raises(ClosedError):
        client.get("/")
    closing.join()


def test_nobody_listening_is_said_in_words(client_of):
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(TransientError, match="does not answer: Connection refused"):
        client_of(url).get("/")


@pytest.mark.parametrize("key", ["sk-secret\n", "sk-sécret"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_repeated(monkeypatch, key):
    monkeypatch.setenv("SOME_KEY", key)
    with pytest.raises(UsageError, match="SOME_KEY") as caught:
        HttpClient("http://node7:8000", 1.0, "SOME_KEY")
    assert key[:5] not in caught.value.message + caught.value.hint


def test_no_proxy_and_no_netrc_is_used(serve, client_of, monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    received = []

    def answer(connection, request):
        received.append(request)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")

    assert client_of(serve(answer)).get("/") == {}
    assert b"authorization" not in received[0].lower()
