"""`igrpo update --dry-run` predicts the memory of the update, and the settings that it suggests fit."""

from __future__ import annotations

import json

import pytest

from command_line import igrpo, make_run, sets

LIMIT = 14
"""MiB of a GPU that the step of the tiny policy does not fit into with the settings below."""
SETTINGS = ("update.max_tokens_per_batch=8192", "draft.max_completion_length=100", "refine.max_completion_length=100")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has sampled nothing."""
    return make_run(tmp_path_factory.mktemp("memory") / "run", *SETTINGS)


def test_the_prediction_is_made_before_anything_is_sampled(run):
    result = igrpo("update", run, "--dry-run", "--json", "--device-memory", "1GiB")
    memory = result.json["memory"]
    assert (result.code, memory["fits"], memory["rows_from"], memory["suggestions"]) == (0, True, "settings", [])
    assert memory["peak_bytes"] == sum(memory["account"].values())
    assert memory["peak_bytes"] == max(memory["step_bytes"], memory["publication_bytes"])
    assert memory["disk_bytes"]["policy"] == result.json["plan"]["disk_bytes"]["policy"]
    assert memory["disk_bytes"]["optimizer_state"] == result.json["plan"]["disk_bytes"]["optimizer_state"]
    assert not (run / "iteration_0000").exists()


def test_what_is_suggested_fits(run):
    flags = ("--dry-run", "--json", "--device-memory", f"{LIMIT}MiB")
    memory = igrpo("update", run, *flags).json["memory"]
    assert memory["fits"] is False
    assert memory["suggestions"]
    first = memory["suggestions"][0]
    changes = sets(*(f"{key}={json.dumps(value)}" for key, value in first["set"].items()))
    again = igrpo("update", run, *flags, "--ranks", first["ranks"], *changes).json["memory"]
    assert again["fits"] is True
    # Small tensors in reference cycles count until they are collected.
    assert again["peak_bytes"] == pytest.approx(first["peak_bytes"], rel=1e-3)


def test_a_machine_is_for_dry_runs_only(run):
    result = igrpo("update", run, "--device-memory", "80GiB")
    assert (result.code, "--device-memory 80GiB --dry-run" in result.stderr) == (2, True)
    result = igrpo("update", run, "--dry-run", "--device-memory", "much")
    assert (result.code, "not a size of memory" in result.stderr) == (2, True)
