"""A fake of vLLM's server, with faults on demand that a real server does not show in a test."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FakeVllm:
    """Serves `root`. A completion is a token that depends on the seed, then EOS."""

    def __init__(self, root: Path | str, *, can_load: bool = False, max_model_len: int = 512) -> None:
        self.root = str(root)
        self.can_load = can_load
        self.max_model_len = max_model_len
        self.processed_logprobs = True
        self.api_key = ""
        self.seconds = 0.0
        self.faults: list[object] = []
        """What the next completions are instead: (status, body), a change of the choice, `drop` or `hang`."""
        self.weight_version = "default"
        self.loaded: list[str] = []
        self.load_status = 200
        self.health = 200
        self.device: str | None = "cuda"
        """What it says that it computes on; None: it does not say."""
        self.asked: list[dict] = []
        self.authorizations: list[str | None] = []
        self.most_at_a_time = 0
        self._at_a_time = 0
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._connections: list = []
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Be gone, as a killed process is: no new connection, and no old one."""
        self._released.set()
        self._http.shutdown()
        self._http.server_close()
        for connection in self._connections:
            connection.close()

    def answer(self, path: str, body: dict) -> tuple[int, object] | None:
        """Status and JSON; None: no answer."""
        if path == "/v1/completions":
            with self._lock:
                self._at_a_time += 1
                self.most_at_a_time = max(self.most_at_a_time, self._at_a_time)
            try:
                return self._complete(body)
            finally:
                with self._lock:
                    self._at_a_time -= 1
        if path == "/v1/models":
            model = {"id": "policy", "root": self.root, "parent": None, "max_model_len": self.max_model_len}
            return 200, {"data": [model]}
        if path == "/version":
            return 200, {"version": "9.9"}
        if path == "/health":
            return self.health, {}
        return self._answer_dev(path, body) if self.can_load else (404, {"detail": "Not Found"})

    def _answer_dev(self, path: str, body: dict) -> tuple[int, object]:
        if path == "/weight_info":
            return 200, {"weight_version": self.weight_version}
        if path == "/update_weight_version":
            self.weight_version = body["new_version"]
            return 200, {"success": True}
        if path == "/reset_prefix_cache":
            return 200, {"success": True}
        if path == "/collective_rpc" and "method" not in body:
            return 400, {"error": {"message": "Missing 'method' in request body"}}
        if path == "/collective_rpc":
            self.loaded.append(body["kwargs"]["weights_path"])
            return self.load_status, {"error": {"message": "no such weights"}}
        if path == "/server_info" and self.device is not None:
            return 200, {"vllm_config": {"device_config": {"device": self.device}}}
        return 404, {"detail": "Not Found"}

    def _complete(self, body: dict) -> tuple[int, object] | None:
        if "allowed_token_ids" in body:
            logprob = 0.0 if self.processed_logprobs else -3.5
            return _completion(body, token_ids=body["allowed_token_ids"], logprobs=[logprob], finish_reason="length")
        with self._lock:
            self.asked.append(body)
            fault = self.faults.pop(0) if self.faults else None
        time.sleep(self.seconds)
        if fault == "hang":
            self._released.wait(60)
        if fault in ("hang", "drop"):
            return None
        if isinstance(fault, tuple):
            return fault
        if fault == "restart":
            self.weight_version = "default"
        changes = fault if isinstance(fault, dict) else {}
        return _completion(body, **{"token_ids": [token_of(body["seed"]), 2], "logprobs": [-0.5, -0.25], **changes})


def token_of(seed: int) -> int:
    """The first token of a completion."""
    return 10 + seed % 90


def _completion(body, *, token_ids, logprobs, finish_reason="stop"):
    choice = {
        "token_ids": token_ids,
        "prompt_token_ids": body["prompt"],
        "logprobs": {"token_logprobs": logprobs},
        "finish_reason": finish_reason,
    }
    return 200, {"choices": [{name: value for name, value in choice.items() if value is not None}]}


def _handler(fake: FakeVllm) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            fake._connections.append(self.connection)

        def do_GET(self) -> None:
            self._reply({})

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _reply(self, body: dict) -> None:
            authorization = self.headers["Authorization"]
            fake.authorizations.append(authorization)
            if fake.api_key and authorization != f"Bearer {fake.api_key}":
                answer = 401, {"error": f"Unauthorized: {authorization}"}
            else:
                answer = fake.answer(self.path.partition("?")[0], body)
            if answer is None:
                self.close_connection = True
                return
            status, data = answer
            encoded = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
