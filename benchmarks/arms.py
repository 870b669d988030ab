"""Compare three arms of the quickstart with equal rollouts: GRPO 8, iGRPO 4 + 4 as published, iGRPO 4 + 4 on both.

    python benchmarks/arms.py OUTPUT [--seed 0] [--iterations 40] [--every 10]

Makes or continues one run per arm in OUTPUT. Evaluates every tenth policy without and with draft on held-out problems.
Prints Markdown tables: accuracy with 95 % intervals, share of groups with reward variance, copy, fix and break rate.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ARMS = {
    "GRPO 8": ["run.method=grpo", "draft.num_generations=8"],
    "iGRPO 4 + 4, refinements (as published)": ["update.train_on=refinements"],
    "iGRPO 4 + 4, both": ["update.train_on=both"],
}
DIAGNOSTICS = {
    "draft groups with reward variance": "draft/groups_with_gradient",
    "refinement groups with reward variance": "refine/groups_with_gradient",
    "copy rate": "refine/copy_rate",
    "fix rate": "refine/fix_rate",
    "break rate": "refine/break_rate",
}


def igrpo(*arguments: object) -> dict[str, Any]:
    """Run a command of igrpo and return its JSON object."""
    command = [sys.executable, "-m", "igrpo_cli", *map(str, arguments), "-q", "--json"]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return result


def make_arm(run: Path, overrides: list[str], seed: int, iterations: int) -> None:
    """Run all iterations of one arm."""
    sets = [*overrides, f"run.seed={seed}", f"run.num_iterations={iterations}"]
    igrpo("init", run, "--preset", "quickstart", *(part for override in sets for part in ("--set", override)))
    igrpo("run", run)


def accuracy(run: Path, policy: int) -> list[str]:
    """Return the accuracy of one policy without and with draft, as table cells."""
    cells = []
    for flags in ([], ["--with-draft"]):
        figures = igrpo("eval", run, "--bench", "arithmetic", "--iteration", policy, *flags)
        low, high = figures["ci95"]
        cells.append(f"{100 * figures['avg_at_k']:.1f} ({100 * low:.1f}–{100 * high:.1f})")
    return cells


def metric(run: Path, iteration: int, name: str) -> str:
    """Return one metric of an iteration in percent, or a dash if the arm does not have it."""
    rows = pq.read_table(run / f"iteration_{iteration:04d}" / "update" / "metrics.parquet").to_pylist()
    values = [row["value"] for row in rows if row["name"] == name and row["step"] == -1]
    return f"{100 * values[0]:.0f}" if values else "–"


def table(headers: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--every", type=int, default=10)
    options = parser.parse_args()
    policies = range(0, options.iterations + 1, options.every)
    accuracies, diagnostics = [], []
    for number, (arm, overrides) in enumerate(ARMS.items()):
        run = options.output / f"arm-{number}-seed-{options.seed}"
        make_arm(run, overrides, options.seed, options.iterations)
        cells = [accuracy(run, policy) for policy in policies]
        accuracies += [
            [arm, kind, *(cell[row] for cell in cells)] for row, kind in enumerate(("without draft", "with draft"))
        ]
        seen = [min(policy, options.iterations - 1) for policy in policies]
        diagnostics += [
            [arm, label, *(metric(run, iteration, name) for iteration in seen)] for label, name in DIAGNOSTICS.items()
        ]
    headers = [str(policy) for policy in policies]
    print(f"Held-out accuracy in % (95 % interval) by iteration, seed {options.seed}\n")
    print(table(["arm", "prompt", *headers], accuracies))
    print("\nTraining rollouts in % by iteration\n")
    print(table(["arm", "what", *headers], diagnostics))


if __name__ == "__main__":
    main()
