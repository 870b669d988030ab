"""Policies and optimiser states survive the disk unchanged, and errors name other or damaged ones."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from igrpo_cli.config.update import UpdateSection
from igrpo_cli.errors import ConflictError, DamagedFileError, IgrpoError, MissingInputError
from igrpo_cli.training.checkpoint import (
    gather_weights,
    load_master_weights,
    load_optimizer,
    save_optimizer,
    save_policy,
    stored_tensors,
    write_policy,
)
from igrpo_cli.training.policy import CausalPolicy, load_policy
from igrpo_cli.training.step import PolicyTrainer

CPU = torch.device("cpu")
RATE = 1e-3


def trainer(policy):
    return PolicyTrainer(policy, UpdateSection(dtype="float32"))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def files(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def source(make_model, tmp_path):
    """A typical policy directory: tokeniser files, custom keys, and files that must not be copied."""
    directory = tmp_path / "source"
    make_model().save_pretrained(directory)
    (directory / "tokenizer.json").write_text('{"version": "1.0"}')
    (directory / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    (directory / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (directory / "manifest.json").write_text("{}")
    (directory / "pytorch_model.bin").write_bytes(b"old weights")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"a_key_of_theirs": 1, "torch_dtype": "float16"}))
    return directory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_saved_policy_loads_as_it_was(make_model, source, tmp_path, dtype, name):
    model = make_model(name)
    model.save_pretrained(source)
    save_policy(model, source, tmp_path / "saved", dtype)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert loaded.dtype == dtype
    assert same(loaded.state_dict(), {key: value.to(dtype) for key, value in model.state_dict().items()})


def test_everything_but_the_weights_comes_from_the_source(make_model, source, tmp_path):
    target = tmp_path / "saved"
    save_policy(make_model(), source, target, torch.bfloat16)
    assert set(files(target)) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
    }
    unchanged = set(files(target)) - {"config.json", "model.safetensors"}
    assert all(files(target)[name] == files(source)[name] for name in unchanged)
    expected = json.loads((source / "config.json").read_text()) | {"dtype": "bfloat16"}
    del expected["torch_dtype"]
    assert json.loads((target / "config.json").read_text()) == expected


def test_a_policy_saved_twice_or_again_from_itself_has_the_same_bytes(make_model, source, tmp_path):
    save_policy(make_model(), source, tmp_path / "one", torch.bfloat16)
    save_policy(make_model(), source, tmp_path / "two", torch.bfloat16)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    again = load_policy(tmp_path / "one", CPU)
    save_policy(again.model, tmp_path / "one", tmp_path / "three", torch.bfloat16)
    assert files(tmp_path / "three") == files(tmp_path / "one")


def test_a_source_without_generation_settings_gets_none(make_model, source, tmp_path):
    (source / "generation_config.json").unlink()
    save_policy(make_model(), source, tmp_path / "saved", torch.bfloat16)
    assert "generation_config.json" not in files(tmp_path / "saved")


def test_generation_settings_that_transformers_calls_invalid_are_kept(source, tmp_path):
    (source / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6, "top_p": 0.9}')
    save_policy(load_policy(source, CPU).model, source, tmp_path / "saved", torch.bfloat16)
    assert files(tmp_path / "saved")["generation_config.json"] == files(source)["generation_config.json"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_never_saved(make_model, source, tmp_path, bad):
    model = make_model()
    model.model.norm.weight.data[3] = bad
    with pytest.raises(IgrpoError, match=r"policy not saved: tensor model\.norm\.weight"):
        save_policy(model, source, tmp_path / "saved", torch.float32)
    assert not (tmp_path / "saved").exists()


def test_a_resumed_float32_run_goes_on_byte_for_byte(make_model, groups, source, tmp_path):
    unbroken = trainer(CausalPolicy(make_model()))
    for _ in range(2):
        unbroken.step(groups, RATE)
    save_policy(unbroken.policy.model, source, tmp_path / "policy", torch.float32)
    save_optimizer(tmp_path / "optimizer", unbroken.optimizer, unbroken.policy.model, with_master_weights=False)
    resumed = trainer(load_policy(tmp_path / "policy", CPU))
    load_optimizer(tmp_path / "optimizer", resumed.optimizer, resumed.policy.model)
    for _ in range(2):
        unbroken.step(groups, RATE)
        resumed.step(groups, RATE)
    assert same(state(resumed.policy.model), state(unbroken.policy.model))


def test_a_resumed_run_with_bfloat16_policies_keeps_what_rounding_would_lose(make_model, groups, source, tmp_path):
    unbroken = trainer(CausalPolicy(make_model()))
    unbroken.step(groups, 1e-6)
    save_policy(unbroken.policy.model, source, tmp_path / "policy", torch.bfloat16)
    save_optimizer(tmp_path / "optimizer", unbroken.optimizer, unbroken.policy.model, with_master_weights=True)
    resumed = trainer(load_policy(tmp_path / "policy", CPU))
    assert not same(state(resumed.policy.model), state(unbroken.policy.model))
    load_master_weights(tmp_path / "optimizer", resumed.policy.model, tmp_path / "policy", torch.bfloat16)
    load_optimizer(tmp_path / "optimizer", resumed.optimizer, resumed.policy.model)
    unbroken.step(groups, 1e-6)
    resumed.step(groups, 1e-6)
    assert same(state(resumed.policy.model), state(unbroken.policy.model))


class TestOptimizerFiles:
    @pytest.fixture
    def saved(self, make_model, groups, tmp_path):
        stepped = trainer(CausalPolicy(make_model()))
        stepped.step(groups, RATE)
        save_optimizer(tmp_path / "optimizer", stepped.optimizer, stepped.policy.model, with_master_weights=True)
        return tmp_path / "optimizer"

    @pytest.fixture
    def fresh(self, make_model):
        return trainer(CausalPolicy(make_model()))

    def test_they_hold_what_they_say(self, saved, fresh):
        adam, master = load_file(saved / "adam.safetensors"), load_file(saved / "master.safetensors")
        names = {name for name, _ in fresh.policy.model.named_parameters()}
        assert set(files(saved)) == {"adam.safetensors", "master.safetensors"}
        assert set(master) == names
        assert set(adam) == {f"{kind}.{name}" for kind in ("exp_avg", "exp_avg_sq") for name in names} | {"step"}
        assert adam["step"].item() == 1

    def load(self, saved, fresh):
        load_optimizer(saved, fresh.optimizer, fresh.policy.model)

    def rewrite(self, path, change):
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    def test_a_missing_parameter_is_named(self, saved, fresh):
        self.rewrite(saved / "adam.safetensors", lambda tensors: tensors.pop("exp_avg.model.norm.weight"))
        with pytest.raises(ConflictError, match=r"only the model has exp_avg\.model\.norm\.weight"):
            self.load(saved, fresh)

    def test_a_foreign_parameter_is_named(self, saved, fresh):
        self.rewrite(saved / "adam.safetensors", lambda tensors: tensors.update(foreign=torch.zeros(1)))
        with pytest.raises(ConflictError, match="only the file has foreign"):
            self.load(saved, fresh)

    def test_another_shape_is_named(self, saved, fresh):
        other = {"exp_avg_sq.model.norm.weight": torch.zeros(5)}
        self.rewrite(saved / "adam.safetensors", lambda tensors: tensors.update(other))
        with pytest.raises(ConflictError, match=r"exp_avg_sq\.model\.norm\.weight has shape \[5\], not \[32\]"):
            self.load(saved, fresh)

    def test_a_truncated_file_is_damaged(self, saved, fresh):
        content = (saved / "adam.safetensors").read_bytes()
        (saved / "adam.safetensors").write_bytes(content[: len(content) // 2])
        with pytest.raises(DamagedFileError, match=r"adam\.safetensors cannot be read"):
            self.load(saved, fresh)

    def test_a_missing_file_says_how_to_go_on(self, saved, fresh):
        (saved / "adam.safetensors").unlink()
        with pytest.raises(MissingInputError) as caught:
            self.load(saved, fresh)
        assert "fresh" in caught.value.hint

    def test_a_refused_state_leaves_the_optimizer_empty(self, saved, fresh):
        self.rewrite(saved / "adam.safetensors", lambda tensors: tensors.pop("step"))
        with pytest.raises(ConflictError):
            self.load(saved, fresh)
        assert not fresh.optimizer.state

    def test_master_weights_of_another_policy_are_refused(self, saved, fresh):
        before = state(fresh.policy.model)
        with pytest.raises(ConflictError, match="does not round to the loaded policy"):
            load_master_weights(saved, fresh.policy.model, saved, torch.bfloat16)
        assert same(state(fresh.policy.model), before)


def test_a_bias_that_chooses_experts_is_published_in_float32(make_model, tmp_path):
    model = make_model("nemotron-h")
    name = next(name for name in model.state_dict() if name.endswith("e_score_correction_bias"))
    model.state_dict()[name].copy_(torch.tensor([0.50001, 0.50002, 0.50003, 0.5]))
    model.save_pretrained(tmp_path / "source")
    save_policy(model, tmp_path / "source", tmp_path / "saved", torch.bfloat16)
    dtypes = {stored.rpartition(".")[2]: dtype for stored, (dtype, _) in stored_tensors(tmp_path / "saved").items()}
    assert dtypes["e_score_correction_bias"] == "F32"
    assert dtypes["A_log"] == dtypes["weight"] == "BF16"
    assert torch.equal(load_policy(tmp_path / "saved", CPU).model.state_dict()[name], model.state_dict()[name])


def test_a_weight_that_the_source_has_in_float32_among_others_stays_so(make_model, source, tmp_path):
    model = make_model().to(torch.bfloat16)
    model.model.norm.weight.data = model.model.norm.weight.data.float() + 1e-4
    model.save_pretrained(source)
    save_policy(load_policy(source, CPU).model, source, tmp_path / "saved", torch.bfloat16)
    stored = stored_tensors(tmp_path / "saved")
    assert {name for name, (dtype, _) in stored.items() if dtype == "F32"} == {"model.norm.weight"}
    assert stored == stored_tensors(source)


def test_a_policy_of_other_tensors_than_its_source_is_not_published(make_model, source, tmp_path):
    model = make_model()
    weights = {
        name.replace(".up_proj.", ".up_proj.base_layer."): tensor
        for name, tensor in gather_weights(model, source, torch.float32).items()
    }
    with pytest.raises(IgrpoError, match=r"policy not published.*asks for 2 tensors that are not in"):
        write_policy(model, weights, source, tmp_path / "saved", torch.float32)


def test_there_is_nothing_to_save_before_the_first_step(make_model, tmp_path):
    unused = trainer(CausalPolicy(make_model()))
    with pytest.raises(IgrpoError, match="no step has been taken"):
        save_optimizer(tmp_path / "optimizer", unused.optimizer, unused.policy.model, with_master_weights=False)
    assert not (tmp_path / "optimizer").exists()


def test_moments_that_are_no_numbers_are_never_saved(make_model, groups, tmp_path):
    broken = trainer(CausalPolicy(make_model()))
    broken.step(groups, RATE)
    broken.optimizer.state[broken.policy.model.model.norm.weight]["exp_avg"][0] = float("inf")
    with pytest.raises(IgrpoError, match=r"exp_avg\.model\.norm\.weight"):
        save_optimizer(tmp_path / "optimizer", broken.optimizer, broken.policy.model, with_master_weights=False)
    assert not (tmp_path / "optimizer").exists()
