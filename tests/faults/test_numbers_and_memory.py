"""NaN, infinity and missing memory at the k-th step: it is not applied, policy k-1 stays, and a rerun finishes."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_inputs_of_stages import change_file, change_rows, let_come_from

from command_line import ONE_THREAD, files_below, igrpo, make_run
from igrpo_cli.engines.decoding import Decoding
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.training import optimizer
from igrpo_cli.training import step as training_step
from igrpo_cli.training.policy import LogprobModel

MINIBATCHES = 4
THIRD = 3
SETTINGS = ("run.num_iterations=1", f"update.num_minibatches={MINIBATCHES}", "update.max_tokens_per_batch=100000")


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A run with all that its update reads, and a copy in which the update was taken."""
    run = make_run(tmp_path_factory.mktemp("runs") / "sampled", *SETTINGS)
    for stage in ("draft", "select", "refine"):
        assert igrpo(stage, run).code == 0
    updated = shutil.copytree(run, run.with_name("updated"))
    assert igrpo("update", updated).code == 0
    return run, updated


@pytest.fixture
def run(sampled, tmp_path):
    return RunDirectory(shutil.copytree(sampled[0], tmp_path / "run"))


def at_call(number, original, change):
    """`original`, but its `number`-th call returns, or raises, what `change` makes of its result."""
    calls = []

    def called(*arguments, **keywords):
        calls.append(None)
        result = original(*arguments, **keywords)
        return change(result) if len(calls) == number else result

    return called


def bad_loss(value):
    return lambda output: replace(output, loss=output.loss * 0.0 + value)


def bad_logprobs(value):
    return lambda found: (found[0] + value, found[1])


def bad_gradient(value):
    return lambda result: result.clone().fill_(value)


def no_memory(_):
    # The message of torch where the machine, not an accelerator, has no memory.
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


