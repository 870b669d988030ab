"""What a command that was killed left half written goes with the next command that works in the same place."""

from __future__ import annotations

import os
import shutil

import pytest

from command_line import igrpo
from igrpo_cli.store.temporaries import is_temporary, temporary_name


@pytest.fixture
def run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def leave(directory, final_name, policy=False):
    """A temporary of a writer that is dead."""
    path = directory / temporary_name(final_name).replace(f"-{os.getpid()}-", "-999999999-")
    path.parent.mkdir(parents=True, exist_ok=True)
    if policy:
        path.mkdir()
        path = path / "model.safetensors"
    path.write_bytes(b"half")


def leftovers(run):
    return [path for path in run.rglob("*") if is_temporary(path.name)]


def test_an_update_clears_away_policies_and_optimiser_states_that_were_being_withdrawn(run):
    leave(run / "policies", "0001", policy=True)
    leave(run / "iteration_0000", "update", policy=True)
    leave(run / "iteration_0000/update", "policy", policy=True)
    assert igrpo("update", run, "--iteration", 0).code == 0
    assert leftovers(run) == []


def test_a_report_clears_away_what_an_earlier_one_left_beside_it_and_among_its_figures(run):
    leave(run, "report.html")
    leave(run / "report", "reward.png")
    result = igrpo("report", run, "--png")
    assert result.code == 0, result.stderr
    assert leftovers(run) == []


def test_an_evaluation_clears_away_problems_and_summaries(run):
    evaluation = ("eval", run, "--bench", "arithmetic", "--samples", 1, "--set", "eval.limit=2")
    assert igrpo(*evaluation).code == 0
    (place,) = (run / "eval/arithmetic").glob("policy_*")
    leave(run / "eval/arithmetic", "problems.parquet")
    leave(place, "summary.json")
    assert igrpo(*evaluation).code == 0
    assert leftovers(run) == []


def test_a_tracker_clears_away_what_it_was_writing_of_what_it_has_sent(run):
    from igrpo_cli.loggers.entries import SentEntries

    leave(run / "log", "trackio.json")
    sent = SentEntries(run / "log" / "trackio.json")
    sent.add("iteration_0000/update")
    sent.save()
    assert leftovers(run) == []
