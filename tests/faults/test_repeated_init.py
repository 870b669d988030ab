"""`igrpo init` again: after one that was killed, with other settings or another source, and on a run that is there."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet as pq
import pytest

from command_line import igrpo, sets
from igrpo_cli.problems.sources import model_location
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.policies import read_policy, write_pointer

PACKAGED = model_location("tiny")


def write_problems(path, numbers, words=""):
    rows = [{"problem": f"What is {n} + {n}?{words * n}", "answer": str(2 * n)} for n in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "mine.jsonl"
    write_problems(path, range(5))
    return path


def init(run, source, *overrides):
    settings = sets("data.problems_per_iteration=2", f"data.train={source}", *overrides)
    return igrpo("init", run, "--preset", "arithmetic", "--json", *settings)


def killed(run):
    """What an init that is killed before it writes `run.toml`, the last of its files, leaves behind."""
    (run / "run.toml").unlink()


def rows_of(run):
    return pq.read_table(run / "problems.parquet").num_rows


def test_another_limit_after_an_init_that_was_killed_keeps_the_rows_of_that_limit(tmp_path, source):
    run = tmp_path / "run"
    write_problems(source, range(5), " please" * 5)
    skip = "data.skip_bad_rows=true"
    first = init(run, source, "prompts.max_prompt_length=60", skip)
    assert first.json["problems"] == rows_of(run) < 5
    killed(run)
    again = init(run, source, "prompts.max_prompt_length=512", skip)
    assert again.code == 0, again.stderr
    assert again.json["problems"] == again.json["counts"]["kept"] == rows_of(run) == 5
    assert igrpo("verify", run).code == 0


def test_a_source_that_grew_after_an_init_that_was_killed_is_read_anew(tmp_path, source):
    run = tmp_path / "run"
    assert init(run, source).code == 0
    killed(run)
    write_problems(source, range(20))
    again = init(run, source)
    assert again.code == 0, again.stderr
    assert again.json["problems"] == rows_of(run) == 20
    assert igrpo("verify", run).code == 0


def test_other_data_and_another_model_take_the_place_of_what_an_init_that_was_killed_left(tmp_path, source):
    run, model = tmp_path / "run", tmp_path / "model"
    assert init(run, source).code == 0
    killed(run)
    shutil.copytree(PACKAGED, model)
    config = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(config) + " ")
    write_problems(tmp_path / "others.jsonl", range(7))
    again = init(run, tmp_path / "others.jsonl", f"policy.model={model}")
    assert again.code == 0, again.stderr
    assert again.json["problems"] == rows_of(run) == 7
    assert read_policy(RunDirectory(run), 0).directory == model
    assert igrpo("verify", run).code == 0


def test_a_run_keeps_its_problems_and_says_that_the_source_has_changed(tmp_path, source):
    run = tmp_path / "run"
    assert init(run, source).code == 0
    before = (run / "problems.parquet").read_bytes()
    unchanged = init(run, source)
    assert unchanged.json["problems"] == 5
    assert "has changed" not in unchanged.stderr
    write_problems(source, range(6))
    again = init(run, source)
    assert again.code == 0, again.stderr
    assert again.json["problems"] == again.json["counts"]["kept"] == 5
    assert f"{source} has changed: the run keeps its 5 problems" in again.stderr
    assert (run / "problems.parquet").read_bytes() == before


@pytest.mark.parametrize("harm", ["damaged", "gone"])
def test_problems_that_are_damaged_or_gone_are_made_again_as_verify_says(tmp_path, source, harm):
    run = tmp_path / "run"
    assert init(run, source).code == 0
    problems = run / "problems.parquet"
    before = problems.read_bytes()
    if harm == "damaged":
        problems.write_bytes(before[:100] + bytes([before[100] ^ 1]) + before[101:])
    else:
        problems.unlink()
    refused = igrpo("verify", run, "--json")
    assert refused.code == 1
    assert "--overwrite" not in refused.stdout
    assert "igrpo init" in refused.stdout
    assert igrpo("init", run, "--config", run / "run.toml").code == 0
    assert problems.read_bytes() == before
    assert igrpo("verify", run).code == 0


def test_a_model_that_moved_is_found_at_its_new_place(tmp_path, source):
    run, moved = tmp_path / "run", tmp_path / "moved"
    assert init(run, source).code == 0
    pointer = run / "policies/0000/pointer.json"
    value = json.loads(pointer.read_text())
    shutil.copytree(value["path"], moved)
    write_pointer(RunDirectory(run), value["model"], value["revision"], moved, replace=True)
    shutil.rmtree(moved)
    result = init(run, source)
    assert result.code == 0, result.stderr
    assert json.loads(pointer.read_text()) == value
    assert igrpo("verify", run).code == 0


def test_a_model_that_changed_is_a_conflict_that_names_the_pointer(tmp_path, source):
    run, model = tmp_path / "run", tmp_path / "model"
    shutil.copytree(PACKAGED, model)
    assert init(run, source, f"policy.model={model}").code == 0
    (model / "generation_config.json").write_text("{}")
    result = init(run, source, f"policy.model={model}")
    assert result.code == 4
    assert str(run / "policies/0000/pointer.json") in result.stderr
    assert "--overwrite" not in result.stderr
