"""Train a small policy: a Llama with about a million parameters and one token per character.

Used by the `make_policy.py` of each policy, which says how demonstrations are drawn.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from demonstrations import Demonstration, user_turn_with_draft
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
SPECIAL_TOKENS = ("<|pad|>", "<|unk|>", "<|end|>", "<|user|>", "<|assistant|>")
WORDS = ("<think>", "</think>", "<answer>", "</answer>", "[draft]", "[/draft]")
CHARACTERS = ("\n", *(chr(code) for code in range(32, 127)))
CONTEXT_LENGTH = 512
WARMUP_STEPS = 50


@dataclass(frozen=True)
class Task:
    """What a policy learns."""

    draw_batch: Callable[[random.Random, int], list[Demonstration]]
    """Draws this number of demonstrations."""
    test_problems: Path
    """JSON lines with `problem` and `answer`, a non-negative integer."""
    max_completion_length: int
    steps: int = 600
    batch_size: int = 128
    learning_rate: float = 2e-3
    hidden_size: int = 128
    num_layers: int = 4
    num_threads: int = 2
    """Fixed, because the order of floating-point sums depends on it."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with a token for each printable ASCII character and for the six words of the format."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *WORDS, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    pieces = Regex("|".join(re.escape(word) for word in WORDS) + r"|[\s\S]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT_LENGTH,
        padding_side="left",
    )
    wrapped.chat_template = (HERE / "chat_template.jinja").read_text(encoding="utf-8")
    return wrapped


def build_model(tokenizer: PreTrainedTokenizerFast, task: Task) -> LlamaForCausalLM:
    """Build the model with random weights. A head has 32 dimensions."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=task.hidden_size,
        intermediate_size=3 * task.hidden_size,
        num_hidden_layers=task.num_layers,
        num_attention_heads=task.hidden_size // 32,
        num_key_value_heads=task.hidden_size // 32,
        head_dim=32,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.04,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def render(user: str) -> str:
    """Return the prompt of one user turn, as the chat template renders it."""
    return f"<|user|>{user}<|assistant|>"


def load_module(path: Path) -> ModuleType:
    """Import a script next to the policies, for example `arithmetic/make_problems.py`."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def encode_batch(
    tokenizer: PreTrainedTokenizerFast, demonstrations: list[Demonstration]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return right-padded token ids, and labels that mask the prompt; both [batch, tokens]."""
    prompts = tokenizer([render(row.user) for row in demonstrations])["input_ids"]
    completions = tokenizer([row.completion + "<|end|>" for row in demonstrations])["input_ids"]
    width = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids[row, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
        labels[row, len(prompt) : len(prompt) + len(completion)] = torch.tensor(completion)
    return ids, labels


def batch_gradient(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, demonstrations: list[Demonstration]
) -> float:
    """Add the gradient of the mean token loss, and return this loss in nats per token."""
    # Prompts with draft are several times longer. Separate batches need less padding.
    parts = [[row for row in demonstrations if ("[draft]" in row.user) == drafted] for drafted in (False, True)]
    batches = [encode_batch(tokenizer, part) for part in parts if part]
    num_tokens = sum(int((labels != -100).sum()) for _, labels in batches)
    total = 0.0
    for ids, labels in batches:
        logits = model(input_ids=ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
        (loss / num_tokens).backward()
        total += loss.item()
    return total / num_tokens


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task: Task, steps: int, seed: int) -> None:
    """Train with AdamW, warm-up and a cosine schedule to a tenth, on new demonstrations in every step."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        warmup = min(1.0, (step + 1) / WARMUP_STEPS)
        rate = task.learning_rate * warmup * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = batch_gradient(model, tokenizer, task.draw_batch(rng, task.batch_size))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss:.3f} nats/token", flush=True)


@torch.no_grad()
def sample(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, users: list[str], max_completion_length: int
) -> list[str]:
    """Sample one completion per user turn at temperature 1, without its end token."""
    batch = tokenizer([render(user) for user in users], return_tensors="pt", padding=True)
    output = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=max_completion_length,
        do_sample=True,
        temperature=1.0,
        top_k=0,
    )
    completions = output[:, batch["input_ids"].shape[1] :]
    return tokenizer.batch_decode(completions, skip_special_tokens=True)


def score(completions: list[str], answers: list[str]) -> str:
    """Return the share with the right number in the answer tags, and the share with the right format."""
    found = [re.search(r"<answer>(\d+)</answer>", text) for text in completions]
    right = sum(bool(m) and m.group(1) == answer for m, answer in zip(found, answers, strict=True))
    whole = re.compile(r"<think>[^<]+</think><answer>[^<]+</answer>")
    formed = sum(bool(whole.fullmatch(text)) for text in completions)
    return f"right {100 * right / len(answers):.1f} %, well formed {100 * formed / len(answers):.1f} %"


def evaluate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task: Task) -> None:
    """Print accuracy and format on the test problems, without and with draft."""
    rows = [json.loads(line) for line in task.test_problems.read_text(encoding="utf-8").splitlines()]
    problems, answers = [row["problem"] for row in rows], [row["answer"] for row in rows]
    drafts = sample(model, tokenizer, problems, task.max_completion_length)
    print("without draft:", score(drafts, answers))
    users = [user_turn_with_draft(problem, draft) for problem, draft in zip(problems, drafts, strict=True)]
    print("with draft:   ", score(sample(model, tokenizer, users, task.max_completion_length), answers))


def write_atomically(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Save to a temporary folder next to the output, then move each file, so that no file is ever partial."""
    output.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".policy-", dir=output.parent))
    try:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        for path in sorted(staging.iterdir()):
            path.chmod(0o644)  # safetensors creates files that only their owner can read
            os.replace(path, output / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def make_policy(task: Task, description: str) -> None:
    """Train a policy for `task` and save it, with the settings of the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("output", type=Path, help="model directory; created if it does not exist")
    parser.add_argument(
        "--steps", type=int, default=task.steps, help=f"optimiser steps of {task.batch_size} demonstrations"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(task.num_threads)
    torch.manual_seed(arguments.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, task)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    train(model, tokenizer, task, arguments.steps, arguments.seed)
    model.eval()
    evaluate(model, tokenizer, task)
    write_atomically(model, tokenizer, arguments.output)