def no_accelerator_memory(_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


FAULTS = {
    "loss NaN": (training_step, "policy_loss", bad_loss(math.nan), "loss is nan in the row that starts with"),
    "loss Inf": (training_step, "policy_loss", bad_loss(math.inf), "loss is inf in the row that starts with"),
    "loss -Inf": (training_step, "policy_loss", bad_loss(-math.inf), "loss is -inf in the row that starts with"),
    "log-probs NaN": (LogprobModel, "forward", bad_logprobs(math.nan), "log-prob of token 0 of"),
    "log-probs -Inf": (LogprobModel, "forward", bad_logprobs(-math.inf), "log-prob of token 0 of"),
    "gradient NaN": (optimizer, "get_total_norm", bad_gradient(math.nan), "gradient norm is nan"),
    "gradient Inf": (optimizer, "get_total_norm", bad_gradient(math.inf), "gradient norm is inf"),
    "memory": (training_step, "policy_loss", no_memory, "no memory for the gradient step"),
    "accelerator": (training_step, "policy_loss", no_accelerator_memory, "no memory for the gradient step"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_step_is_not_applied_and_the_same_command_finishes_as_if_nothing_had_been(sampled, run, monkeypatch, name):
    place, attribute, change, complaint = FAULTS[name]
    before = files_below(run.root)
    with monkeypatch.context() as patch:
        patch.setattr(place, attribute, at_call(THIRD, getattr(place, attribute), change))
        result = igrpo("update", run.root)
    assert result.code == 1, result.stdout
    assert complaint in result.stderr
    assert "hint: lower update." in result.stderr
    assert "Traceback" not in result.stderr
    kept = {path: data for path, data in files_below(run.root).items() if "/." not in path}
    assert kept == before
    assert igrpo("status", run.root, "--json").json["policy"].endswith("policies/0000")
    assert igrpo("verify", run.root).code == 0
    assert igrpo("update", run.root).code == 0
    assert files_below(run.root) == files_below(sampled[1])


def test_memory_that_runs_out_while_sampling_names_the_setting_and_the_same_command_goes_on(sampled, run, monkeypatch):
    shutil.rmtree(run.iteration(0))
    with monkeypatch.context() as patch:
        patch.setattr(Decoding, "step", at_call(9, Decoding.step, no_memory))
        result = igrpo("draft", run.root)
    assert result.code == 1
    assert "no memory for 6 completions at a time" in result.stderr
    assert "hint: lower engine.max_num_seqs" in result.stderr
    assert igrpo("draft", run.root).code == 0
    assert files_below(run.stage(0, "draft")) == files_below(RunDirectory(sampled[1]).stage(0, "draft"))


WITH_LITTLE_MEMORY = """
import importlib, resource, sys
from igrpo_cli.cli.app import main

mebibytes, module, function = int(sys.argv.pop(1)), *sys.argv.pop(1).split(":")
module = importlib.import_module(module)
original = getattr(module, function)

def limited(*arguments):
    in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + (mebibytes << 20), resource.RLIM_INFINITY))
    return original(*arguments)

setattr(module, function, limited)
main(sys.argv[1:])
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="how much is in use is read from /proc")
@pytest.mark.parametrize(
    ("place", "mebibytes"),
    [
        ("igrpo_cli.pipeline.training_groups:read_observations", 16),
        ("igrpo_cli.pipeline.update_steps:groups_with_advantages", 4),
    ],
)
def test_memory_that_really_runs_out_is_an_error_in_words_and_the_same_command_finishes(sampled, run, place, mebibytes):
    command = [sys.executable, "-c", WITH_LITTLE_MEMORY, str(mebibytes), place, "update", str(run.root), "-q"]
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.startswith("error: there is no memory ")
    assert "hint: " in done.stderr
    assert igrpo("verify", run.root).code == 0
    assert igrpo("update", run.root).code == 0
    assert files_below(run.root) == files_below(sampled[1])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_log_probs_of_the_sampler_that_are_no_numbers_are_not_trained_on(run, bad):
    shard = run.shard(0, "refine", 0, 1)
    change_rows(
        shard, lambda rows: [replace(rows[0], sampling_logprobs=[bad, *rows[0].sampling_logprobs[1:]]), *rows[1:]]
    )
    before = files_below(run.root)
    result = igrpo("update", run.root)
    assert result.code == 1
    assert "sample 0 of group 0" in result.stderr or "refine group 0" in result.stderr
    assert files_below(run.root) == before


def test_after_a_first_iteration_its_policy_and_its_optimiser_stay(finished_run, tmp_path, monkeypatch):
    run = RunDirectory(shutil.copytree(finished_run, tmp_path / "run"))
    shutil.rmtree(run.update(1).directory)
    shutil.rmtree(run.policy(2))
    before = files_below(run.root)
    with monkeypatch.context() as patch:
        patch.setattr(training_step, "policy_loss", at_call(1, training_step.policy_loss, bad_loss(math.nan)))
        result = igrpo("update", run.root)
    assert result.code == 1
    assert "loss is nan" in result.stderr
    assert files_below(run.root) == before
    assert igrpo("status", run.root, "--json").json["policy"].endswith("policies/0001")
    assert igrpo("update", run.root).code == 0
    assert files_below(run.root) == files_below(finished_run)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("stage", ["draft", "refine"])
def test_a_reward_that_is_no_number_is_refused_by_name(run, stage, bad):
    shard = run.shard(0, stage, 0, 1)
    table = pq.read_table(shard.data)
    place = table.schema.get_field_index("reward")
    rewards = pa.array([bad, *table["reward"].to_pylist()[1:]], pa.float32())
    change_file(shard, table.set_column(place, table.schema.field(place), rewards))
    if stage == "draft":
        let_come_from(run.shard(0, "select", 0, 1), shard)
    before = files_below(run.root)
    result = igrpo("update", run.root)
    assert result.code == 1, result.stdout
    assert f"{shard.data}" in result.stderr
    assert "reward" in result.stderr
    assert files_below(run.root) == before
    assert igrpo("verify", run.root).code == 1
