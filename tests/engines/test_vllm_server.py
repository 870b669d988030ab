"""The server engine against a real `vllm serve`: the completions of the engine in process, and a server that dies."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from command_line import ONE_THREAD, files_below, igrpo, make_run
from igrpo_cli.config.engine import EngineSection
from igrpo_cli.config.sections import SamplingSettings
from igrpo_cli.engines.factory import create_engine, vllm_fits
from igrpo_cli.errors import IgrpoError
from igrpo_cli.problems.sources import packaged_data
from igrpo_cli.records import SamplingGroup

pytestmark = [
    pytest.mark.skipif(not vllm_fits("auto"), reason="needs vLLM in a build for this machine"),
    pytest.mark.slow,
]

TINY = packaged_data() / "tiny-policy"
"""The directory that runs sample from, in the source tree or in the installed package."""
STARTS_WITHIN = 300
FLAGS = (
    "--dtype=float32",
    "--enforce-eager",
    "--max-model-len=512",
    "--max-num-batched-tokens=4096",
    "--no-enable-chunked-prefill",
    "--logprobs-mode=processed_logprobs",
)
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
SERVED = (
    "engine.name=server",
    "engine.max_num_seqs=4",
    "engine.max_retries=1",
    "run.num_iterations=1",
    "engine.groups_per_block=1",
    "data.problems_per_iteration=12",
)


class Server:
    """`vllm serve` of a policy on a port of its own; which can be killed and restarted."""

    def __init__(self, log: Path, policy: Path) -> None:
        self.policy = policy
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.policy)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--host=127.0.0.1", f"--port={self.port}", *FLAGS],
                env={**ONE_THREAD, **ENVIRONMENT, "VLLM_SERVER_DEV_MODE": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + STARTS_WITHIN
        while not self.answers():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.2)

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.url}/health", timeout=5).status == 200
        return False

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def untied_policy(directory, change):
    """The tiny policy with an untied output matrix, which `change` computes from the tied one."""
    shutil.copytree(TINY, directory)
    model = AutoModelForCausalLM.from_pretrained(TINY, tie_word_embeddings=False)
    model.lm_head.weight = torch.nn.Parameter(change(model.get_input_embeddings().weight.detach().clone()))
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """The policy of the server, untied because on a CPU no tied policy can be loaded into a running server."""
    return untied_policy(tmp_path_factory.mktemp("policies") / "tiny", lambda weight: weight)


@pytest.fixture(scope="module")
def server(policy, tmp_path_factory):
    started = Server(tmp_path_factory.mktemp("server") / "log", policy)
    yield started
    started.kill()


def engine_of(name, policy, *endpoints):
    memory = {"kv_cache_memory_bytes": 256 * 2**20, "gpu_memory_utilization": 0.2, "enforce_eager": True}
    return create_engine(
        policy, EngineSection(name=name, dtype="float32", max_num_seqs=8, endpoints=endpoints, **memory)
    )


def sampled(engine):
    prompts = [[5, 6, 7, 8], [9, 10, 11]]
    groups = [SamplingGroup(ids, range(10 * n, 10 * n + 4)) for n, ids in enumerate(prompts, start=1)]
    settings = SamplingSettings(temperature=0.9, top_p=0.95, top_k=0, max_completion_length=16)
    engine.submit("batch", groups, settings)
    while not (returned := engine.step()):
        pass
    ((_, completions),) = returned
    return list(chain(*completions))


def require_same(ours, theirs):
    assert [each.completion_ids for each in ours] == [each.completion_ids for each in theirs]
    assert [each.finish_reason for each in ours] == [each.finish_reason for each in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.sampling_logprobs == pytest.approx(other.sampling_logprobs, abs=1e-5)


@contextlib.contextmanager
def killing_at_the_request(number, server, has_kept):
    """A URL in front of `server`, which dies (SIGKILL) at the given completion request, once `has_kept` is true."""
    counter = itertools.count(1)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.pass_on()

        def do_POST(self):
            if self.path == "/v1/completions" and next(counter) == number:
                while not has_kept():  # Grading may begin late on a busy machine.
                    time.sleep(0.1)
                server.kill()
            self.pass_on(self.rfile.read(int(self.headers["Content-Length"])))

        def pass_on(self, body=None):
            request = urllib.request.Request(server.url + self.path, body, {"Content-Type": "application/json"})
            try:
                status, answer = 200, urllib.request.urlopen(request).read()
            except urllib.error.HTTPError as error:
                status, answer = error.code, error.read()
            except (OSError, http.client.HTTPException):
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    front = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    front.daemon_threads = True
    threading.Thread(target=front.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{front.server_address[1]}"
    front.shutdown()
    front.server_close()


def test_it_samples_what_the_engine_in_process_samples(policy, server):
    drawn = {}
    for name in ("server", "vllm"):
        engine = engine_of(name, policy, server.url)
        assert engine.versions["vllm"] != "unknown"
        drawn[name] = sampled(engine)
        engine.close()
    require_same(drawn["server"], drawn["vllm"])


def test_a_policy_that_is_loaded_into_a_running_server_is_the_one_sampled_from(policy, server, tmp_path):
    other = untied_policy(
        tmp_path / "policy", lambda weight: torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) / 4
    )
    over_http = engine_of("server", policy, server.url)
    before = sampled(over_http)
    over_http.load_policy(other)
    after = sampled(over_http)
    over_http.load_policy(policy)
    require_same(sampled(over_http), before)
    over_http.close()
    in_process = engine_of("vllm", other)
    expected = sampled(in_process)
    in_process.close()
    require_same(after, expected)
    assert [each.completion_ids for each in before] != [each.completion_ids for each in after]


def test_a_server_of_another_policy_is_refused(server, tmp_path):
    other = Path(shutil.copytree(TINY, tmp_path / "other"))
    config = EngineSection(name="server", endpoints=[server.url])
    with pytest.raises(IgrpoError, match="not the policy") as refused:
        create_engine(other, config)
    assert f"vllm serve {other}" in refused.value.hint


def test_an_iteration_goes_on_where_the_server_died(policy, server, tmp_path):
    settings = (*SERVED, f"policy.model={policy}")
    undisturbed = make_run(tmp_path / "undisturbed", *settings)
    result = igrpo("run", undisturbed, "--endpoint", server.url)
    assert result.code == 0, result.stderr
    assert igrpo("verify", undisturbed).code == 0

    run = make_run(tmp_path / "run", *settings)
    parts = run / "iteration_0000/draft/.parts"
    with killing_at_the_request(20, server, lambda: any(parts.rglob("*.parquet"))) as url:
        result = igrpo("draft", run, "--endpoint", url)
    assert result.code == 75, result.stderr
    assert "no server is left" in result.stderr
    assert "hint: restart the server" in result.stderr
    kept = len(list(parts.rglob("*.parquet")))
    assert 0 < kept < 12

    server.start()
    for stage in ("draft", "select", "refine", "update"):
        endpoint = ("--endpoint", server.url) if stage in ("draft", "refine") else ()
        result = igrpo(stage, run, *endpoint)
        assert result.code == 0, result.stderr
    assert files_below(run) == files_below(undisturbed)
