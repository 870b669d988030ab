"""Whole runs on vLLM: the same files whichever way they are made, and each iteration from its own policy."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import torch

from command_line import ONE_THREAD, files_below, igrpo, make_run, sets
from igrpo_cli.engines.factory import vllm_fits
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.manifest import read_manifest
from igrpo_cli.training.step import PolicyTrainer

pytestmark = [
    pytest.mark.skipif(not vllm_fits("auto"), reason="needs vLLM in a build for this machine"),
    pytest.mark.slow,
]

VLLM = (
    "engine.name=vllm",
    "engine.max_num_seqs=16",
    "engine.kv_cache_memory_bytes=268435456",
    "engine.enforce_eager=true",
)
NGRAM = "engine.speculative_config={num_speculative_tokens = 3, prompt_lookup_max = 3, prompt_lookup_min = 1}"
SPECULATIVE = (*VLLM, NGRAM, "run.num_shards=2", "run.num_iterations=1", "engine.groups_per_block=1")
FORCED = 7
"""The token that the update of the last test makes the only likely one."""


@pytest.fixture(scope="module")
def vllm_run(tmp_path_factory):
    """One iteration in a single process, its four shards overlapping."""
    run = make_run(tmp_path_factory.mktemp("runs") / "vllm", *VLLM, "run.num_shards=4", "run.num_iterations=1")
    result = igrpo("run", run)
    assert result.code == 0, result.stderr
    return run


def test_the_single_commands_make_the_same_files_as_a_run(vllm_run, tmp_path):
    run = make_run(tmp_path / "run", *VLLM, "run.num_shards=4", "run.num_iterations=1")
    for stage in ("draft", "select", "refine", "update"):
        result = igrpo(stage, run, "--iteration", 0)
        assert result.code == 0, result.stderr
    assert files_below(run) == files_below(vllm_run)
    assert igrpo("verify", run).code == 0


def test_a_lost_shard_comes_back_as_it_was(vllm_run, tmp_path):
    lost = vllm_run / "iteration_0000/refine/shard-00002-of-00004.parquet"
    before = lost.read_bytes()
    lost.unlink()
    assert igrpo("refine", vllm_run, "--iteration", 0).code == 0
    assert lost.read_bytes() == before


@pytest.fixture(scope="module")
def speculative_run(tmp_path_factory):
    """One iteration with speculative decoding in a single process."""
    run = make_run(tmp_path_factory.mktemp("runs") / "speculative", *SPECULATIVE)
    result = igrpo("run", run)
    assert result.code == 0, result.stderr
    return run


def test_a_stage_with_speculative_decoding_that_is_killed_ends_with_the_same_files(speculative_run, tmp_path):
    run = make_run(tmp_path / "run", *SPECULATIVE)
    kill_in_the_middle(run, "draft")
    assert 0 < len(list(run.glob("iteration_0000/draft/.parts/*/*.parquet"))) < 8
    for stage in ("draft", "select"):
        assert igrpo(stage, run, "--iteration", 0).code == 0
    kill_in_the_middle(run, "refine")
    for stage in ("refine", "update"):
        result = igrpo(stage, run, "--iteration", 0)
        assert result.code == 0, result.stderr
    found, expected = files_below(run), files_below(speculative_run)
    assert [name for name in expected if found.get(name) != expected[name]] == []
    for stage in ("draft", "refine"):
        assert proposals(run, stage) == proposals(speculative_run, stage)
    assert igrpo("verify", run).code == 0


def test_the_proposals_are_in_the_manifest_and_in_the_report(speculative_run):
    proposed, accepted = proposals(speculative_run, "refine")
    assert 0 < accepted < proposed
    report = igrpo("refine", speculative_run, "--iteration", 0, "--json").json
    assert (report["proposed_tokens"], report["accepted_tokens"]) == (proposed, accepted)


def test_what_was_sampled_without_speculative_decoding_conflicts_with_it(speculative_run):
    result = igrpo("refine", speculative_run, "--iteration", 0, *sets("engine.speculative_config={}"))
    assert result.code == 4
    assert "engine.speculative_config" in result.stderr
    assert igrpo("refine", speculative_run, "--iteration", 0, *sets("engine.name=transformers")).code == 2


def kill_in_the_middle(run, stage):
    """Kill a stage when its first block is kept."""
    command = [sys.executable, "-m", "igrpo_cli", stage, str(run), "--iteration", "0", "-q"]
    process = subprocess.Popen(command, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(run.glob(f"iteration_0000/{stage}/.parts/*/*.parquet")):
        time.sleep(0.0005)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def proposals(run, stage):
    """The numbers of proposed and accepted tokens in all manifests of a stage."""
    manifests = [read_manifest(path) for path in RunDirectory(run).shards(0, stage, 2)]
    return tuple(sum(each.counts[f"{name}_tokens"] for each in manifests) for name in ("proposed", "accepted"))


def test_an_update_that_forces_a_token_changes_what_is_sampled_next(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", *VLLM)
    step = PolicyTrainer.step

    def force(trainer, *arguments):
        """The real step, and then weights of which every logit but one is the same."""
        result = step(trainer, *arguments)
        with torch.no_grad():
            for name, weight in trainer.policy.model.named_parameters():
                weight.fill_(0.0 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0)
                if name.endswith("embed_tokens.weight"):
                    weight[FORCED] = 3.0
        return result

    monkeypatch.setattr(PolicyTrainer, "step", force)
    result = igrpo("run", run, *sets("draft.max_completion_length=8", "refine.max_completion_length=8"))
    assert result.code == 0, result.stderr
    assert tokens(run, 0) != {FORCED}
    assert tokens(run, 1) == {FORCED}


def tokens(run, iteration):
    (shard,) = (run / f"iteration_{iteration:04d}/draft").glob("*.parquet")
    return {token for row in pq.read_table(shard)["completion_ids"].to_pylist() for token in row}
