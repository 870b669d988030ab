"""Compare one gradient step of a group in igrpo's packed update and TRL's GRPOTrainer, on the same model and tensors.

    python benchmarks/update.py MODEL [--shape 300:8:64-128 …] [--dtype float32] [--repeats 3]

A shape is prompt tokens : number of completions : tokens per completion, evenly spaced in the range. Each measurement
runs in its own process, and the sides alternate. The first step is a warm-up; the result is the median of the other
steps, AdamW included. Memory is the peak resident set of the process (on a GPU: the peak allocation). The roofline is
the FLOPs of the step, every token once, over the speed of a matrix product in the same process. Prints one line of JSON
per shape: medians, and for ratios the median over pairs.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SHAPES = ("300:8:64-128", "600:8:256-256", "64:8:128-128")
LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class Shape:
    """Describes one group: the lengths of its prompt and completions."""

    prompt: int
    lengths: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Parse `prompt:completions:shortest-longest`."""
        prompt, number, lengths = text.split(":")
        shortest, longest = map(int, lengths.split("-"))
        spread = torch.linspace(shortest, longest, int(number)).round().int().tolist()
        return cls(int(prompt), tuple(spread))

    def tensors(self, vocab_size: int) -> tuple[list[int], list[list[int]], list[float]]:
        """Return prompt ids, completion ids and advantages, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        ids = [
            torch.randint(0, vocab_size, (length,), generator=generator).tolist()
            for length in (self.prompt, *self.lengths)
        ]
        advantages = torch.randn(len(self.lengths), generator=generator).tolist()
        return ids[0], ids[1:], advantages


def count_flops(config: Any, num_body_weights: int, shape: Shape) -> float:
    """Return the FLOPs of one step: forward, twice that backward, the prompt once, no padding, only visible keys."""
    completion_tokens = sum(shape.lengths)
    matrices = 2.0 * num_body_weights * (shape.prompt + completion_tokens)
    head = 2.0 * config.hidden_size * config.vocab_size * completion_tokens
    pairs = shape.prompt**2 / 2 + sum(length * shape.prompt + length**2 / 2 for length in shape.lengths)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 4.0 * config.num_hidden_layers * config.num_attention_heads * head_dim * pairs
    return 3.0 * (matrices + head + attention)


def measure_roofline(dtype: torch.dtype, device: torch.device) -> float:
    """Return the GFLOP/s of a matrix product of a size typical for training, the best of several."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        started = time.perf_counter()
        left @ right
        _synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds) / 1e9


def measure_ours(model: Path, shape: Shape, dtype: str, steps: int) -> dict[str, float]:
    """Measure steps of `PolicyTrainer`."""
    from igrpo_cli.config.update import UpdateSection
    from igrpo_cli.devices import find_device
    from igrpo_cli.records import TrainingGroup
    from igrpo_cli.training.policy import load_policy
    from igrpo_cli.training.step import PolicyTrainer

    device = find_device("auto")
    policy = load_policy(model, device)
    # Both sides compute the whole group at once.
    tokens = max(UpdateSection().max_tokens_per_batch, shape.prompt + sum(shape.lengths))
    trainer = PolicyTrainer(policy, UpdateSection(dtype=dtype, max_tokens_per_batch=tokens))  # type: ignore[arg-type]
    prompt_ids, completion_ids, advantages = shape.tensors(policy.vocab_size)
    group = TrainingGroup(
        stage="refine",
        group_id=0,
        problem_id="benchmark",
        prompt_ids=prompt_ids,
        temperatures=[1.0] * len(completion_ids),
        completion_ids=completion_ids,
        sampling_logprobs=[[-1.0] * len(ids) for ids in completion_ids],
        rewards=[0.0] * len(completion_ids),
        advantages=advantages,
        is_masked=[False] * len(completion_ids),
        max_completion_length=max(shape.lengths),
    )
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        trainer.step([group], LEARNING_RATE)
        _synchronize(device)
        seconds.append(time.perf_counter() - started)
    result = {"seconds": statistics.median(seconds[1:]), "gb": _peak_gb(device)}
    config = policy.model.config.get_text_config()
    layers = sum(parameter.numel() for parameter in policy.model.base_model.layers.parameters())
    result["flops"] = count_flops(config, layers, shape)
    result["roofline_gflops"] = measure_roofline(getattr(torch, dtype), device)
    return result


