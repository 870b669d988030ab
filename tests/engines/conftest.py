"""Tiny random policies with characters as tokens: a Llama, a Qwen2, a sliding Mistral and a hybrid Nemotron-H."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.nemotron_h import NemotronHConfig

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .?<>/\n[]EOS"
VOCABULARY_SIZE = 64


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Characters as tokens; `[EOS]`, the turn marks, and the single character `$` are special."""
    special = ["[PAD]", "[EOS]", "[USER]", "[BOT]", "$"]
    vocabulary = {token: index for index, token in enumerate([*special, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="[EOS]",
        pad_token="[PAD]",
        chat_template="{% for m in messages %}[USER]{{ m['content'] }}{% endfor %}[BOT]",
    )


def tiny_config(family: str) -> PreTrainedConfig:
    sizes = {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "eos_token_id": 1,
        "bos_token_id": None,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    if family == "llama":
        return LlamaConfig(num_hidden_layers=2, tie_word_embeddings=True, **sizes)
    if family == "qwen2":
        return Qwen2Config(num_hidden_layers=2, tie_word_embeddings=False, **sizes)
    if family == "sliding":
        return MistralConfig(num_hidden_layers=2, sliding_window=8, **sizes)
    # The engine omits the bound of the time step, which plain transformers has in a whole forward pass: so no bound.
    recurrent = {"ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 2, "time_step_min": 1e-9}
    return NemotronHConfig(layers_block_type=["mamba", "attention", "mlp"], head_dim=8, **recurrent, **sizes)


@pytest.fixture(scope="session")
def make_policy(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_policy(family, seed=0)`: the model directory of a random policy, always the same."""
    made: dict[tuple[str, int], Path] = {}

    def make(family: str, seed: int = 0) -> Path:
        if (family, seed) not in made:
            directory = tmp_path_factory.mktemp(f"{family}-{seed}")
            torch.manual_seed(seed)
            AutoModelForCausalLM.from_config(tiny_config(family)).save_pretrained(directory)
            character_tokenizer().save_pretrained(directory)
            made[family, seed] = directory
        return made[family, seed]

    return make
