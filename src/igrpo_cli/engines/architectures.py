"""Architectures of transformers: which of them a run can use, and what differs between sampling and training.

`supported_config` needs the configuration of a model only, so that `init` and `doctor` refuse a model before anything
is sampled. Engines and trainers test the loaded model too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from igrpo_cli.errors import IgrpoError, UsageError

_ENCODER = "it is an encoder with a head for masked tokens"
_HALF = "it is the decoder of a model that also needs an encoder"
_STATE = "transformers has no cache for it in which completions of one prompt can share its state"
UNSUPPORTED = {
    **dict.fromkeys(
        (
            *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
            *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta"),
            *("xlm-roberta-xl", "xmod"),
        ),
        _ENCODER,
    ),
    **dict.fromkeys(
        (
            *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "moshi", "musicgen"),
            *("musicgen_melody", "mvp", "pegasus", "plbart", "prophetnet", "trocr", "whisper", "git"),
            *("gemma4_assistant", "gemma4_unified_assistant"),
        ),
        _HALF,
    ),
    **dict.fromkeys(
        ("minimax", "openai-gpt", "qwen4_exp", "qwen4_exp_text", "recurrent_gemma", "rwkv", "xlstm"), _STATE
    ),
    "blt": "it reads bytes in patches, not tokens",
    "cpmant": "it puts tokens of its own in front of the prompt",
    "modernbert-decoder": "it has another layer between the last hidden state and the output matrix",
    "reformer": "its attention hashes tokens at random",
    "xlnet": "its attention is not causal",
}
"""Model types that cannot be sampled from or trained, with the reason."""
_SPARSE = {
    "axk2": "index_topk",
    "deepseek_v32": "index_topk",
    "doge": "keep_window_size",
    "glm_moe_dsa": "index_topk",
    "hy_v4": "index_topk",
}
"""Model types with sparse attention that looks ahead, and the setting that names the tokens up to which it is dense."""

_MULTIMODAL = frozenset({"llava", "mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"})
"""Multimodal model types without a causal-LM class that are exact as language models."""
_LENGTH_DEPENDENT = frozenset({"longrope", "dynamic", "su"})
"""Kinds of rotary embeddings whose factors depend on the length of the sequence."""
_CHANGE_MODEL = "use another model (docs/results/architectures.md lists what works)"


def check_architecture(directory: Path, max_model_len: int | None, *, trust_remote_code: bool = False) -> list[str]:
    """Return what a user should know about the model of a run. Raises UsageError if a run cannot use it.

    `max_model_len` is the limit of the settings; None means the number of positions of the model.
    """
    config = supported_config(directory, trust_remote_code=trust_remote_code)
    require_length(config, directory, max_model_len)
    text, found = config.get_text_config(), []
    if text is not config:
        found.append(f"{config.model_type} is multimodal: it is trained as text, and its other parts stay as they are")
    length = max_model_len or getattr(text, "max_position_embeddings", None) or 0
    for kind, limit in _rotary_limits(config):
        if kind in _LENGTH_DEPENDENT and length > limit:
            found.append(
                f"rotary embeddings of kind {kind} change beyond {limit} tokens, and cached keys keep their factors: "
                "the log-probs of the sampler differ from those of the update in longer sequences; "
                f"engine.max_model_len = {limit} avoids them"
            )
    return found


def supported_config(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """Return the configuration of a model directory. Raises UsageError with the reason if a run cannot use it."""
    model_type = json.loads((directory / "config.json").read_bytes()).get("model_type")
    if (reason := UNSUPPORTED.get(model_type)) is not None:
        raise UsageError(
            f"{directory} is a {model_type} model, which igrpo does not support: {reason}", hint=_CHANGE_MODEL
        )
    config = read_config(directory, trust_remote_code)
    model_class(config, directory)
    return config


def require_length(config: Any, directory: Path, max_model_len: int | None) -> None:
    """Raise UsageError if the model in `directory` is wrong in transformers at the length that a run allows."""
    text = config.get_text_config()
    limit = getattr(text, _SPARSE.get(text.model_type, ""), None)
    length = max_model_len or getattr(text, "max_position_embeddings", None)
    if limit is not None and (length is None or length > limit):
        raise UsageError(
            f"the sparse attention of {directory} looks ahead in transformers beyond {limit} tokens",
            hint=f"set engine.max_model_len = {limit}",
        )


def read_config(directory: Path, trust_remote_code: bool) -> Any:
    """Return the configuration of a model directory. Raises IgrpoError if transformers cannot read it."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code, local_files_only=True)
    except (ValueError, OSError, KeyError, ImportError, TypeError) as error:
        raise IgrpoError(f"{directory / 'config.json'} cannot be read by transformers: {error}") from error


def model_class(config: Any, directory: Path) -> Any:
    """Return the class of transformers that loads a language model with this configuration.

    A multimodal model is loaded whole, so that it is published whole. Raises UsageError if there is no such class.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    classes: tuple[Any, ...] = (AutoModelForImageTextToText, AutoModelForCausalLM)
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return AutoModelForCausalLM
    for each in classes:
        is_language_model = type(config) in AutoModelForCausalLM._model_mapping or config.model_type in _MULTIMODAL
        if is_language_model and type(config) in each._model_mapping:
            return each
    raise UsageError(
        f"{directory} is a {config.model_type} model, which is not a language model that igrpo supports",
        hint=_CHANGE_MODEL,
    )


def has_length_dependent_positions(config: Any) -> bool:
    """Return True if the embedding of a position depends on the length of the sequence."""
    return any(kind in _LENGTH_DEPENDENT for kind, _ in _rotary_limits(config))


def unify(model: Any) -> None:
    """Make a forward pass depend on its tokens alone, and equal to that with a cache.

    Some models with recurrent state (Nemotron-H, Zamba2) bound the time step from below in a whole forward pass, but
    not in single steps. The bound is removed: neither vLLM nor the original code has it. Rotary embeddings of kind
    `dynamic` keep the factors of the longest sequence so far. They are reset before each pass.
    """
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))
        if isinstance(getattr(module, "rope_type", None), str) and "dynamic" in module.rope_type:
            module.register_forward_pre_hook(_reset_rotary)


def _reset_rotary(module: Any, _inputs: Any) -> None:
    module.inv_freq = module.original_inv_freq.to(module.inv_freq.device)
    module.max_seq_len_cached = module.original_max_seq_len


def _rotary_limits(config: Any) -> Iterator[tuple[str, int]]:
    """Yield the kind of each rotary embedding, and the number of positions up to which its factors are constant."""
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    for each in (parameters, *parameters.values()):
        if isinstance(each, dict) and (kind := each.get("rope_type") or each.get("type")) is not None:
            limits = (
                each.get("original_max_position_embeddings"),
                getattr(text, "original_max_position_embeddings", None),
                getattr(text, "max_position_embeddings", None),
            )
            yield str(kind), next((limit for limit in limits if limit), 0)
