"""Which models a run can use: refusals and notes from a configuration alone, and batching from a loaded model."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    LlamaConfig,
    MambaConfig,
    NemotronHConfig,
    Phi3Config,
)
from transformers.models.deepseek_v32 import DeepseekV32Config

from command_line import igrpo, make_run, sets
from igrpo_cli.engines.architectures import UNSUPPORTED, check_architecture, unify
from igrpo_cli.engines.decoding import find_batching
from igrpo_cli.engines.hub import load_causal_lm
from igrpo_cli.engines.transformers import plan_waves
from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.problems.sources import packaged_data
from igrpo_cli.records import SamplingGroup

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 64,
}
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


@pytest.fixture
def directory_of(tmp_path):
    """A directory with a configuration and without weights."""

    def make(config):
        config.save_pretrained(tmp_path)
        return tmp_path

    return make


@pytest.mark.parametrize("model_type", ["bert", "bart", "minimax", "rwkv"])
def test_a_model_type_that_cannot_be_used_is_refused_with_the_reason(tmp_path, model_type):
    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    with pytest.raises(UsageError, match=rf"{model_type} model.*{UNSUPPORTED[model_type]}"):
        check_architecture(tmp_path, None)


@pytest.mark.parametrize("model_type", ["blip", "paligemma", "pix2struct", "udop"])
def test_a_multimodal_type_that_was_not_measured_is_refused(tmp_path, model_type):
    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    with pytest.raises(UsageError, match=f"{model_type} model, which is not a language model that igrpo supports"):
        check_architecture(tmp_path, None)


def test_a_soft_cap_of_the_attention_is_applied(tmp_path):
    config = Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8, intermediate_size=48, attn_logit_softcapping=2.0)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(load_causal_lm(tmp_path, torch.float32)(ids).logits, plain(ids).logits)


def test_a_model_that_is_no_language_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UsageError, match="vit model, which is not a language model"):
        check_architecture(tmp_path, None)


def test_sparse_attention_is_refused_beyond_the_length_at_which_it_is_dense(directory_of):
    directory = directory_of(DeepseekV32Config(index_topk=32, max_position_embeddings=128))
    for limit in (None, 33):
        with pytest.raises(UsageError) as caught:
            check_architecture(directory, limit)
        assert caught.value.hint == "set engine.max_model_len = 32"
    assert check_architecture(directory, 32) == []


def test_rotary_embeddings_that_change_with_the_length_are_noted(directory_of):
    directory = directory_of(Phi3Config(**SIZES, rope_parameters=LONGROPE, original_max_position_embeddings=64))
    (note,) = check_architecture(directory, None)
    assert "longrope change beyond 64 tokens" in note
    assert "engine.max_model_len = 64" in note
    assert check_architecture(directory, 64) == []


def test_a_multimodal_model_says_that_it_is_trained_as_text(directory_of):
    (note,) = check_architecture(directory_of(Gemma3Config()), None)
    assert note.startswith("gemma3 is multimodal: it is trained as text")


def test_init_and_doctor_refuse_a_model_before_anything_is_sampled(tmp_path):
    model = shutil.copytree(packaged_data() / "tiny-policy", tmp_path / "model", ignore=shutil.ignore_patterns("*.py"))
    run = make_run(tmp_path / "run", f"policy.model={model}")
    assert "can be sampled from and trained" in igrpo("doctor", run).stdout
    (model / "config.json").write_text('{"model_type": "rwkv"}')
    for result, code in (
        (igrpo("init", tmp_path / "new", *sets(f"policy.model={model}")), 2),
        (igrpo("doctor", run), 1),
    ):
        assert result.code == code
        assert "rwkv model, which igrpo does not support" in result.stderr
    assert not (tmp_path / "new" / "run.toml").exists()


def random_model(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    unify(model)
    return model


def test_prompts_of_any_lengths_are_decoded_together_where_padding_changes_nothing():
    assert find_batching(random_model(LlamaConfig(**SIZES, intermediate_size=48))) == "any"


def test_only_prompts_of_equal_length_are_decoded_together_where_padding_changes_the_result():
    config = MambaConfig(vocab_size=64, hidden_size=32, state_size=4, num_hidden_layers=2, initializer_range=0.3)
    model = random_model(config)
    model.backbone.register_forward_pre_hook(
        lambda _, inputs, options: (inputs, options | {"attention_mask": None}), with_kwargs=True
    )
    assert find_batching(model) == "equal"


def test_a_cache_that_changes_the_result_is_refused():
    model = random_model(LlamaConfig(**SIZES, intermediate_size=48))
    model.model.layers[0].register_forward_hook(lambda _, __, hidden: hidden * (1 + (hidden.shape[1] == 1)))
    with pytest.raises(IgrpoError, match="computes other log-probs with a cache than without"):
        find_batching(model)


def test_the_time_step_is_the_same_in_prefill_and_decoding():
    config = NemotronHConfig(
        vocab_size=64,
        hidden_size=32,
        layers_block_type=["mamba", "attention"],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        ssm_state_size=4,
        mamba_num_heads=4,
        mamba_head_dim=8,
        n_groups=1,
        chunk_size=8,
        time_step_min=5.0,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with pytest.raises(IgrpoError, match="with a cache"):
        find_batching(model)
    unify(model)
    assert find_batching(model) == "any"


@torch.no_grad()
def test_dynamic_rotary_embeddings_do_not_depend_on_earlier_sequences():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    model = random_model(LlamaConfig(**SIZES, intermediate_size=48, max_position_embeddings=8, rope_parameters=rope))
    ids = torch.arange(2, 42)[None]
    before = model(ids[:, :12], use_cache=False).logits
    model(ids, use_cache=False)
    assert torch.equal(model(ids[:, :12], use_cache=False).logits, before)


def test_a_wave_of_equal_lengths_has_one_length_and_every_group_is_in_a_wave():
    lengths = (3, 5, 3, 4, 5, 3)
    groups = [SamplingGroup(prompt_ids=[2] * length, seeds=[1, 2]) for length in lengths]
    waves = plan_waves(groups, max_num_seqs=4, equal_lengths=True)
    assert [sorted({len(part.prompt_ids) for part in wave}) for wave in waves] == [[3], [3], [4], [5]]
    assert sorted(part.group_index for wave in waves for part in wave) == list(range(len(groups)))
