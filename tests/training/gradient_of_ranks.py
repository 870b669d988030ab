"""Computes the gradient of one batch in bfloat16 autocast, with the ranks that torchrun started, and writes it."""

from __future__ import annotations

import sys

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from conftest import CONFIGS, build_group
from igrpo_cli.config.update import UpdateSection
from igrpo_cli.training import logprobs
from igrpo_cli.training.optimizer import trainable_parameters
from igrpo_cli.training.policy import CausalPolicy
from igrpo_cli.training.ranks import full_tensor, joined_ranks
from igrpo_cli.training.step import PolicyTrainer


def write_gradient(path: str) -> None:
    """Write the gradient of eight rows, each of many chunks of the output head."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"], dtype=torch.float32)
    rng = np.random.default_rng(0)
    groups = [build_group(rng, [40, 35, 50, 45], group_id=index, prompt=9) for index in range(8)]
    logprobs.MAX_LOGITS_IN_CHUNK = 4 * 37
    with joined_ranks("gradient") as ranks:
        config = UpdateSection(dtype="bfloat16", max_tokens_per_batch=256, max_grad_norm=1e9)
        trainer = PolicyTrainer(CausalPolicy(model), config, ranks=ranks)
        names = trainable_parameters(trainer.policy.model)
        found = [full_tensor(gradient) for gradient in trainer.gradient(groups)]
        if ranks.is_first:
            save_file(dict(zip(names, found, strict=True)), path)


if __name__ == "__main__":
    write_gradient(*sys.argv[1:])
