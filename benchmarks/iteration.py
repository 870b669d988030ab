"""Measure the time of the parts of an iteration, for iGRPO 4 + 4 and GRPO 8 on the same prompts and token limits.

    python benchmarks/iteration.py MODEL [--problems 16] [--repeats 3] [--set SECTION.KEY=VALUE …]

Each side is one process that runs several iterations, like `igrpo run`. The sides alternate and never compute at the
same time. The first iteration, which starts the engine, is left out. Prints a table of seconds. The last line is JSON:
the share of wall time outside sampling and gradient, the time of iGRPO over that of GRPO, and the seconds from the end
of an update to the end of the first sampling step of the next iteration.
"""

from __future__ import annotations

import argparse
import json
import pkgutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIDES = {
    "igrpo": ["draft.num_generations=4", "refine.num_generations=4", "run.num_shards=4"],
    "grpo": ["run.method=grpo", "draft.num_generations=8", "run.num_shards=4"],
}
TIMED = {
    "igrpo_cli.engines.vllm.VllmEngine.submit": "sampling",
    "igrpo_cli.engines.vllm.VllmEngine.step": "sampling",
    "igrpo_cli.engines.vllm.VllmEngine.load_policy": "load policy",
    "igrpo_cli.training.step.PolicyTrainer.step": "gradient",
    "igrpo_cli.pipeline.update_trainer.load_trainer": "restore trainer",
    "igrpo_cli.pipeline.update_artifacts.stage_trainer": "write policy",
    "igrpo_cli.pipeline.update_artifacts.record_policy": "write policy",
    "igrpo_cli.pipeline.update_artifacts._publish": "write policy",
}
"""Timed functions, and the part of an iteration that each belongs to; everything else is `other`."""
PARTS = ("sampling", "gradient", "load policy", "restore trainer", "write policy", "other")


def make_run(arguments: argparse.Namespace, path: Path, side: str) -> Path:
    """Make an empty run for one side."""
    settings = [
        "engine.name=vllm",
        "engine.max_model_len=1024",
        f"run.num_iterations={arguments.repeats + 1}",
        f"data.problems_per_iteration={arguments.problems}",
        "engine.groups_per_block=4",
        f'policy.model="{Path(arguments.model).resolve()}"',
        *SIDES[side],
        *arguments.set,
    ]
    overrides = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "igrpo_cli", "init", str(path), "--preset", "smollm2", "-q", *overrides]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


class Clock:
    """Measures seconds by part with wrapped functions; the time of a nested part is not counted twice."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.first_sampled = 0.0
        self._inner: list[float] = []

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Count the time in `owner.name` as `part`."""
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            self._inner.append(0.0)
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                elapsed = time.perf_counter() - started
                self.seconds[part] += elapsed - self._inner.pop()
                if self._inner:
                    self._inner[-1] += elapsed
                if part == "sampling" and not self.first_sampled:
                    self.first_sampled = time.perf_counter()

        setattr(owner, name, timed)


def measure(run: Path) -> None:
    """Run one iteration per line on stdin, and print the seconds of its parts as JSON."""
    from igrpo_cli.commands.run import run_iteration, unfinished
    from igrpo_cli.pipeline.session import open_session
    from igrpo_cli.ui.console import QUIET, Console

    clock = Clock()
    for path, part in TIMED.items():
        owner, _, name = path.rpartition(".")
        clock.wrap(pkgutil.resolve_name(owner), name, part)
    with open_session(run, [], Console(as_json=True, verbosity=QUIET)) as session:
        for iteration in unfinished(session):
            sys.stdin.readline()
            clock.seconds.clear()
            clock.first_sampled = 0.0
            started = time.perf_counter()
            reports = run_iteration(session, iteration)
            wall = time.perf_counter() - started
            clock.seconds["other"] = wall - sum(clock.seconds.values())
            rows = {report.stage: report.rows for report in reports}
            tokens = sum(report.tokens for report in reports if report.stage != "update")
            first = clock.first_sampled - started
            print(
                json.dumps({"wall": wall, "first": first, "tokens": tokens, "rows": rows, **clock.seconds}), flush=True
            )


def take_turns(runs: dict[str, Path], repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Return the measured iterations of both sides without the first of each."""
    command = [sys.executable, __file__, "--measure"]
    processes = {
        side: subprocess.Popen([*command, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for side, run in runs.items()
    }
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in runs}
    for repeat in range(repeats + 1):
        for side in runs if repeat % 2 == 0 else reversed(runs):
            process = processes[side]
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("next\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"the {side} side ended: exit code {process.wait()}")
            result = json.loads(line)
            print(f"{side} iteration {repeat}: {result['wall']:.1f} s, {result['tokens']:,} tokens sampled")
            if repeat:
                results[side].append(result)
    for process in processes.values():
        process.communicate()
    return results


def print_table(results: dict[str, list[dict[str, Any]]]) -> None:
    """Print the median seconds of each part as Markdown."""
    print(f"\n| part | {' | '.join(f'{side}, s' for side in results)} |\n|{'---|' * (len(results) + 1)}")
    for part in (*PARTS, "wall", "tokens"):
        cells = [f"{statistics.median(one.get(part, 0.0) for one in ones):.2f}" for ones in results.values()]
        print(f"| {part} | {' | '.join(cells)} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="model directory")
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    with tempfile.TemporaryDirectory() as scratch:
        runs = {side: make_run(arguments, Path(scratch) / side, side) for side in SIDES}
        results = take_turns(runs, arguments.repeats)
    print_table(results)
    overhead = [1 - (one["sampling"] + one["gradient"]) / one["wall"] for one in results["igrpo"]]
    ratios = [a["wall"] / b["wall"] for a, b in zip(results["igrpo"], results["grpo"], strict=True)]
    figures = {
        "overhead_share": statistics.median(overhead),
        "igrpo_over_grpo": statistics.median(ratios),
        "reload_s": statistics.median(one["first"] for one in results["igrpo"]),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
