"""Updates by several processes (gloo, on the CPU): the weights of one, and states that any number of ranks reads."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from command_line import ONE_THREAD, igrpo, make_run, sets
from igrpo_cli.pipeline.update_artifacts import _recorded_states
from igrpo_cli.problems.sources import packaged_data
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.manifest import publish_manifest, read_manifest
from igrpo_cli.training.ranks import Ranks

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
THREE_STEPS = (
    "run.num_iterations=2",
    "update.num_minibatches=3",
    "policy.dtype=float32",
    "update.learning_rate=1e-3",
    "update.lr_scheduler_type=constant",
    # Adam divides by the size of the gradient: where that is rounding and nothing else, weights would differ by whole
    # steps. An epsilon above the rounding lets them differ by as much as the gradients do.
    "update.adam_epsilon=1e-4",
)
NEARLY = {"rtol": 0.0, "atol": 1e-6}


def torchrun(ranks, *arguments):
    command = [*TORCHRUN, str(ranks), "-m", "igrpo_cli", *map(str, arguments)]
    return subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=300)


def updated(run, ranks, *overrides):
    """Run the update of the current iteration with this number of processes."""
    command = ("update", run, "--json", *sets(*overrides))
    result = torchrun(ranks, *command) if ranks > 1 else igrpo(*command)
    assert (result.returncode if ranks > 1 else result.code) == 0, result.stderr
    assert result.stdout.count("\n") == 1, "one of the ranks speaks"
    return run


def weights(run, iteration):
    return load_file(run / f"policies/{iteration:04d}/model.safetensors")


def sampled(run):
    for stage in ("draft", "select", "refine"):
        assert igrpo(stage, run).code == 0
    return run


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A run that is ready for its first update, of three steps."""
    return sampled(make_run(tmp_path_factory.mktemp("ranks") / "run", *THREE_STEPS))


@pytest.fixture(scope="module")
def by_one(ready, tmp_path_factory):
    return updated(shutil.copytree(ready, tmp_path_factory.mktemp("ranks") / "one"), 1)


@pytest.fixture(scope="module")
def by_two(ready, tmp_path_factory):
    return updated(shutil.copytree(ready, tmp_path_factory.mktemp("ranks") / "two"), 2)


@pytest.mark.parametrize("tokens", [1, 60, 4096])
def test_how_the_batch_is_cut_into_rows_changes_nothing(ready, by_one, tmp_path, tokens):
    run = updated(shutil.copytree(ready, tmp_path / "run"), 1, f"update.max_tokens_per_batch={tokens}")
    for name, tensor in weights(run, 1).items():
        torch.testing.assert_close(tensor, weights(by_one, 1)[name], **NEARLY, msg=name)


def test_two_ranks_make_the_weights_of_one(by_one, by_two):
    expected, found = weights(by_one, 1), weights(by_two, 1)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], **NEARLY, msg=name)
    before = load_file(packaged_data() / "tiny-policy/model.safetensors")
    assert not any(torch.equal(found[name], before[name].float()) for name in found)
    assert igrpo("verify", by_two).code == 0


def test_two_ranks_with_their_shards_on_the_host_make_the_weights_of_one(ready, by_one, tmp_path):
    run = updated(shutil.copytree(ready, tmp_path / "run"), 2, "update.offload_optimizer=true")
    for name, tensor in weights(run, 1).items():
        torch.testing.assert_close(tensor, weights(by_one, 1)[name], **NEARLY, msg=name)
    assert igrpo("verify", run).code == 0


def test_each_rank_writes_its_part_of_the_optimizer_state(by_two):
    parts = sorted((by_two / "iteration_0000/update/optimizer").glob("*.safetensors"))
    assert len(parts) == 2
    sizes = [part.stat().st_size for part in parts]
    assert max(sizes) < 0.6 * sum(sizes)


