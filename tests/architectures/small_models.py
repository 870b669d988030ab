"""Small random models of the causal-LM classes of transformers, and of variants of their configurations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY_SIZE = 64
"""Size of the vocabulary of all models; token ids of tests are between 2 and this."""
MAX_PARAMETERS = 20_000_000
MULTIMODAL = ("mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Multimodal model types without a causal-LM class."""
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "ffn_hidden_size": 48,
    "num_hidden_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "mamba_d_state": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.3,
    "init_std": 0.3,
    "is_decoder": True,
}
"""Applied where a configuration has the name."""

MLA = {"num_key_value_heads": 4}
"""Latent attention has as many heads of keys as of queries."""
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "depth": 1,
    "num_heads": 2,
    "out_hidden_size": 32,
    "embed_dim": 16,
    "mlp_ratio": 1,
    "vision_output_dim": 32,
    "projector_input_dim": 32,
    "projector_output_dim": 32,
    "image_size": 28,
    "patch_size": 14,
}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
CHANGES: dict[str, dict[str, Any]] = {
    "axk1": MLA,
    "axk2": MLA | {"index_topk": 64, "index_head_dim": 16, "index_n_heads": 2},
    "bamba": MAMBA2 | {"attn_layer_indices": [1]},
    **{name: {"logit_scale": 0.5} for name in ("cohere", "cohere2", "cohere2_moe")},
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": MROPE,
            "full_attention": MROPE,
        },
    },
    "cpmant": {"dim_head": 8, "dim_ff": 48},
    "ctrl": {"dff": 48},
    "dbrx": {
        "d_model": 32,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": MLA | {"first_k_dense_replace": 1},
    "deepseek_v3": MLA | {"first_k_dense_replace": 1},
    "deepseek_v32": MLA | {"index_topk": 64, "index_head_dim": 16, "index_n_heads": 2},
    "dots1": {"n_shared_experts": 1},
    "emu3": {
        "vocabulary_map": {"<image>": 3},
        "vq_config": {
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "hidden_size": 32,
            "codebook_size": 16,
            "attn_resolutions": [],
        },
    },
    "falcon_h1": MAMBA2 | {"mamba_d_ssm": 64},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 64,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
    },
    "gemma4_text": {"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8, "global_head_dim": 8},
    "glm4_moe_lite": MLA,
    "glm_moe_dsa": MLA | {"index_topk": 64, "index_head_dim": 16, "index_n_heads": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": MAMBA2 | {"layer_types": ["mamba", "attention"]},
    "inkling_text": {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": MLA
    | {"head_dim": 8, "num_layers": 2, "expert_ffn_hidden_size": 16, "zero_expert_num": 2, "moe_topk": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "minicpm3": MLA | {"initializer_range": 0.05, "dim_model_base": 16},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "moe"],
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "n_groups": 1,
        "chunk_size": 8,
        "moe_shared_expert_intermediate_size": 16,
    },
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_moe_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen2_5_vl_text": {"rope_parameters": MROPE},
    "qwen2_vl_text": {"rope_parameters": MROPE},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "full_attention"],
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "kimi_linear": MLA | {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "local"], "attention_head_size": 8},
    "roc_bert": {
        "shape_vocab_size": 16,
        "pronunciation_vocab_size": 16,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "xlnet": {"d_head": 8, "n_layer": 2, "d_inner": 48},
    "xmod": {"default_language": "en_XX"},
    "youtu": MLA,
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "n_mamba_heads": 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "mamba", "hybrid"],
        "n_mamba_heads": 8,
        "chunk_size": 8,
        "num_key_value_heads": 4,
        "adapter_rank": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""Changes to `SIZES` by model type."""


ROPE = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE = ROPE | {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 5.0, 8.0]}
LLAMA3 = ROPE | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "axk2, top-k below the length": ("axk2", {"index_topk": 4}),
    "deepseek_v32, top-k below the length": ("deepseek_v32", {"index_topk": 4}),
    "deepseek_v4, top-k below the length": ("deepseek_v4", {"index_topk": 4}),
    "doge, window below the length": ("doge", {"keep_window_size": 4}),
    "falcon, alibi": ("falcon", {"alibi": True}),
    "falcon, new decoder": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_h1, lm_head_multiplier 0.5": ("falcon_h1", {"lm_head_multiplier": 0.5}),
    "glm_moe_dsa, top-k below the length": ("glm_moe_dsa", {"index_topk": 4}),
    "granite, logits_scaling 8": ("granite", {"logits_scaling": 8.0}),
    "granitemoe, logits_scaling 8": ("granitemoe", {"logits_scaling": 8.0}),
    "hy_v4, top-k below the length": ("hy_v4", {"index_topk": 4}),
    "llama, dynamic": ("llama", {"rope_parameters": ROPE | {"rope_type": "dynamic"}, "max_position_embeddings": 32}),
    "llama, linear": ("llama", {"rope_parameters": ROPE | {"rope_type": "linear"}}),
    "llama, llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, yarn": ("llama", {"rope_parameters": ROPE | {"rope_type": "yarn"}}),
    "minicpm3, longrope": ("minicpm3", {"rope_parameters": LONGROPE}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "phi3, longrope": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32}),
    "qwen2, window": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "starcoder2, window": ("starcoder2", {"sliding_window": 6}),
}
"""Variants of a model type: its name, and changes to its configuration."""


def model_cases() -> dict[str, Callable[[], PreTrainedConfig]]:
    """Return a function that makes the configuration of each case, by name: all model types, and variants."""
    cases = {name: partial(small_config, name) for name in [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MULTIMODAL]}
    return cases | {name: partial(small_config, kind, **changes) for name, (kind, changes) in VARIANTS.items()}


def small_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """Return a small configuration of a model type."""
    cls = CONFIG_MAPPING[model_type]
    default = cls()
    if "text_config" in default.sub_configs:
        return cls(**_parts(default) | CHANGES.get(model_type, {}) | changes)
    return cls(**_sizes(default) | CHANGES.get(model_type, {}) | changes)


def _sizes(default: PreTrainedConfig) -> dict[str, Any]:
    names = {*default.to_dict(), *type(default).attribute_map}
    window = {"sliding_window": 6} if getattr(default, "sliding_window", None) else {}
    return {name: value for name, value in SIZES.items() if name in names} | window


def _parts(default: PreTrainedConfig) -> dict[str, Any]:
    text = default.get_text_config()
    parts = {"text_config": {**_sizes(text), **CHANGES.get(text.model_type, {})}}
    if (vision := getattr(default, "vision_config", None)) is not None:
        names = {*vision.to_dict(), *type(vision).attribute_map}
        parts["vision_config"] = {name: value for name, value in VISION.items() if name in names}
    return parts
