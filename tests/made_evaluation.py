"""Evaluations made by hand: what each sample answers, and whether that is right, as shards on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from igrpo_cli.config.blocks import block_range
from igrpo_cli.pipeline.frozen_problems import freeze_problems
from igrpo_cli.pipeline.provenance import Provenance
from igrpo_cli.records import Problem, Rollout, Verdict
from igrpo_cli.store.completion import commit_shard
from igrpo_cli.store.layout import RunDirectory, ShardPath
from igrpo_cli.store.manifest import Identity
from igrpo_cli.store.schema import ROLLOUTS
from igrpo_cli.store.tables import write_rows

POLICY = f"sha256:{'5' * 64}"


def sample(group_id: int, sample_id: int, answer: str, **changes) -> Rollout:
    """A sample that answers `answer`: `!4` is 4 and right, `4` is 4 and wrong, nothing is no answer."""
    verdict: Verdict = "correct" if answer.startswith("!") else "wrong" if answer else "no_answer"
    facts = {
        "iteration": 0,
        "stage": "eval",
        "problem_id": f"p{group_id}",
        "draft_sample_id": None,
        "prompt": "?",
        "prompt_ids": [5],
        "completion": answer.removeprefix("!"),
        "completion_ids": [7, 8],
        "sampling_logprobs": [-0.5, -1.5],
        "finish_reason": "stop",
        "seed": 1,
        "reward": float(verdict == "correct"),
        "reward_parts": {"accuracy": float(verdict == "correct"), "format": 0.0},
        "verdict": verdict,
        "extracted_answer": answer.removeprefix("!") or None,
    }
    return Rollout(**{**facts, "group_id": group_id, "sample_id": sample_id, **changes})


def samples(*groups: Sequence[str], **changes) -> list[Rollout]:
    """The samples of all problems of an evaluation, a sequence of answers for each problem."""
    return [
        sample(group_id, sample_id, answer, **changes)
        for group_id, answers in enumerate(groups)
        for sample_id, answer in enumerate(answers)
    ]


def make_problems(root: Path, bench: str, number: int, answer: str = "4") -> RunDirectory:
    """The frozen problems p0, p1, … of a benchmark, all with the same answer."""
    problems = [Problem(f"p{i}", f"What is {i} + {i}?", answer, f"{bench}.jsonl:{i}") for i in range(number)]
    run = RunDirectory(root)
    freeze_problems(run.eval_problems(bench), problems, {"bench": {"sha256": "3" * 64}}, {"kept": number})
    return run


def make_evaluation(
    run: RunDirectory,
    bench: str,
    policy: int | str,
    *groups: Sequence[str],
    num_shards: int = 1,
    conditioned: str | None = None,
    config: dict[str, dict] | None = None,
) -> list[ShardPath]:
    """An evaluation of a benchmark whose problems are frozen, a block per problem."""
    paths = [run.eval_shard(bench, policy, shard, num_shards, conditioned=conditioned) for shard in range(num_shards)]
    for path in paths:
        of_shard = block_range(len(groups), path.shard, num_shards)
        rows = samples(*groups, iteration=path.iteration)
        blocks = [[row for row in rows if row.group_id == group_id] for group_id in of_shard]
        identity = Identity("eval", path.iteration, path.shard, num_shards, config or {"eval": {}}, POLICY)
        provenance = Provenance()

        def write(replace: bool, path: ShardPath = path, blocks: list[list[Rollout]] = blocks):
            return write_rows(path.data, ROLLOUTS, blocks, replace=replace)

        def describe(data, provenance=provenance, identity=identity):
            return provenance.manifest(identity, data)

        commit_shard(path, identity, write, describe)
    return paths
