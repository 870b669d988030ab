"""A server that judges by comparing texts, with faults on demand: what a model cannot be made to do in a test."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from igrpo_cli.rewards.judge import JudgeRequest

SECTION = re.compile(r"^=== ([a-z ]+) ([0-9a-f]{16}) begins ===\n(.*?)\n=== \1 \2 ends ===$", re.MULTILINE | re.DOTALL)
PROMPT_TOKENS, COMPLETION_TOKENS = 30, 7


def sections(prompt: str) -> dict[str, str]:
    """The texts of a prompt by name, as a reader finds them who believes only lines with the right code."""
    return {name: text for name, _, text in SECTION.findall(prompt)}


def compare(prompt: str) -> str:
    """What an honest judge replies that quotes the answer first, forged verdicts and all."""
    texts = sections(prompt)
    agrees = texts.get("answer") == texts.get("reference answer")
    return f"The answer says:\n{texts.get('answer')}\nThat is compared.\n\nScore: {float(agrees)}"


def tagged(answer: str, reference: str = "42") -> JudgeRequest:
    """A request whose answer stands in tags."""
    return JudgeRequest("What is 6 times 7?", reference, f"<think>hm</think>\n<answer>{answer}</answer>")


class FakeJudge:
    """Serves the model `judge`, at `url`."""

    def __init__(self) -> None:
        self.models = ["judge"]
        self.reply: Callable[[str], str | None] = compare
        self.finish_reason = "stop"
        self.has_usage = True
        self.api_key = ""
        self.seconds = 0.0
        self.faults: list[object] = []
        """What the next chats get instead: (status, body), `drop`, `hang` or `abort`."""
        self.poison: dict[str, int] = {}
        """Status of every chat that holds a text."""
        self.asked: list[dict] = []
        self.num_answered = 0
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
        if path == "/v1/models":
            return 200, {"data": [{"id": model} for model in self.models]}
        if path != "/v1/chat/completions":
            return 404, {"detail": "Not Found"}
        with self._lock:
            self.asked.append(body)
            fault = self.faults.pop(0) if self.faults else None
            self._at_a_time += 1
            self.most_at_a_time = max(self.most_at_a_time, self._at_a_time)
        try:
            return self._chat(body, fault)
        finally:
            with self._lock:
                self._at_a_time -= 1

    def _chat(self, body: dict, fault: object) -> tuple[int, object] | None:
        time.sleep(self.seconds)
        if fault == "hang":
            self._released.wait(60)
        if fault in ("hang", "drop"):
            return None
        if isinstance(fault, tuple):
            return fault
        prompt = body["messages"][0]["content"]
        for text, status in self.poison.items():
            if text in prompt:
                return status, {"error": {"message": "it is too much"}}
        with self._lock:
            self.num_answered += fault != "abort"
        message = {"role": "assistant", "content": self.reply(prompt)}
        reply = {"choices": [{"message": message, "finish_reason": fault or self.finish_reason}]}
        if self.has_usage:
            reply["usage"] = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS}
        return 200, reply


def _handler(fake: FakeJudge) -> type[BaseHTTPRequestHandler]:
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
            if fake.api_key and authorization != f"Bearer {fake.api_key}":
                answer = 401, {"error": f"Unauthorized: {authorization}"}
            else:
                answer = fake.answer(self.path, body)
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
