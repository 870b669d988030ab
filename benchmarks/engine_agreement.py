"""Compare the vLLM engine with transformers on one policy: log-probs of equal completions, accuracy on equal problems.

    python benchmarks/engine_agreement.py MODEL [--problems 64] [--samples 8] [--dtype float32]

Both engines draft the same problems. A transformers forward pass over each completion gives two results: the difference
from the log-probs that vLLM recorded, and a test whether each engine samples tokens with the right frequency. The test
is a z-score: the sum over all tokens of f(sampled token) minus its expectation under the model, divided by the standard
deviation of that sum, once with f = log-prob and once with f = "is the most likely token". For a correct sampler it has
a standard normal distribution. Prints both accuracies with 95 % intervals. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM

from igrpo_cli.algo.estimates import avg_at_k, clustered_interval, paired_difference


def draft(run: Path, arguments: argparse.Namespace, engine: str) -> list[dict[str, Any]]:
    """Return the rows of one draft stage sampled by `engine`."""
    settings = [
        "run.num_iterations=1",
        f'policy.model="{Path(arguments.model).resolve()}"',
        f"data.problems_per_iteration={arguments.problems}",
        f"draft.num_generations={arguments.samples}",
        f"engine.name={engine}",
        f"engine.dtype={arguments.dtype}",
        "engine.max_model_len=512",
    ]
    overrides = [part for setting in settings for part in ("--set", setting)]
    for command in (["init", run, "--preset", "smollm2", *overrides], ["draft", run]):
        line = [sys.executable, "-m", "igrpo_cli", *map(str, command), "-q"]
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    (shard,) = (run / "iteration_0000" / "draft").glob("*.parquet")
    rows: list[dict[str, Any]] = pq.read_table(shard).to_pylist()
    return rows


def recompute(rows: list[dict[str, Any]], model: Any) -> tuple[np.ndarray, dict[str, float]]:
    """Return recorded minus recomputed log-prob of every token, and the z-scores of the token frequencies.

    The draft stage samples at temperature 1 without top-p or top-k.
    """
    differences, surplus, variance = [], Counter[str](), Counter[str]()
    for row in rows:
        prompt, completion = row["prompt_ids"], torch.tensor(row["completion_ids"])
        with torch.no_grad():
            logits_TV = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].double()
        logprobs_TV = logits_TV.log_softmax(-1)
        drawn_T1 = completion[:, None]
        recorded = np.array(row["sampling_logprobs"])
        differences.append(recorded - logprobs_TV.gather(1, drawn_T1)[:, 0].numpy())
        likeliest_TV = (logprobs_TV == logprobs_TV.max(-1, keepdim=True).values).double()
        for name, values_TV in (("logprob_z", logprobs_TV), ("likeliest_z", likeliest_TV)):
            mean_T = (logprobs_TV.exp() * values_TV).sum(-1)
            variance[name] += float(((logprobs_TV.exp() * values_TV**2).sum(-1) - mean_T**2).sum())
            surplus[name] += float((values_TV.gather(1, drawn_T1)[:, 0] - mean_T).sum())
    return np.concatenate(differences), {name: surplus[name] / variance[name] ** 0.5 for name in surplus}


def correct(rows: list[dict[str, Any]], samples: int) -> list[list[float]]:
    """Return the correctness [problems][samples], problems in order."""
    flat = [float(row["verdict"] == "correct") for row in rows]
    return [flat[start : start + samples] for start in range(0, len(flat), samples)]


def main() -> None:
    """Draft with both engines and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model directory")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = {name: draft(Path(scratch) / name, arguments, name) for name in ("vllm", "transformers")}
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype)).eval()
    recomputed = {name: recompute(found, model) for name, found in rows.items()}
    delta = np.abs(recomputed["vllm"][0])
    matrices = {name: correct(found, arguments.samples) for name, found in rows.items()}
    for name, matrix in matrices.items():
        print(f"{name}: accuracy {avg_at_k(matrix):.3f}, 95 % interval {clustered_interval(matrix)}")
        print(f"{name}: tokens drawn against their probabilities, z-scores {recomputed[name][1]}")
    difference = paired_difference(matrices["transformers"], matrices["vllm"])
    figures = {
        "tokens": len(delta),
        "logprob_mean_abs_difference": float(delta.mean()),
        "logprob_max_abs_difference": float(delta.max()),
        "calibration": {name: scores for name, (_, scores) in recomputed.items()},
        "accuracy_difference": difference.difference,
        "accuracy_difference_ci95": difference.ci95,
        "same_completions": sum(
            ours["completion_ids"] == theirs["completion_ids"]
            for ours, theirs in zip(rows["vllm"], rows["transformers"], strict=True)
        ),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
