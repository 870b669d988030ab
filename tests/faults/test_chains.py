"""Policies and optimiser states that do not come from what lies before them, and those that a kill left in between."""

from __future__ import annotations

import json
import shutil

import pytest

from command_line import files_below, igrpo, sets
from igrpo_cli.shards.layout import RunDirectory
from igrpo_cli.shards.policies import write_policy_manifest

EVAL = ("--bench", "arithmetic", "--samples", 1, *sets("eval.limit=2", "eval.max_gen_toks=8"))


@pytest.fixture
def run(finished_run, tmp_path):
    return RunDirectory(shutil.copytree(finished_run, tmp_path / "run"))


def make_anew(run: RunDirectory, iteration: int) -> None:
    """Another policy in the place of one of the run, recorded as it should be."""
    place = run.policy(iteration)
    made_from = json.loads((place / "manifest.json").read_text())["made_from"]
    settings = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(settings | {"made": "anew"}))
    write_policy_manifest(place, iteration, made_from)


@pytest.mark.parametrize("command", [("draft", "--iteration", 2), ("update", "--iteration", 2), ("run",), ("eval",)])
def test_a_policy_whose_forebear_was_made_anew_is_not_gone_on_from(run, command):
    run.run_toml.write_text(run.run_toml.read_text().replace("num_iterations = 2", "num_iterations = 3"))
    make_anew(run, 1)
    before = files_below(run.root)
    name, *options = command
    result = igrpo(name, run.root, *options, *(EVAL if name == "eval" else ()))
    assert (result.code, result.stdout) == (4, "")
    assert str(run.policy(2)) in result.stderr
    assert str(run.policy(1)) in result.stderr
    assert "hint: igrpo update --iteration 1 --overwrite" in result.stderr
    assert {name: data for name, data in files_below(run.root).items() if not name.startswith("eval/")} == before


def test_what_was_made_anew_further_back_is_seen_too(run):
    run.run_toml.write_text(run.run_toml.read_text().replace("num_iterations = 2", "num_iterations = 3"))
    made_from = json.loads((run.policy(2) / "manifest.json").read_text())["policy_id"]
    shutil.copytree(run.policy(2), run.policy(3))
    write_policy_manifest(run.policy(3), 3, made_from)
    make_anew(run, 1)
    result = igrpo("eval", run.root, *EVAL)
    assert result.code == 4
    assert str(run.policy(2)) in result.stderr


def test_a_forebear_that_was_removed_to_save_room_stops_nobody(run):
    shutil.rmtree(run.policy(1))
    assert igrpo("eval", run.root, *EVAL).code == 0


def test_the_policy_that_a_kill_left_in_its_update_is_the_one_measured(run):
    shutil.move(run.policy(2), run.update(1).policy)
    missing = ("status", run.root, "--missing", "eval", "--bench", "arithmetic")
    assert igrpo(*missing).stdout == "0\n"
    result = igrpo("eval", run.root, "--json", *EVAL)
    assert result.code == 0, result.stderr
    assert result.json["model"]["name"] == "policy 2"
    assert run.policy(2).is_dir()
    assert not run.update(1).policy.exists()
    assert igrpo(*missing).stdout == ""
    assert igrpo("verify", run.root).code == 0
