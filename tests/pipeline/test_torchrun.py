"""`igrpo run` under torchrun: the files of one process, and a run that goes on after any rank was killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from command_line import ONE_THREAD, files_below, igrpo, make_run, run_to_end
from igrpo_cli.commands import draft
from igrpo_cli.engines.factory import vllm_fits
from igrpo_cli.engines.transformers import TransformersEngine
from igrpo_cli.pipeline.session import StageRequest, open_session
from igrpo_cli.store.parts import PartStore
from igrpo_cli.ui.console import QUIET, Console

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
SETTINGS = (
    "engine.name=transformers",
    "run.num_shards=2",
    "policy.dtype=float32",
    "update.num_minibatches=3",
    # An epsilon above the rounding of gradients lets weights differ by as much as the gradients do.
    "update.adam_epsilon=1e-4",
    "run.eval_every=2",
    "run.eval_bench=arithmetic",
    "eval.limit=4",
    "eval.repeats=2",
)
ROLLOUTS = ("iteration_0000/draft", "iteration_0000/select", "iteration_0000/refine", "eval/arithmetic/policy_0000")
MARK = "IGRPO_TEST_LAUNCH"
SECONDS = 600
"""Timeout, long enough for a busy machine."""


@contextmanager
def launched(ranks, *arguments):
    """Start igrpo with this number of ranks; yield the launcher and the mark that all of its processes have."""
    mark = uuid.uuid4().hex
    command = [*TORCHRUN, str(ranks), "-m", "igrpo_cli", *map(str, arguments)]
    environment = {**ONE_THREAD, MARK: mark}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=environment, text=True, **pipes)
    try:
        yield process, mark
    finally:
        for pid in processes(mark):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def launch(ranks, *arguments):
    """Run igrpo with this number of ranks to its end, without leaving a process behind."""
    with launched(ranks, *arguments) as (process, mark):
        stdout, stderr = process.communicate(timeout=SECONDS)
        assert processes(mark) == {}
    return process.returncode, stdout, stderr


def processes(mark):
    """Return the command lines of the processes with this mark in their environment, by their pid."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
    return found


def ranks_of(mark, word):
    """Return the pids of the ranks' processes of `igrpo WORD`, in order."""
    return sorted(
        pid for pid, words in processes(mark).items() if "torch.distributed.run" not in words and word in words
    )


def wait_for(condition, process, what):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, (what, process.communicate())
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def wait_until_gone(mark):
    deadline = time.monotonic() + 60
    while left := processes(mark):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def weights(run, policy):
    return load_file(run / f"policies/{policy:04d}/model.safetensors")


def nearly_equal(run, other, policy):
    for name, tensor in weights(run, policy).items():
        torch.testing.assert_close(tensor, weights(other, policy)[name], rtol=0.0, atol=1e-5, msg=name)


def rollouts(run):
    return {name: files_below(run / name) for name in ROLLOUTS}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("torchrun") / "run", *SETTINGS)


@pytest.fixture(scope="module")
def by_one(fresh, tmp_path_factory):
    return run_to_end(shutil.copytree(fresh, tmp_path_factory.mktemp("one") / "run"))


@pytest.fixture(scope="module")
def by_two(fresh, tmp_path_factory):
    run = shutil.copytree(fresh, tmp_path_factory.mktemp("two") / "run")
    return run, *launch(2, "run", run, "--json")


@pytest.mark.slow
def test_two_ranks_make_the_files_of_one_process(by_one, by_two):
    run, code, stdout, stderr = by_two
    assert code == 0, stderr
    assert rollouts(run) == rollouts(by_one)
    nearly_equal(run, by_one, 1)
    assert files_below(run).keys() - by_one_states(run) == files_below(by_one).keys() - by_one_states(by_one)
    for stage in ("draft", "select", "refine"):
        tables = [sorted((each / f"iteration_0001/{stage}").glob("*.parquet")) for each in (run, by_one)]
        assert [pq.read_metadata(path).num_rows for path in tables[0]] == [
            pq.read_metadata(path).num_rows for path in tables[1]
        ]
    for policy in (0, 2):
        for name in ("", "_conditioned"):
            assert (run / f"eval/arithmetic/policy_000{policy}{name}/summary.json").exists()
    assert igrpo("verify", run).code == 0
    payload = json.loads(stdout)
    stages = [(report["stage"], report["rows"], report["skipped"]) for report in payload["stages"]]
    assert stages == [("draft", 24, 0), ("select", 8, 0), ("refine", 24, 0), ("update", 48, 0)] * 2
    manifest = json.loads((run / "iteration_0001/update/manifest.json").read_text())
    assert "2 ranks" in manifest["device"]
    assert stderr.count("iteration 0: draft") == 1


