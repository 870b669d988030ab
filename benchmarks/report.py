"""Measure `igrpo report` on a long run: wall time, CPU time, peak memory, size of the page.

    python benchmarks/report.py [--iterations 200] [--problems 157] [--samples 8] [--tokens 256] [--shards 4]

Writes a run of this size into a temporary folder, with completions of random words and log-probs; all iterations have
the same rows. A new process then makes the report. The default is half a million rollouts. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa

from igrpo_cli.config.blocks import block_range
from igrpo_cli.records import Metric, Problem, Rollout, Selection
from igrpo_cli.store.completion import commit_shard
from igrpo_cli.store.layout import RunDirectory, ShardPath
from igrpo_cli.store.manifest import DataFile, Identity, Manifest, utc_now
from igrpo_cli.store.rows import table_of
from igrpo_cli.store.schema import ADVANTAGES, METRICS, PROBLEMS, ROLLOUTS, SELECTIONS
from igrpo_cli.store.settings import checksummed_settings
from igrpo_cli.store.tables import write_rows, write_tables

WORDS = [f"{syllable}{number}" for syllable in ("sum", "let", "so", "then", "x", "carry") for number in range(200)]
SHAPE = {"iterations": 200, "problems": 157, "samples": 8, "tokens": 256, "shards": 4}
GROUPS_PER_BLOCK = 16
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_completion_length": 4096}


def rollout(stage: Any, group: int, sample: int, tokens: int, chance: random.Random) -> Rollout:
    """Return a random row with one word per token."""
    is_right = chance.random() < 0.5
    return Rollout(
        iteration=0,
        stage=stage,
        problem_id=f"p{group}",
        group_id=group,
        sample_id=sample,
        draft_sample_id=0 if stage == "refine" else None,
        prompt=f"What is {group} + 1?",
        prompt_ids=list(range(64)),
        completion=" ".join(chance.choices(WORDS, k=tokens)),
        completion_ids=chance.choices(range(50_000), k=tokens),
        sampling_logprobs=[-chance.random() for _ in range(tokens)],
        finish_reason=chance.choice(["stop", "stop", "stop", "length"]),
        seed=sample,
        reward=float(is_right),
        reward_parts={"accuracy": float(is_right), "format": 1.0},
        verdict="correct" if is_right else "wrong",
        extracted_answer=str(group),
    )


def selection(group: int) -> Selection:
    """Return a selection of the first draft of the group."""
    return Selection(0, group, f"p{group}", "condition", group, 0, "a draft", "1", 1.0, 2, 0.5, 0.5)


def publish(path: ShardPath, schema: pa.Schema, blocks: list[pa.Table]) -> None:
    """Publish a shard with the rows of `blocks`, moved to the iteration of the shard."""
    identity = Identity(path.stage, path.iteration, path.shard, path.num_shards, {"run": {"seed": 0}})
    place = schema.get_field_index("iteration")

    def of_iteration(block: pa.Table) -> pa.Table:
        numbers = pa.array([path.iteration] * len(block), pa.int32())
        return block if place < 0 else block.set_column(place, block.schema.field(place), numbers)

    def write(replace: bool) -> DataFile:
        return write_tables(path.data, schema, map(of_iteration, blocks), replace=replace)

    def describe(data: DataFile) -> Manifest:
        sampling = SAMPLING if path.stage in ("draft", "refine") else None
        return Manifest(identity, data, sampling, {}, "host", "cpu", utc_now(), utc_now(), 1.0, 1000, 0.0)

    commit_shard(path, identity, write, describe)


def make_run(root: Path, arguments: argparse.Namespace) -> None:
    """Write a run of the requested size. Its updates contain only metrics and advantages."""
    run, chance = RunDirectory(root), random.Random(0)
    root.mkdir()
    run.run_toml.write_bytes(checksummed_settings(b"[run]\n"))
    groups, samples = range(arguments.problems), range(arguments.samples)
    problems = [Problem(f"p{group}", f"What is {group} + 1?", str(group + 1), f"made:{group}") for group in groups]
    publish(run.problems(), PROBLEMS, [table_of(PROBLEMS, problems)])
    batches = [groups[start : start + GROUPS_PER_BLOCK] for start in range(0, len(groups), GROUPS_PER_BLOCK)]
    selections = [table_of(SELECTIONS, [selection(group) for group in batch]) for batch in batches]
    blocks: dict[str, tuple[pa.Schema, list[pa.Table]]] = {"select": (SELECTIONS, selections)}
    for stage in ("draft", "refine"):
        rows = [[rollout(stage, g, s, arguments.tokens, chance) for g in batch for s in samples] for batch in batches]
        blocks[stage] = (ROLLOUTS, [table_of(ROLLOUTS, block) for block in rows])
    metrics = table_of(METRICS, [Metric(0, -1, "refine/reward_mean", 0.5), Metric(0, 0, "grad_norm", 1.0)])
    advantages = [
        advantage(stage, group, sample) for stage in ("draft", "refine") for group in groups for sample in samples
    ]
    for iteration in range(arguments.iterations):
        for stage, (schema, made) in blocks.items():
            for path in run.shards(iteration, stage, arguments.shards):
                of_shard = block_range(len(made), path.shard, path.num_shards)
                publish(path, schema, made[of_shard.start : of_shard.stop])
        write_rows(run.update(iteration).advantages, ADVANTAGES, [advantages])
        publish(run.update(iteration).shard, METRICS, [metrics])


def advantage(stage: str, group: int, sample: int) -> dict[str, Any]:
    """Return a row of the advantages table."""
    row = {"iteration": 0, "step": 0, "stage": stage, "problem_id": f"p{group}", "group_id": group, "sample_id": sample}
    figures = {"reward": 1.0, "advantage": 0.5, "num_tokens": 4, "old_logprob_mean": -0.5, "policy_entropy_mean": 1.0}
    return row | figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, default in SHAPE.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        make_run(run, arguments)
        command = [sys.executable, "-m", "igrpo_cli", "report", str(run), "--json", "-q"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = {"cpu_seconds": round(used.ru_utime + used.ru_stime, 1), "peak_gib": round(used.ru_maxrss / 2**20, 2)}
    keys = ("iterations", "rollouts", "problems", "bytes", "seconds")
    print(json.dumps({**{key: result[key] for key in keys}, **figures}))


if __name__ == "__main__":
    main()