def measure_trl(model: Path, shape: Shape, dtype: str, steps: int, *, with_liger: bool) -> dict[str, float]:
    """Measure steps of `GRPOTrainer.train` on the given tensors instead of sampled ones."""
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    on_gpu = torch.cuda.is_available()
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    prompt_ids, completion_ids, advantages = shape.tensors(len(loaded.get_input_embeddings().weight))
    number, longest = len(completion_ids), max(shape.lengths)
    padded = torch.zeros(number, longest, dtype=torch.int64)
    mask = torch.zeros(number, longest, dtype=torch.int64)
    for row, ids in enumerate(completion_ids):
        padded[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    inputs = {
        "prompt_ids": torch.tensor(prompt_ids).expand(number, -1).contiguous(),
        "prompt_mask": torch.ones(number, shape.prompt, dtype=torch.int64),
        "completion_ids": padded,
        "completion_mask": mask,
        "advantages": torch.tensor(advantages),
        "num_items_in_batch": mask.sum(),
    }

    class OnTheseTensors(GRPOTrainer):  # type: ignore[misc]
        def _prepare_inputs(self, generation_batch: Any) -> Any:
            return {name: tensor.to(self.accelerator.device) for name, tensor in inputs.items()}

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            _synchronize(loaded.device)
            seconds.append(time.perf_counter() - self.started)

    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as output:
        arguments = GRPOConfig(
            output_dir=output,
            per_device_train_batch_size=number,
            num_generations=number,
            max_completion_length=longest,
            gradient_accumulation_steps=1,
            max_steps=steps,
            learning_rate=LEARNING_RATE,
            loss_type="grpo",
            beta=0.0,
            temperature=1.0,
            bf16=dtype == "bfloat16",
            gradient_checkpointing=False,
            use_liger_kernel=with_liger,
            use_cpu=not on_gpu,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = OnTheseTensors(
            model=loaded,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=arguments,
            train_dataset=datasets.Dataset.from_dict({"prompt": ["benchmark"] * 64}),
            processing_class=AutoTokenizer.from_pretrained(model),
            callbacks=[Clock()],
        )
        trainer.train()
    return {"seconds": statistics.median(seconds[1:]), "gb": _peak_gb(loaded.device)}


def in_a_process(side: str, arguments: argparse.Namespace, shape: str) -> dict[str, float]:
    """Make one measurement in a new process."""
    command = [sys.executable, __file__, str(arguments.model), "--measure", side, "--shape", shape]
    command += ["--dtype", arguments.dtype, "--steps", str(arguments.steps)] + ["--liger"] * arguments.liger
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    result: dict[str, float] = json.loads(lines[-1])
    print(f"{shape} {side}: {result['seconds']:.2f} s, {result['gb']:.2f} GB", file=sys.stderr, flush=True)
    return result


def compare(arguments: argparse.Namespace, shape: str) -> dict[str, Any]:
    """Measure both sides alternately and return the result."""
    results: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
    for repeat in range(arguments.repeats):
        for side in ("ours", "trl") if repeat % 2 == 0 else ("trl", "ours"):
            results[side].append(in_a_process(side, arguments, shape))
    pairs = list(zip(results["ours"], results["trl"], strict=True))
    seconds, gigabytes = (
        {side: statistics.median(one[name] for one in ones) for side, ones in results.items()}
        for name in ("seconds", "gb")
    )
    roofline = statistics.median(one["roofline_gflops"] for one in results["ours"])
    flops = results["ours"][0]["flops"]
    return {
        "shape": shape,
        "ours_s": seconds["ours"],
        "trl_s": seconds["trl"],
        "speedup": statistics.median(theirs["seconds"] / ours["seconds"] for ours, theirs in pairs),
        "ours_gb": gigabytes["ours"],
        "trl_gb": gigabytes["trl"],
        "memory_ratio": statistics.median(ours["gb"] / theirs["gb"] for ours, theirs in pairs),
        "tokens_s": sum(Shape.parse(shape).lengths) / seconds["ours"],
        "roofline_gflops": roofline,
        "roofline_share": statistics.median(
            one["flops"] / 1e9 / one["roofline_gflops"] / one["seconds"] for one in results["ours"]
        ),
        "gflops_of_a_step": flops / 1e9,
        "trl_with": "liger" if arguments.liger else "defaults",
        "dtype": arguments.dtype,
    }


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _peak_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model directory")
    parser.add_argument("--shape", action="append", default=[])
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="steps per process; the first is a warm-up")
    parser.add_argument("--liger", action="store_true", help="TRL with Liger's fused kernels")
    parser.add_argument("--measure", choices=("ours", "trl"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        what = (arguments.model, Shape.parse(arguments.shape[0]), arguments.dtype, arguments.steps)
        ours = arguments.measure == "ours"
        print(json.dumps(measure_ours(*what) if ours else measure_trl(*what, with_liger=arguments.liger)))
        return
    for shape in arguments.shape or SHAPES:
        print(json.dumps(compare(arguments, shape)), flush=True)


if __name__ == "__main__":
    main()
