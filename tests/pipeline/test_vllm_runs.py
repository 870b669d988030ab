"""Whole runs on vLLM: the same files whichever way they are made, and each iteration from its own policy."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
import torch

from command_line import files_below, igrpo, make_run, sets
from igrpo_cli.engines.factory import vllm_fits
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
