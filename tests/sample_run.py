"""A small run as the stages leave it, and rows to make others of: what the tests of this room share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from igrpo_cli.config.blocks import block_range
from igrpo_cli.records import Metric, Problem, Rollout, Selection
from igrpo_cli.store.atomic import publish_directory, staging_directory
from igrpo_cli.store.checksummed_json import record_directory
from igrpo_cli.store.completion import commit_shard, input_hashes, write_problems
from igrpo_cli.store.hashing import sha256_file
from igrpo_cli.store.layout import RunDirectory, ShardPath
from igrpo_cli.store.manifest import DataFile, FileHash, Identity, Manifest, publish_manifest, read_manifest
from igrpo_cli.store.policies import (
    policy_id,
    promote_policy,
    read_policy,
    write_pointer,
    write_policy_manifest,
)
from igrpo_cli.store.schema import ADVANTAGES, METRICS, ROLLOUTS, SELECTIONS
from igrpo_cli.store.settings import checksummed_settings
from igrpo_cli.store.tables import write_rows
from igrpo_cli.store.verify import verify_run

NUM_GROUPS = 5
NUM_SAMPLES = 3
CONFIG = {"draft": {"temperature": 1.0, "top_k": 0}, "prompts": {"system_prompt": ""}}
POLICY = policy_id({"config.json": "0" * 64})


def rollout(group_id: int = 0, sample_id: int = 0, **changes) -> Rollout:
    row = Rollout(
        iteration=0,
        stage="draft",
        problem_id=f"p{group_id}",
        group_id=group_id,
        sample_id=sample_id,
        draft_sample_id=None,
        prompt=f"What is {group_id} + 1?",
        prompt_ids=[5, 6, group_id],
        completion=f"<think>{sample_id}</think><answer>{group_id + 1}</answer>",
        completion_ids=[7, 8, sample_id, 2],
        sampling_logprobs=[-0.5, -0.25, -1.0, 0.0],
        finish_reason="stop",
        seed=2**62 + group_id,
        reward=2.0 if sample_id == 1 else 1.0,
        reward_parts={"accuracy": float(sample_id == 1), "format": 1.0},
        verdict="correct" if sample_id == 1 else "wrong",
        extracted_answer=str(group_id + 1) if sample_id else None,
    )
    return replace(row, **changes)


def group(group_id: int, num_samples: int = NUM_SAMPLES, **changes) -> list[Rollout]:
    return [rollout(group_id, sample_id, **changes) for sample_id in range(num_samples)]


def selection(group_id: int = 0, **changes) -> Selection:
    draft = rollout(group_id, 1)
    row = Selection(
        iteration=0,
        group_id=group_id,
        problem_id=draft.problem_id,
        action="condition",
        draft_group_id=group_id,
        draft_sample_id=1,
        draft=draft.completion,
        draft_answer=draft.extracted_answer or "",
        draft_reward=draft.reward,
        num_tied=1,
        group_reward_mean=1.25,
        group_reward_std=0.5,
    )
    return replace(row, **changes)


def identity_of(path: ShardPath, **changes) -> Identity:
    identity = Identity(
        stage=path.stage,
        iteration=path.iteration,
        shard=path.shard,
        num_shards=path.num_shards,
        config=CONFIG,
        policy=POLICY,
        template_sha256="1" * 64,
        inputs=(FileHash("problems.parquet", "2" * 64),),
    )
    return replace(identity, **changes)


def manifest_of(identity: Identity, data: DataFile, **changes) -> Manifest:
    manifest = Manifest(
        identity=identity,
        data=data,
        sampling={"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_completion_length": 8},
        versions={"igrpo": "0.1.0"},
        host="node-7",
        device="cpu",
        started="2026-08-01T10:00:00+00:00",
        finished="2026-08-01T10:00:09+00:00",
        seconds=9.25,
        tokens=48,
        gpu_seconds=0.0,
        counts={"correct": 4},
    )
    return replace(manifest, **changes)


def publish(path: ShardPath, identity: Identity, schema, blocks: Sequence[Sequence[object]], **changes) -> Manifest:
    return commit_shard(
        path,
        identity,
        lambda replace_it: write_rows(path.data, schema, blocks, replace=replace_it),
        lambda data: manifest_of(identity, data, **changes),
    )


def draft_shard(run: RunDirectory, **changes) -> tuple[ShardPath, Identity]:
    """One finished draft shard, shard 3 of 8, on its own."""
    path = run.shard(0, "draft", 3, 8)
    identity = identity_of(path, **changes)
    publish(path, identity, ROLLOUTS, [group(0), group(1)])
    return path, identity


def model_directory(path: Path, weights: bytes = b"weights") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (path / "model.safetensors").write_bytes(weights)
    (path / "README.md").write_text("a read-me")
    return path


def make_run(root: Path, num_iterations: int = 2, num_shards: int = 2) -> RunDirectory:
    """A finished run: two iterations of all four stages over two shards, one block per group."""
    run = RunDirectory(root)
    root.mkdir(parents=True, exist_ok=True)
    run.run_toml.write_bytes(checksummed_settings(b"[run]\nnum_shards = 2\n"))
    problems = [Problem(f"p{i}", f"What is {i} + 1?", str(i + 1), f"sums.jsonl:{i}") for i in range(NUM_GROUPS)]
    path = run.problems()
    identity = Identity("problems", 0, 0, 1, {"data": {"train": "sums"}})
    commit_shard(
        path,
        identity,
        lambda again: write_problems(path, problems, replace=again),
        lambda data: manifest_of(identity, data, sampling=None),
    )
    model_directory(root / "base")
    write_pointer(run, "base", None, Path("base"))
    for iteration in range(num_iterations):
        make_iteration(run, iteration, num_shards)
    return run


def make_iteration(run: RunDirectory, iteration: int, num_shards: int) -> None:
    policy = read_policy(run, iteration).id
    upstream: tuple[FileHash, ...] = input_hashes(run.problems())
    for stage, schema in (("draft", ROLLOUTS), ("select", SELECTIONS), ("refine", ROLLOUTS)):
        paths = run.shards(iteration, stage, num_shards)
        for path in paths:
            groups = block_range(NUM_GROUPS, path.shard, num_shards)
            blocks = [_rows(stage, iteration, group_id) for group_id in groups]
            sampled = None if stage == "select" else policy
            publish(path, identity_of(path, policy=sampled, inputs=upstream), schema, blocks)
        upstream = input_hashes(*paths)
    make_update(run, iteration, policy, upstream)


def _rows(stage: str, iteration: int, group_id: int) -> list:
    if stage == "select":
        return [selection(group_id, iteration=iteration, action=("condition", "bare")[group_id % 2])]
    draft = None if stage == "draft" or group_id % 2 else 1
    return group(group_id, iteration=iteration, stage=stage, draft_sample_id=draft)


def stage_update(run: RunDirectory, iteration: int, policy: str, inputs: Sequence[FileHash], staged: Path) -> None:
    """Everything of an update, in the directory where it is prepared."""
    path = run.update(iteration)
    data = write_rows(staged / "metrics.parquet", METRICS, [[Metric(iteration, -1, "loss", 0.5)]])
    row = {"iteration": iteration, "step": 0, "stage": "refine", "problem_id": "p0", "group_id": 0, "sample_id": 0}
    row |= {"reward": 1.0, "advantage": 0.5, "num_tokens": 4, "old_logprob_mean": -0.5, "policy_entropy_mean": 1.0}
    write_rows(staged / "advantages.parquet", ADVANTAGES, [[row]])
    model_directory(staged / "policy", weights=f"weights {iteration + 1}".encode())
    write_policy_manifest(staged / "policy", iteration + 1, policy)
    (staged / "optimizer").mkdir()
    (staged / "optimizer" / "state.safetensors").write_bytes(b"moments")
    record_directory(staged / "optimizer")
    outputs = (
        FileHash(f"iteration_{iteration:04d}/update/advantages.parquet", sha256_file(staged / "advantages.parquet")),
        FileHash(f"policies/{iteration + 1:04d}/manifest.json", sha256_file(staged / "policy" / "manifest.json")),
    )
    identity = identity_of(path.shard, policy=policy, inputs=tuple(inputs))
    publish_manifest(staged / "manifest.json", manifest_of(identity, data, outputs=outputs))


def make_update(run: RunDirectory, iteration: int, policy: str, inputs: Sequence[FileHash]) -> None:
    path = run.update(iteration)
    with staging_directory(path.directory) as staged:
        stage_update(run, iteration, policy, inputs, staged)
        publish_directory(staged, path.directory)
    promote_policy(run, iteration)


def told(run: RunDirectory) -> list[str]:
    """What `verify_run` says, as lines."""
    return [f"{problem.path.relative_to(run.root)} {problem.what}" for problem in verify_run(run).problems]


def replace_rows(path: ShardPath, schema, blocks: Sequence[Sequence[object]]) -> None:
    """Other rows under a manifest that is right about them, as a defect of a stage would leave it."""
    manifest = read_manifest(path)
    commit_shard(
        path,
        manifest.identity,
        lambda again: write_rows(path.data, schema, blocks, replace=again),
        lambda data: manifest_of(manifest.identity, data),
        overwrite=True,
    )


def drafts(*groups: int, **changes) -> list[list[Rollout]]:
    return [group(group_id, iteration=1, **changes) for group_id in groups]
