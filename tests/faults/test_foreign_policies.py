"""Policies that are damaged, or are none: refused with the name of the file before anything is sampled or trained."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from command_line import files_below, igrpo, sets
from igrpo_cli.problems.sources import packaged_data
from igrpo_cli.store.layout import RunDirectory


@pytest.fixture
def model(tmp_path):
    """A model directory of a test's own."""
    names = shutil.ignore_patterns("*.py")
    return shutil.copytree(packaged_data() / "tiny-policy", tmp_path / "given", ignore=names)


def change_weights(model, change):
    weights = load_file(model / "model.safetensors")
    change(weights)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def cut(name, keep):
    def damage(model):
        (model / name).write_bytes((model / name).read_bytes()[:keep])

    return damage


def write(name, content):
    return lambda model: (model / name).write_bytes(content)


def change_header(model):
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data.replace(b'"F32"', b'"X32"', 1))


def lose_tensor(model):
    change_weights(model, lambda weights: weights.pop("model.norm.weight"))


def reshape_tensor(model):
    change_weights(model, lambda weights: weights.update({"model.norm.weight": torch.ones(64)}))


def make_nan(model):
    change_weights(model, lambda weights: weights["model.norm.weight"].fill_(torch.nan))


def add_tokens(model):
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["another"] = 4000
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))


FAULTS = {
    "weights cut": (cut("model.safetensors", 100_000), "model.safetensors"),
    "weights empty": (write("model.safetensors", b""), "model.safetensors"),
    "header cut": (cut("model.safetensors", 20), "model.safetensors"),
    "header changed": (change_header, "model.safetensors"),
    "pickle under the name": (write("model.safetensors", b"\x80\x04cos\nsystem\n."), "model.safetensors"),
    "pickle beside": (write("pytorch_model.bin", b"\x80\x04cos\nsystem\n."), "pytorch_model.bin"),
    "a tensor is missing": (
        lose_tensor,
        "config.json asks for 1 tensors that are not in model.safetensors, model.norm.weight first",
    ),
    "a tensor of another shape": (
        reshape_tensor,
        "config.json asks for 1 tensors that have another shape in model.safetensors, model.norm.weight",
    ),
    "NaN weights": (make_nan, "model.safetensors holds NaN"),
    "config cut": (cut("config.json", 100), "config.json"),
    "config of another kind": (write("config.json", b"[]"), "config.json"),
    "config of no known model": (write("config.json", b'{"model_type": "nonesuch"}'), "config.json"),
    "tokenizer cut": (cut("tokenizer.json", 1000), "tokenizer.json"),
    "tokenizer of another model": (add_tokens, "tokenizer.json"),
    "generation config cut": (cut("generation_config.json", 10), "generation_config.json"),
    "tokenizer config no JSON": (write("tokenizer_config.json", b"\xff"), "tokenizer_config.json"),
    "template that never ends": (write("chat_template.jinja", b"{% for"), "chat_template.jinja"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_model_that_is_none_is_refused_by_init_or_by_the_first_draft(model, tmp_path, name):
    damage, said = FAULTS[name]
    damage(model)
    run = tmp_path / "run"
    settings = (f"policy.model={json.dumps(str(model))}", "data.problems_per_iteration=1", "reward.num_workers=1")
    result = igrpo("init", run, "--preset", "arithmetic", *sets(*settings))
    if result.code == 0:
        result = igrpo("draft", run, "-q")
        assert not files_below(run / "iteration_0000")
    assert result.code in (1, 3), result.stderr
    assert result.stderr.count("error: ") == 1
    assert str(model) in result.stderr
    assert f"{model}/{said}" in result.stderr


PUBLISHED = {
    "model.safetensors": lambda data: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:],
    "config.json": lambda data: data.replace(b"128", b"129"),
    "tokenizer.json": lambda data: data + b" ",
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("stage", ["draft", "update"])
def test_a_policy_of_the_run_that_changed_is_refused_by_name(finished_run, tmp_path, name, stage):
    run = RunDirectory(shutil.copytree(finished_run, tmp_path / "run"))
    shutil.rmtree(run.policy(2))
    shutil.rmtree(run.iteration(1) / ("update" if stage == "update" else "."))
    file = run.policy(1) / name
    file.write_bytes(PUBLISHED[name](file.read_bytes()))
    result = igrpo(stage, run.root, "--iteration", 1)
    assert result.code == 1
    assert f"{file} has changed since" in result.stderr
    assert f"hint: igrpo update {run.root} --iteration 0 --overwrite" in result.stderr
    assert not (run.iteration(1) / stage).exists() or not list((run.iteration(1) / stage).glob("*.parquet"))