def by_one_states(run):
    """Return the files of optimiser states, one for each rank."""
    return {name for name in files_below(run) if "/optimizer/" in name}


@pytest.mark.slow
def test_the_policy_is_that_of_single_commands_and_an_update_with_as_many_ranks(by_two, fresh, tmp_path):
    run = shutil.copytree(fresh, tmp_path / "run")
    for stage in ("draft", "select", "refine"):
        assert igrpo(stage, run, "--iteration", 0).code == 0
    code, _, stderr = launch(2, "update", run)
    assert code == 0, stderr
    assert files_below(run / "policies") == {
        name: content for name, content in files_below(by_two[0] / "policies").items() if name.startswith("0001")
    }


@pytest.mark.slow
def test_a_complete_run_has_nothing_to_do(by_two):
    run = by_two[0]
    before = files_below(run)
    code, stdout, stderr = launch(2, "run", run)
    assert (code, "all iterations are already complete" in stdout) == (0, True), stderr
    assert files_below(run) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_rank_that_ends_while_drafting_ends_the_launch_and_three_ranks_go_on(by_one, fresh, tmp_path, number):
    run = shutil.copytree(fresh, tmp_path / "run")
    with launched(2, "run", run) as (process, mark):
        wait_for(lambda: any(run.glob("iteration_0000/draft/.parts/*/*.parquet")), process, "a block is sampled")
        os.kill(ranks_of(mark, "run")[-1], number)
        _, stderr = process.communicate(timeout=SECONDS)
        assert process.returncode == 1, stderr
        assert f"exitcode  : {75 if number == signal.SIGTERM else -number}" in stderr
        wait_until_gone(mark)
    code, _, stderr = launch(3, "run", run, "--iterations", 1)
    assert code == 0, stderr
    assert rollouts(run) == rollouts(by_one)
    nearly_equal(run, by_one, 1)
    assert igrpo("verify", run).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank", "process of the update"])
def test_a_rank_that_is_killed_in_the_update_ends_the_launch_and_one_process_goes_on(by_one, fresh, tmp_path, victim):
    run = shutil.copytree(fresh, tmp_path / "run")
    with launched(2, "run", run) as (process, mark):
        checkpoints = run / "iteration_0000"
        wait_for(lambda: any(checkpoints.rglob("step_*")), process, "a step is taken")
        os.kill(ranks_of(mark, "run" if victim == "rank" else "update")[-1], signal.SIGKILL)
        _, stderr = process.communicate(timeout=SECONDS)
        assert process.returncode == 1, stderr
        wait_until_gone(mark)
    assert igrpo("run", run).code == 0
    assert rollouts(run) == rollouts(by_one)
    nearly_equal(run, by_one, 1)
    assert igrpo("verify", run).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR1, signal.SIGTERM])
def test_a_launcher_that_ends_leaves_no_process(fresh, tmp_path, number):
    run = shutil.copytree(fresh, tmp_path / "run")
    with launched(2, "run", run) as (process, mark):
        wait_for(lambda: any(run.glob("iteration_0000/draft/.parts/*/*.parquet")), process, "a block is sampled")
        process.send_signal(number)
        process.communicate(timeout=SECONDS)
        assert process.returncode == (1 if number == signal.SIGTERM else -number)
        wait_until_gone(mark)
    assert igrpo("verify", run).code == 0


