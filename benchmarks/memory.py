"""Compare the predicted memory of an update with the measured peak of a real step on the CPU.

Each measurement is a process of its own. It imports everything, notes its resident memory (VmRSS), loads the policy and
takes one step, which makes Adam's moments. Then the kernel forgets the peak so far (/proc/self/clear_refs), and the
second step is measured: VmHWM after it minus VmRSS before loading. The C allocator returns memory to the kernel as soon
as it is freed (MALLOC_MMAP_THRESHOLD_), so that gaps in its heap do not count; --gaps counts them.

    python benchmarks/memory.py                       # what settings take for Qwen2.5-7B, from its architecture
    python benchmarks/memory.py models/smollm2 --shape 300:4:128 --shape 100:8:64 --shape 300:4:128:checkpointing
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from igrpo_cli.config.update import PolicySection, UpdateSection
from igrpo_cli.records import TrainingGroup
from igrpo_cli.training.memory import predict_memory
from igrpo_cli.training.policy import load_policy
from igrpo_cli.training.step import PolicyTrainer

MB = 1e6
WITHOUT_GAPS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Settings of glibc under which every tensor of 64 KiB has a mapping of its own."""
QWEN_7B = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
"""The architecture of Qwen2.5-7B."""
RECOMPUTED: dict[str, Any] = {"gradient_checkpointing": True}
WHOLE: dict[str, Any] = {"max_tokens_per_batch": 40_000}
LORA: dict[str, Any] = {"lora_r": 16}
OFFLOADED: dict[str, Any] = {"offload_optimizer": True}
CASES_OF_7B: list[tuple[int, int, dict[str, Any]]] = [
    (8, 8, {**RECOMPUTED, **WHOLE}),
    (4, 8, {**RECOMPUTED, **WHOLE}),
    (8, 8, RECOMPUTED),
    (8, 8, {}),
    (8, 1, RECOMPUTED),
    (4, 1, {**RECOMPUTED, "max_tokens_per_batch": 21_000}),
    (8, 1, {**OFFLOADED, **RECOMPUTED, **WHOLE}),
    (4, 1, {**OFFLOADED, **RECOMPUTED, "max_tokens_per_batch": 21_000}),
    (8, 1, {**OFFLOADED, **RECOMPUTED}),
    (8, 1, {**LORA, **RECOMPUTED, **WHOLE}),
    (4, 1, {**LORA, **RECOMPUTED, "max_tokens_per_batch": 21_000}),
    (8, 1, {**LORA, **RECOMPUTED}),
    (8, 1, LORA),
]
"""Completions of 4,096 tokens after a prompt of 4,600, ranks, and settings of [update]."""


def group_of(shape: str) -> list[TrainingGroup]:
    """Return a group of `prompt:completions:tokens of each`."""
    prompt, completions, tokens = map(int, shape.split(":")[:3])
    generator = np.random.default_rng(0)
    return [
        TrainingGroup(
            stage="refine",
            group_id=0,
            problem_id="problem",
            prompt_ids=generator.integers(0, 1000, prompt),
            temperatures=[1.0] * completions,
            completion_ids=list(generator.integers(0, 1000, (completions, tokens))),
            sampling_logprobs=[np.full(tokens, -1.0, np.float32)] * completions,
            rewards=[0.0] * completions,
            advantages=[1.0, *[-1.0] * (completions - 1)],
            is_masked=[False] * completions,
            max_completion_length=tokens,
        )
    ]


def settings_of(shape: str, dtype: str) -> UpdateSection:
    """Return the settings of a shape; `:checkpointing` at its end recomputes activations."""
    return UpdateSection(
        dtype=dtype, gradient_checkpointing=shape.endswith(":checkpointing"), max_tokens_per_batch=2**20
    )


def measure(model: Path, shape: str, dtype: str) -> dict[str, float]:
    """Return the bytes that the second step of this process takes at its peak, and those before loading."""
    before = _status("VmRSS")
    trainer = PolicyTrainer(load_policy(model, torch.device("cpu")), settings_of(shape, dtype))
    trainer.step(group_of(shape), 1e-6)
    Path("/proc/self/clear_refs").write_text("5")
    trainer.step(group_of(shape), 1e-6)
    return {"peak": _status("VmHWM") - before, "before": before}


def predict(model: Path, shape: str, dtype: str) -> dict[str, Any]:
    """Return the predicted bytes of the same step, by part."""
    found = predict_memory(model, settings_of(shape, dtype), PolicySection(), [group_of(shape)], device_type="cpu")
    return {"peak": sum(found.step.values()), **found.step}


def compare(model: Path, shape: str, dtype: str, *, gaps: bool) -> dict[str, Any]:
    """Return prediction and measurement, each made by a process of its own."""
    results = {}
    env = {**os.environ, **({} if gaps else WITHOUT_GAPS)}
    for kind in ("predict", "measure"):
        command = [sys.executable, __file__, str(model), "--shape", shape, "--dtype", dtype, "--only", kind]
        results[kind] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout)
    return results


def table_of_7b() -> None:
    """Print what settings take for the architecture of Qwen2.5-7B, in GiB of each GPU."""
    print("| completions | ranks | settings | row, tokens | step | publication | peak | at the peak |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "config.json").write_text(json.dumps(QWEN_7B))
        for completions, ranks, settings in CASES_OF_7B:
            group = group_of(f"4600:{completions}:4096")
            found = predict_memory(
                Path(directory),
                UpdateSection(**settings),
                PolicySection(),
                [group * 2],
                device_type="cuda",
                num_ranks=ranks,
                total_groups=64,
            )
            parts = ", ".join(f"{part} {size / 2**30:.1f}" for part, size in found.account.items() if size)
            sizes = [sum(each.values()) / 2**30 for each in (found.step, found.publication)]
            named = ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in settings.items()) or "defaults"
            print(
                f"| {completions} | {ranks} | {named} | {found.row_tokens:,} | {sizes[0]:.1f} | {sizes[1]:.1f} | "
                f"{max(sizes):.1f} | {parts} |",
                flush=True,
            )


def _status(name: str) -> int:
    """Return a size of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Print a line for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="without it: the table of Qwen2.5-7B")
    parser.add_argument("--shape", action="append", default=[], help="prompt:completions:tokens[:checkpointing]")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--gaps", action="store_true", help="also measure the gaps of the C allocator")
    parser.add_argument("--only", choices=("predict", "measure"))
    options = parser.parse_args()
    if options.model is None:
        table_of_7b()
        return
    if options.only:
        function = predict if options.only == "predict" else measure
        print(json.dumps(function(options.model, options.shape[0], options.dtype)))
        return
    print("| prompt : completions : tokens | predicted, MB | measured, MB | predicted / measured |\n|---|---|---|---|")
    for shape in options.shape:
        found = compare(options.model, shape, options.dtype, gaps=options.gaps)
        predicted, measured = (found[kind]["peak"] for kind in ("predict", "measure"))
        print(f"| {shape} | {predicted / MB:,.0f} | {measured / MB:,.0f} | {predicted / measured:.3f} |", flush=True)


if __name__ == "__main__":
    main()
