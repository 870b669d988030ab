"""Checks of the architecture and the weights when a policy is loaded."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, Gemma3Config, Qwen2Config, Qwen2ForCausalLM

from igrpo_cli.errors import DamagedFileError, IgrpoError, MissingInputError, UsageError
from igrpo_cli.training.policy import CausalPolicy, load_policy

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "shares"),
    [("llama", True), ("qwen2", True), ("qwen3", True), ("mistral", False), ("mamba", False), ("nemotron-h", False)],
)
def test_architectures_that_share_prompts(make_model, name, shares):
    assert CausalPolicy(make_model(name)).shares_prompts is shares


def test_a_sliding_window_in_use_keeps_prompts_apart():
    config = Qwen2Config(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=64,
        max_window_layers=1,
    )
    assert not CausalPolicy(Qwen2ForCausalLM(config)).shares_prompts


def test_a_model_that_looks_past_its_mask_is_found_out(make_model):
    model = make_model()
    model.model.layers[0].register_forward_hook(lambda _, __, hidden: hidden + hidden.cumsum(1))
    assert not CausalPolicy(model).shares_prompts


def test_eager_attention_adds_its_mask_and_cannot_take_a_boolean_one(make_model):
    model = make_model()
    model.set_attn_implementation("eager")
    assert not CausalPolicy(model).shares_prompts


def test_logits_that_the_head_cannot_reproduce_are_refused(make_model):
    model = make_model()
    model.lm_head.register_forward_hook(lambda _, __, logits: logits * 2)
    with pytest.raises(IgrpoError, match="LlamaForCausalLM computes its logits"):
        CausalPolicy(model)


def test_the_scale_of_the_logits_is_found(make_model):
    assert CausalPolicy(make_model("granite")).logprobs.logit_scale == 1 / 8


def test_a_multimodal_model_is_trained_as_text():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 16, "num_key_value_heads": 1, "head_dim": 8}
    config = Gemma3Config(text_config=text, vision_config=sizes | {"image_size": 28, "patch_size": 14})
    model = CausalPolicy(AutoModelForImageTextToText.from_config(config, dtype=torch.float32)).model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "language_model" in name}
    assert {name.split(".")[1] for name, _ in model.named_parameters()} > {"language_model", "vision_tower"}


def test_weights_that_are_no_numbers_are_refused_by_name(make_model):
    model = make_model()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(IgrpoError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        CausalPolicy(model)


def test_a_bfloat16_directory_is_loaded_into_float32(make_model, tmp_path):
    make_model().to(torch.bfloat16).save_pretrained(tmp_path)
    policy = load_policy(tmp_path, CPU)
    assert {parameter.dtype for parameter in policy.model.parameters()} == {torch.float32}
    assert not policy.model.training


def test_a_directory_without_a_model_is_a_missing_input(tmp_path):
    with pytest.raises(MissingInputError, match="is not a model directory: it has no config"):
        load_policy(tmp_path, CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, name: tensors.pop(name), r"asks for 1 tensors that are not in model\.safetensors, {} first"),
        (
            lambda tensors, name: tensors.update({name: tensors[name][1:].clone()}),
            r"asks for 1 tensors that have another shape in model\.safetensors, {} first",
        ),
        (
            lambda tensors, name: tensors.update({f"{name}.old": tensors[name].clone()}),
            r"holds 1 tensors that config\.json does not ask for, {}\.old first",
        ),
    ],
    ids=["missing", "another shape", "unexpected"],
)
def test_the_trainer_refuses_weights_that_are_not_those_of_the_config(make_model, tmp_path, change, message):
    make_model().save_pretrained(tmp_path)
    tensors, name = load_file(tmp_path / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    change(tensors, name)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DamagedFileError, match=message.format(re.escape(name))):
        load_policy(tmp_path, CPU)


def test_recomputing_layers_is_refused_where_there_are_none(make_model):
    policy = CausalPolicy(make_model("mamba"))
    policy.model = torch.nn.Linear(1, 1)
    with pytest.raises(UsageError, match="Linear cannot recompute"):
        policy.checkpoint_layers()
