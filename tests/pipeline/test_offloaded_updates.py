"""Runs whose updates train with the optimiser in host memory: the bytes of a run without, in any order of the two."""

from __future__ import annotations

import pytest

from command_line import files_below, igrpo, make_run, run_to_end

TWO_STEPS = ("update.num_minibatches=2", "update.beta=0.1")
OFFLOADED = "update.offload_optimizer=true"


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    return files_below(run_to_end(make_run(tmp_path_factory.mktemp("runs") / "without", *TWO_STEPS)))


def test_a_run_whose_trainer_stays_in_host_memory(without, tmp_path):
    assert files_below(run_to_end(make_run(tmp_path / "run", *TWO_STEPS, OFFLOADED))) == without


@pytest.mark.parametrize("first", ["true", "false"])
def test_it_can_be_switched_between_iterations(without, tmp_path, first):
    run = make_run(tmp_path / "run", *TWO_STEPS, f"update.offload_optimizer={first}")
    assert igrpo("run", run, "--iterations", 1).code == 0
    other = "false" if first == "true" else "true"
    changed = igrpo("set", run, f"update.offload_optimizer={other}")
    assert changed.code == 0, changed.stderr
    assert files_below(run_to_end(run)) == without


def test_adapters_are_refused(tmp_path):
    result = igrpo("init", tmp_path / "run", "--set", "update.lora_r=4", "--set", OFFLOADED)
    assert result.code == 2
    assert "update.offload_optimizer is for training of all weights" in result.stderr
    assert not (tmp_path / "run").exists()