@pytest.mark.slow
@pytest.mark.skipif(not vllm_fits("auto"), reason="needs vLLM in a build for this machine")
def test_each_rank_has_a_vllm_engine_of_its_own(tmp_path):
    vllm = ("engine.name=vllm", "engine.max_num_seqs=6", "engine.kv_cache_memory_bytes=268435456")
    run = make_run(tmp_path / "run", *vllm, "run.num_shards=2", "engine.enforce_eager=true")
    code, stdout, stderr = launch(2, "run", run, "--json")
    assert code == 0, stderr
    assert len(json.loads(stdout)["stages"]) == 8
    assert igrpo("verify", run).code == 0


class OtherRank:
    """A launch in which another rank has claimed some blocks, and finishes them while this one waits."""

    is_first, size = True, 2

    def __init__(self, blocks, finish):
        self.claimed = {f"block {block}" for block in blocks}
        self.finish = finish

    def claim(self, work):
        return not any(work.endswith(block) for block in self.claimed)

    def is_claimed(self, work):
        return not self.claim(work)

    def pause(self):
        self.finish()

    def close(self):
        pass


def test_a_rank_samples_what_is_free_and_waits_for_the_rest(tmp_path, monkeypatch):
    settings = ("run.num_shards=2", "run.num_iterations=1")
    whole, run = make_run(tmp_path / "whole", *settings), make_run(tmp_path / "run", *settings)
    assert igrpo("draft", whole, "--shard", 0, "--take-over").code == 0
    theirs = next((whole / "iteration_0000/draft/.parts").glob("shard-00001*"))
    place = run / theirs.relative_to(whole)
    sampled = []
    write = PartStore.write

    def recorded(store, block, rows, *proposals):
        sampled.append(block)
        write(store, block, rows, *proposals)

    def finish():
        assert sampled == [0, 1], "it waits only when nothing is free"
        shutil.copytree(theirs, place, dirs_exist_ok=True)

    monkeypatch.setattr(PartStore, "write", recorded)
    with open_session(run, [], Console(verbosity=QUIET)) as session:
        session.launch = OtherRank([2, 3], finish)
        report = draft.run(session, StageRequest(0, (0, 1)))
    assert (report.rows, sampled) == (24, [0, 1])
    assert igrpo("draft", whole).code == 0
    assert files_below(run / "iteration_0000") == files_below(whole / "iteration_0000")


def test_a_rank_begins_its_share_of_the_blocks_and_leaves_the_others_to_other_ranks(tmp_path, monkeypatch):
    """An engine that takes everything at once would leave nothing to an engine that starts later."""
    run = make_run(tmp_path / "run", "run.num_shards=2", "run.num_iterations=1", "engine.name=transformers")
    num_waiting = []
    submit = TransformersEngine.submit

    def recorded(engine, *arguments):
        submit(engine, *arguments)
        num_waiting.append(engine.num_unfinished)

    monkeypatch.setattr(TransformersEngine, "has_room", property(lambda engine: True))
    monkeypatch.setattr(TransformersEngine, "submit", recorded)
    with open_session(run, [], Console(verbosity=QUIET)) as session:
        session.launch = OtherRank([], lambda: None)
        draft.run(session, StageRequest(0, (0, 1)))
    assert num_waiting == [1, 2, 2, 2]


@pytest.mark.parametrize("command", [("study", "published"), ("quickstart", "/nowhere/run")])
def test_commands_that_ranks_cannot_share_are_refused(command):
    result = igrpo(*command, env=RANK)
    assert (result.code, f"igrpo {command[0]} does not work under torchrun" in result.stderr) == (2, True)


RANK = {"TORCHELASTIC_RUN_ID": "test", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("engine.tensor_parallel_size=2", "engine.tensor_parallel_size = 2 does not work under torchrun"),
        ("engine.device=cuda:1", "engine.device = cuda:1 does not work under torchrun"),
        ("engine.name=server", 'engine.name = "server" does not work under torchrun'),
    ],
)
def test_what_ranks_cannot_share_is_refused_before_they_join(fresh, setting, message):
    endpoint = ["--endpoint", "http://127.0.0.1:1"] if "server" in setting else []
    result = igrpo("run", fresh, "--set", setting, *endpoint, env=RANK)
    assert result.code == 2
    assert f"error: {message}" in result.stderr
    assert "hint: " in result.stderr
