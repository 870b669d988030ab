"""Write a policy of a known architecture with random weights, to measure speed and memory.

    python benchmarks/random_policy.py DIRECTORY [--architecture qwen2.5-1.5b]

The tokenizer is that of the tiny policy; its ids are a subset of the vocabulary.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from igrpo_cli.problems.sources import packaged_data

ARCHITECTURES = {
    "qwen2.5-1.5b": Qwen2Config(
        vocab_size=151_936,
        hidden_size=1_536,
        intermediate_size=8_960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        rope_theta=1_000_000.0,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
    ),
}


def main() -> None:
    """Write the directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="qwen2.5-1.5b")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[arguments.architecture], dtype=torch.bfloat16)
    model.save_pretrained(arguments.directory)
    for file in (packaged_data() / "tiny-policy").glob("tokenizer*"):
        shutil.copyfile(file, arguments.directory / file.name)
    print(f"{arguments.directory}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
