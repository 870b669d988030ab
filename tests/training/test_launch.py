"""The ranks of a launch between updates: claims, shared values, and ranks that are lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch.distributed as dist

from command_line import ONE_THREAD
from igrpo_cli.errors import IgrpoError, Interrupted, UsageError
from igrpo_cli.torchrun import without_torchrun
from igrpo_cli.training import launch as launches
from igrpo_cli.training.launch import Launch, take_device


@pytest.fixture
def start(monkeypatch):
    """A function that starts a rank in this process, next to the store that an agent of torchrun would host."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started = []

    def rank(number, size=2, **environment):
        values = {"RANK": number, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
        values |= {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True", **environment}
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))
        started.append(Launch())
        return started[-1]

    yield rank
    for each in started:
        each.close()


def test_each_piece_of_work_is_claimed_once(start):
    first, second = start(0), start(1)
    assert not first.is_claimed("block 1")
    assert [rank.claim("block 1") for rank in (second, first, second)] == [True, False, False]
    assert first.is_claimed("block 1")
    assert first.claim("block 2")


def test_restarted_ranks_find_no_claims_of_those_that_died(start):
    assert start(0).claim("block 1")
    assert start(0, TORCHELASTIC_RESTART_COUNT="1").claim("block 1")


def test_the_first_rank_decides(start):
    first, second = start(0), start(1)
    found = []
    waiting = threading.Thread(target=lambda: found.append(second.share("iterations", lambda: [9])))
    waiting.start()
    time.sleep(0.2)
    assert found == []
    assert first.share("iterations", lambda: [2, 3]) == [2, 3]
    waiting.join(timeout=10)
    assert found == [[2, 3]]


def test_a_rank_that_waits_notices_that_another_is_lost(start, monkeypatch):
    monkeypatch.setattr(launches, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(launches, "LOST_SECONDS", 1.0)
    first, second = start(0), start(1)
    reached = time.monotonic() + 2.0
    first.wait_until(lambda: time.monotonic() > reached)
    second.close()
    with pytest.raises(Interrupted, match="rank 1 has given no sign of life"):
        first.wait_until(lambda: False)


def test_a_store_that_is_gone_is_an_interrupt():
    code = (
        "import sys\nfrom igrpo_cli.training.launch import Launch\nfrom igrpo_cli.errors import Interrupted\n"
        "launch = Launch()\nprint('joined', flush=True)\nsys.stdin.readline()\n"
        "try: launch.claim('block 1')\nexcept Interrupted as error: print(error.message)\n"
    )
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    environment |= {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True", **ONE_THREAD}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes) as process:
        assert process.stdout.readline() == "joined\n"
        del store
        stdout, _ = process.communicate("\n", timeout=120)
    assert stdout.startswith("the store of torchrun does not answer, so its launcher has ended")


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["status", "/nowhere"], 3)])
def test_a_command_in_a_process_of_its_own_gives_its_exit_code(start, arguments, code):
    rank = start(0)
    if code == 0:
        rank.train(arguments)
        return
    with pytest.raises(IgrpoError, match="rank 0: the process of igrpo status ended with exit code 3") as error:
        rank.train(arguments)
    assert error.value.exit_code == 3


def test_a_stopped_rank_ends_its_process(start, monkeypatch):
    rank, pids = start(0), []

    def stop():
        pids.append(next(iter(int(pid) for pid in children())))
        raise Interrupted("stopped")

    monkeypatch.setattr(rank, "pause", stop)
    with pytest.raises(Interrupted, match="stopped"):
        rank.train(["doctor"])
    assert pids
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], signal.SIGCONT)


def children():
    return open(f"/proc/self/task/{threading.get_native_id()}/children").read().split()


def test_each_rank_takes_the_gpu_of_its_local_rank(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for name, value in {"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "4,GPU-7"}.items():
        monkeypatch.setenv(name, value)
    take_device()
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["LOCAL_RANK"]) == ("GPU-7", "0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="more ranks than this machine has GPUs \\(2\\)"):
        take_device()


def test_a_library_that_starts_does_not_see_torchrun(monkeypatch):
    for name in ("RANK", "TORCHELASTIC_USE_AGENT_STORE", "MASTER_PORT", "GROUP_RANK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("RANKING", "mine")
    with without_torchrun():
        assert {"RANK", "TORCHELASTIC_USE_AGENT_STORE", "MASTER_PORT", "GROUP_RANK"}.isdisjoint(os.environ)
        assert os.environ["RANKING"] == "mine"
    assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == os.environ["RANK"] == "1"