@pytest.fixture(scope="module")
def gradients_in_bfloat16(tmp_path_factory):
    """The gradient of one batch by one process and by two."""
    directory = tmp_path_factory.mktemp("gradients")
    for command, name in (([sys.executable], "one"), ([*TORCHRUN, "2"], "two")):
        arguments = [*command, str(Path(__file__).with_name("gradient_of_ranks.py")), str(directory / name)]
        result = subprocess.run(arguments, env=ONE_THREAD, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
    return load_file(directory / "one"), load_file(directory / "two")


def test_two_ranks_in_bfloat16_have_the_gradient_of_one(gradients_in_bfloat16):
    """Embeddings, output matrix and sums over rows are float32 in both, and products bfloat16.

    The norms of a sharded layer are gathered in bfloat16 with its matrices, so their gradients are rounded once.
    """
    one, two = gradients_in_bfloat16
    for name, gradient in two.items():
        limit = 5e-3 if name.endswith("layernorm.weight") else 1e-5
        assert (gradient - one[name]).norm() < limit * one[name].norm(), name


def record_states(update):
    """Record the optimiser state that is on disk now in the manifest of an update."""
    manifest = read_manifest(update.shard)
    state = update.optimizer.relative_to(update.root).as_posix()
    outputs = [file for file in manifest.outputs if not file.path.startswith(state)]
    outputs += _recorded_states(update, update)
    publish_manifest(update.manifest, replace(manifest, outputs=outputs), replace=True)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_state_of_two_ranks_goes_on_with_any_number_of_them(by_one, by_two, tmp_path, ranks):
    expected = updated(sampled(shutil.copytree(by_one, tmp_path / "one")), 1)
    # The samples of both come from policies that differ in rounding: only the states of the optimiser are compared.
    run = shutil.copytree(expected, tmp_path / "run")
    shutil.rmtree(run / "iteration_0001/update")
    shutil.rmtree(run / "policies/0002")
    shutil.rmtree(run / "iteration_0000/update/optimizer")
    shutil.copytree(by_two / "iteration_0000/update/optimizer", run / "iteration_0000/update/optimizer")
    record_states(RunDirectory(run).update(0))
    updated(run, ranks)
    for name, tensor in weights(run, 2).items():
        torch.testing.assert_close(tensor, weights(expected, 2)[name], **NEARLY, msg=name)


@pytest.mark.slow
def test_a_state_of_one_rank_goes_on_with_two_and_keeps_its_rounded_weights(tmp_path):
    """A policy in bfloat16 continues from its float32 weights in the optimiser state."""
    run = sampled(make_run(tmp_path / "run", "run.num_iterations=2", "policy.dtype=bfloat16"))
    run = sampled(updated(run, 2))
    by_one = updated(shutil.copytree(run, tmp_path / "one"), 1)
    by_two = updated(run, 2)
    for name, tensor in weights(by_two, 2).items():
        torch.testing.assert_close(tensor.float(), weights(by_one, 2)[name].float(), rtol=1e-2, atol=1e-6, msg=name)


def test_a_failing_rank_ends_all_of_them(ready, tmp_path):
    run = shutil.copytree(ready, tmp_path / "run")
    result = torchrun(2, "update", run, *sets("update.num_minibatches=99"))
    assert result.returncode != 0
    assert "update.num_minibatches = 99" in result.stderr
    assert not (run / "iteration_0000/update").exists()


@given(costs=st.lists(st.floats(0.1, 100.0), max_size=30), size=st.integers(2, 5))
def test_every_item_counts_once_and_every_rank_gets_as_many(costs, size):
    dealt = [Ranks(rank, size, torch.device("cpu")).distribute(range(len(costs)), costs) for rank in range(size)]
    assert len({len(items) for items in dealt}) == 1
    assert sorted(item for items in dealt for item, counts in items if counts) == list(range(len(costs)))


def test_rows_are_dealt_by_cost():
    dealt = [Ranks(rank, 2, torch.device("cpu")).distribute("abcd", [6.0, 2.0, 2.0, 2.0]) for rank in (0, 1)]
    assert [[item for item, counts in items if counts] for items in dealt] == [["a"], ["b", "c", "d"]]


def test_a_rank_that_a_scheduler_set_silences_nobody(ready):
    environment = {**ONE_THREAD, "RANK": "3", "WORLD_SIZE": "4"}
    command = [sys.executable, "-m", "igrpo_cli", "run", str(ready), "--dry-run"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "iterations" in result.stdout
