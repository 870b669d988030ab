"""Tiny random models of several architectures, and groups with all kinds of lengths."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    NemotronHConfig,
    Qwen2Config,
    Qwen3Config,
)

from igrpo_cli.records import TrainingGroup

VOCAB = 37
SIZE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZE, tie_word_embeddings=True),
    "llama with heads of 16": LlamaConfig(**SIZE | {"hidden_size": 64}),
    "qwen2": Qwen2Config(**SIZE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZE, head_dim=8, tie_word_embeddings=False),
    "mistral": MistralConfig(**SIZE, sliding_window=4),
    "mamba": MambaConfig(vocab_size=VOCAB, hidden_size=32, state_size=4, num_hidden_layers=2),
    "nemotron-h": NemotronHConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        layers_block_type=["mamba", "attention", "moe"],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        ssm_state_size=4,
        mamba_num_heads=4,
        mamba_head_dim=8,
        n_groups=1,
        chunk_size=8,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16,
        initializer_range=0.3,
    ),
    "granite": GraniteConfig(**SIZE, logits_scaling=8.0),
}


@pytest.fixture(scope="session")
def built_models():
    """One model of each architecture with random weights. Tests train copies of them."""
    models = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(7)
        models[name] = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return models


@pytest.fixture
def make_model(built_models):
    """A copy of the model of an architecture, with the same weights each time."""
    return lambda name="llama": copy.deepcopy(built_models[name])


def build_group(rng, lengths, *, group_id=0, stage="refine", prompt=6, temperature=0.7, advantages=None):
    drawn = rng.normal(size=len(lengths)) if advantages is None else advantages
    return TrainingGroup(
        stage=stage,
        group_id=group_id,
        problem_id=f"problem-{group_id}",
        prompt_ids=rng.integers(0, VOCAB, prompt).tolist(),
        temperatures=temperature if isinstance(temperature, list) else [temperature] * len(lengths),
        completion_ids=[rng.integers(0, VOCAB, length).tolist() for length in lengths],
        sampling_logprobs=[(-rng.random(length)).tolist() for length in lengths],
        rewards=[0.0] * len(lengths),
        advantages=list(drawn),
        is_masked=[False] * len(lengths),
        max_completion_length=1000,
    )


@pytest.fixture
def make_group():
    """`make_group([3, 1], seed=0, …)`: a group with completions of these lengths."""
    return lambda lengths, seed=0, **fields: build_group(np.random.default_rng(seed), lengths, **fields)


@pytest.fixture
def groups(make_group):
    """Unequal lengths, one-token and empty completions, groups of unequal size, both stages."""
    return [
        make_group([5, 1, 0, 9], seed=1, group_id=0),
        make_group([1], seed=2, group_id=1, prompt=1, stage="draft", temperature=1.0),
        make_group([4, 7, 2], seed=3, group_id=2, prompt=11),
        make_group([3, 3], seed=4, group_id=3, stage="draft", temperature=[0.7, 1.3]),
    ]
