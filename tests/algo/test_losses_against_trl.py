"""Each objective against TRL's own loss code on the same tensors: the value and its gradient."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from igrpo_cli.algo.losses import SequenceBatch, TokenLogprobs, policy_loss
from igrpo_cli.config.update import PUBLISHED, UpdateSection
from igrpo_cli.training.step import objective_of

grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer", reason="needs TRL: pip install 'igrpo-cli[trl]'")

MAX_LENGTH = 9
LENGTHS = [9, 1, 4, 7, 2, 9, 5, 3]
GROUP_SIZE = 4
CAP = 2.0


def drawn(seed):
    """Padded [B, T] log-probs of policy, old policy, sampler and reference; advantages [B]; mask [B, T]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(LENGTHS), MAX_LENGTH)
    old = -3 * torch.rand(shape, generator=generator, dtype=torch.float64)
    near = [old + 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    mask = torch.arange(MAX_LENGTH)[None] < torch.tensor(LENGTHS)[:, None]
    advantages = torch.randn(len(LENGTHS), generator=generator, dtype=torch.float64)
    return {"policy": near[0], "old": old, "sampling": near[1], "reference": near[2]}, advantages, mask


def loss_of_trl(settings, logprobs, advantages, mask, *, corrected):
    policy = logprobs["policy"].clone().requires_grad_()
    low, high = 1 - settings.epsilon, 1 + settings.epsilon_high
    sequence_level = settings.loss_type == "gspo"
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (policy, torch.zeros_like(policy), None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="sequence" if sequence_level else "token",
        loss_type="grpo" if sequence_level else settings.loss_type,
        beta=settings.beta,
        epsilon_low=1 - low,
        epsilon_high=high if settings.loss_type == "cispo" else high - 1,
        max_completion_length=MAX_LENGTH,
        use_vllm=corrected,
        vllm_importance_sampling_correction=corrected,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, gather_for_metrics=lambda x: x
        ),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        _metrics={"train": defaultdict(list)},
    )
    ids = torch.zeros(mask.shape, dtype=torch.int64)
    weights = torch.exp(logprobs["old"] - logprobs["sampling"]).clamp(max=CAP)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": torch.ones_like(ids[:, :1]),
        "completion_ids": ids,
        "completion_mask": mask.to(torch.float64),
        "advantages": advantages,
        "old_per_token_logps": logprobs["old"],
        "ref_per_token_logps": logprobs["reference"],
        "importance_sampling_ratio": weights,
        "num_items_in_batch": mask.sum(),
    }
    loss = grpo_trainer.GRPOTrainer._compute_loss(trainer, None, inputs)
    (gradient,) = torch.autograd.grad(loss, policy)
    return loss.item(), gradient


def loss_of_ours(settings, logprobs, advantages, mask):
    policy = logprobs["policy"].clone().requires_grad_()
    lengths = mask.sum(1)
    # A completion that TRL masks has no token left, and still counts as a completion.
    sequences = SequenceBatch(
        advantages=advantages,
        num_tokens=torch.tensor(LENGTHS),
        group_sizes=torch.full((len(LENGTHS),), GROUP_SIZE),
        max_lengths=torch.full((len(LENGTHS),), MAX_LENGTH),
        loss_weights=torch.ones(len(LENGTHS)),
        shaping_gammas=torch.zeros(len(LENGTHS)),
        is_masked=lengths == 0,
        num_groups=len(LENGTHS) // GROUP_SIZE,
    )
    flat = {name: values[mask] for name, values in logprobs.items()}
    tokens = TokenLogprobs(
        torch.from_numpy(np.repeat(np.arange(len(LENGTHS)), lengths)),
        policy[mask],
        flat["old"],
        flat["sampling"],
        flat["reference"],
    )
    loss = policy_loss(settings, sequences, tokens).loss
    (gradient,) = torch.autograd.grad(loss, policy)
    return loss.item(), gradient


@pytest.mark.parametrize("masks_truncated", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("corrected", [False, True], ids=["", "corrected"])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("loss_type", PUBLISHED)
def test_value_and_gradient_are_those_of_trl(loss_type, beta, corrected, masks_truncated):
    for seed in range(3):
        logprobs, advantages, mask = drawn(seed)
        if masks_truncated:
            mask = mask & (torch.tensor(LENGTHS) < MAX_LENGTH)[:, None]
        section = UpdateSection(loss_type=loss_type, beta=beta)
        settings = replace(objective_of(section), max_importance_weight=CAP if corrected else None)
        ours, gradient = loss_of_ours(settings, logprobs, advantages, mask)
        theirs, expected = loss_of_trl(settings, logprobs, advantages, mask, corrected=corrected)
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12)
        torch.testing.assert_close(gradient, expected)
