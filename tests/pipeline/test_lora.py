"""Runs that train LoRA adapters: what is trained, what is published, and what goes on from it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from command_line import files_below, igrpo, make_run, run_to_end, sets
from igrpo_cli.engines.factory import vllm_fits
from igrpo_cli.problems.sources import packaged_data

peft = pytest.importorskip("peft", reason="needs peft: pip install 'igrpo-cli[lora]'")

TINY = packaged_data() / "tiny-policy"
LORA = ("update.lora_r=4", "update.lora_alpha=8", "update.learning_rate=1e-2", "policy.dtype=float32")
IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_to_end(make_run(tmp_path_factory.mktemp("lora") / "run", *LORA))


def counts(run, iteration):
    return json.loads((run / f"iteration_{iteration:04d}/update/manifest.json").read_text())["counts"]


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_adapters_are_all_that_is_trained(run):
    model = AutoModelForCausalLM.from_pretrained(TINY)
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    assert counts(run, 0)["trainable_parameters"] == sum(4 * (m.in_features + m.out_features) for m in linear)
    before, after = (load_file(path / "model.safetensors") for path in (TINY, run / "policies/0002"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name].float(), after[name])}
    assert changed
    assert all("proj" in name for name in changed), "embeddings and norms stay as they are"


@pytest.mark.parametrize("iteration", [0, 1])
def test_the_published_policy_is_the_base_with_the_adapter_on_it(run, iteration):
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, run / f"iteration_{iteration:04d}/update/adapter")
    published = AutoModelForCausalLM.from_pretrained(run / f"policies/{iteration + 1:04d}", dtype=torch.float32)
    torch.testing.assert_close(logits(published), logits(adapted), rtol=0.0, atol=1e-4)
    assert igrpo("verify", run).code == 0


def test_a_damaged_adapter_is_found(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "run")
    weights = other / "iteration_0000/update/adapter/adapter_model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-3] ^= 1
    weights.write_bytes(damaged)
    result = igrpo("verify", other)
    assert result.code == 1
    assert "adapter_model.safetensors is damaged" in result.stdout + result.stderr


def test_separate_commands_go_on_from_the_adapter_on_disk(run, tmp_path):
    other = make_run(tmp_path / "run", *LORA)
    for _ in range(2):
        for stage in ("draft", "select", "refine", "update"):
            result = igrpo(stage, other)
            assert result.code == 0, result.stderr
    assert files_below(other) == files_below(run)


def test_a_fresh_optimizer_still_goes_on_from_the_adapter(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(other / "iteration_0001/update")
    shutil.rmtree(other / "policies/0002")
    result = igrpo("update", other, *sets("update.optimizer_state=fresh", "update.learning_rate=0"))
    assert result.code == 0, result.stderr
    before, after = (load_file(other / f"policies/{number}/model.safetensors") for number in ("0001", "0002"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_cannot_change_between_adapters_and_all_weights(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(other / "iteration_0001/update")
    shutil.rmtree(other / "policies/0002")
    for setting in ("update.lora_r=0", "update.lora_r=8"):
        result = igrpo("update", other, *sets(setting))
        assert result.code == 4, result.stderr
        assert "another model" in result.stderr


def test_a_layer_that_is_not_there_is_named(tmp_path):
    other = make_run(tmp_path / "run", *LORA, 'update.lora_target_modules=["nothing"]')
    for stage in ("draft", "select", "refine"):
        assert igrpo(stage, other).code == 0
    result = igrpo("update", other)
    assert result.code == 2
    assert "nothing" in result.stderr
    assert "update.lora_target_modules" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(not vllm_fits("auto"), reason="needs vLLM in a build for this machine")
def test_vllm_samples_from_the_merged_policy(tmp_path):
    settings = ("engine.name=vllm", "engine.max_model_len=512", "engine.kv_cache_memory_bytes=268435456")
    other = run_to_end(make_run(tmp_path / "run", *LORA, *settings))
    manifest = json.loads(next((other / "iteration_0001/draft").glob("*.json")).read_text())
    published = json.loads((other / "policies/0001/manifest.json").read_text())
    assert manifest["identity"]["policy"] == published["policy_id"]
    metrics = igrpo("verify", other)
    assert metrics.code == 0, metrics.stderr


def test_tied_embeddings_cannot_have_an_adapter(tmp_path):
    settings = ("run.num_iterations=1", "update.lora_r=4", 'update.lora_target_modules=["embed_tokens"]')
    run = make_run(tmp_path / "run", *settings)
    for stage in ("draft", "select", "refine"):
        assert igrpo(stage, run).code == 0
    result = igrpo("update", run)
    assert result.code == 2
    assert "cannot have adapters on" in result.stderr
