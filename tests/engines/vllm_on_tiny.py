"""What the tests of vLLM on the tiny policy share: settings, batches, and distributions by transformers."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from igrpo_cli.config.engine import EngineSection
from igrpo_cli.config.sections import SamplingSettings

TINY = Path(__file__).parents[2] / "data" / "tiny-policy"
VLLM = EngineSection(
    name="vllm",
    dtype="float32",
    max_num_seqs=32,
    kv_cache_memory_bytes=256 * 2**20,
    gpu_memory_utilization=0.2,
    enforce_eager=True,
)
PLAIN = SamplingSettings(temperature=1.0, top_p=1.0, top_k=0, max_completion_length=24)
TRUNCATED = SamplingSettings(temperature=0.7, top_p=0.8, top_k=20, max_completion_length=24)
MIN_P = SamplingSettings(temperature=1.3, top_p=0.95, min_p=0.1, max_completion_length=24)
GREEDY = SamplingSettings(temperature=0.0, top_p=1.0, top_k=0, max_completion_length=24)


def sample(engine, groups, settings=PLAIN):
    """One batch, from submission to its return."""
    engine.submit("batch", groups, settings)
    return drain(engine)["batch"]


def drain(engine):
    done = {}
    while engine.num_unfinished:
        done.update(engine.step())
    return done


def distribution(policy, group, completion, settings):
    """Log-probs [T, V] of the tempered and truncated softmax, from one forward pass over the whole sequence."""
    ids = torch.tensor([[*group.prompt_ids, *completion.completion_ids]])
    with torch.no_grad():
        logits_TV = _model(policy)(ids).logits[0, len(group.prompt_ids) - 1 : -1] / settings.temperature
    probs_TV = logits_TV.softmax(-1)
    logits_TV[probs_TV < (settings.min_p or 0.0) * probs_TV.amax(-1, keepdim=True)] = -torch.inf
    if settings.top_k:
        logits_TV[logits_TV < logits_TV.topk(settings.top_k).values[:, -1:]] = -torch.inf
    ordered = logits_TV.softmax(-1).sort(descending=True)
    outside = ordered.values.cumsum(-1) - ordered.values >= settings.top_p
    logits_TV[torch.zeros_like(outside).scatter(1, ordered.indices, outside)] = -torch.inf
    return logits_TV.log_softmax(-1)


@functools.cache
def _model(policy):
    return AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
