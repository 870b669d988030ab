"""The one act behind draft, refine and eval: sample completions of prompts, grade them, keep them as rows.

Work is cut into fixed blocks of groups. A block is sampled in one call of the engine whatever the
number of shards, so the same rows are always batched together, and a finished block is kept when
its shard is interrupted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from igrpo_cli.errors import IgrpoError
from igrpo_cli.records import (
    ChatPrompt,
    Completion,
    Grade,
    Problem,
    Rollout,
    RolloutStage,
    SamplingGroup,
    SamplingSettings,
)
from igrpo_cli.rewards.formatting import format_reward, weighted_reward
from igrpo_cli.seeds import derive_seed

if TYPE_CHECKING:
    from concurrent.futures import Future

    from igrpo_cli.engines.base import Engine
    from igrpo_cli.engines.tokenization import PolicyTokenizer
    from igrpo_cli.rewards.workers import GradingPool

BLOCKS_IN_GRADING = 2
"""Blocks that may wait for their grades while the next one is sampled."""


@dataclass(frozen=True)
class RolloutTask:
    """One prompt of one group and the samples it gets."""

    group_id: int
    problem: Problem
    prompt: ChatPrompt
    sample_ids: Sequence[int]
    draft_sample_id: int | None = None
    draft_truncated: bool = False
    """Whether the draft in the prompt was cut to `prompts.max_draft_tokens`."""


@dataclass(frozen=True)
class RolloutPlan:
    """Everything that decides the rows of one stage, apart from the policy's weights."""

    stage: RolloutStage
    iteration: int
    seed: int
    seed_names: tuple[str | int, ...]
    """Names the stream of random numbers: a row's seed is derived from (seed, *seed_names, group, sample)."""
    sampling: SamplingSettings
    reward_weights: Mapping[str, float]
    num_groups: int
    groups_per_block: int
    tasks: Callable[[range, PolicyTokenizer], list[RolloutTask]]
    """The prompts of some groups, in order, made when their turn comes; a dropped group has none."""

    @property
    def num_blocks(self) -> int:
        """Blocks of the whole stage; the last one may be smaller."""
        return -(-self.num_groups // self.groups_per_block)

    def groups_of(self, block: int) -> range:
        """Group ids of one block."""
        start = block * self.groups_per_block
        return range(start, min(start + self.groups_per_block, self.num_groups))

    def seed_of(self, group_id: int, sample_id: int) -> int:
        """Seed of one row, from its identity alone."""
        return derive_seed(self.seed, *self.seed_names, group_id, sample_id)


@dataclass
class _Sampled:
    """A block that is sampled but not yet graded."""

    block: int
    tasks: list[RolloutTask]
    prompts: list[tuple[str, list[int]]]
    completions: list[list[Completion]]
    texts: list[list[str]]
    grades: Future[list[Grade]]


def roll_out(
    plan: RolloutPlan, blocks: Iterable[int], engine: Engine, grader: GradingPool
) -> Iterator[tuple[int, list[Rollout]]]:
    """Yields (block, its rows in order of group and sample) for each of `blocks`, in their order.

    Grading of a block overlaps the sampling of the next ones.
    """
    waiting: deque[_Sampled] = deque()
    for block in blocks:
        waiting.append(_sample_block(plan, block, engine, grader))
        if len(waiting) > BLOCKS_IN_GRADING:
            done = waiting.popleft()
            yield done.block, _rows(plan, done)
    while waiting:
        done = waiting.popleft()
        yield done.block, _rows(plan, done)


def _sample_block(plan: RolloutPlan, block: int, engine: Engine, grader: GradingPool) -> _Sampled:
    tasks = plan.tasks(plan.groups_of(block), engine.tokenizer)
    prompts = [engine.tokenizer.encode_prompt(task.prompt) for task in tasks]
    groups = [
        SamplingGroup(prompt_ids, [plan.seed_of(task.group_id, sample_id) for sample_id in task.sample_ids])
        for task, (_, prompt_ids) in zip(tasks, prompts, strict=True)
    ]
    completions: list[list[Completion]] = [[] for _ in groups]
    for index, drawn in engine.sample(groups, plan.sampling):
        completions[index] = list(drawn)
    _check_counts(tasks, completions)
    texts = [[engine.tokenizer.decode(c.completion_ids) for c in drawn] for drawn in completions]
    pairs = [(text, task.problem.answer) for task, drawn in zip(tasks, texts, strict=True) for text in drawn]
    return _Sampled(block, tasks, prompts, completions, texts, grader.submit(pairs))


def _check_counts(tasks: Sequence[RolloutTask], completions: Sequence[Sequence[Completion]]) -> None:
    for task, drawn in zip(tasks, completions, strict=True):
        if len(drawn) != len(task.sample_ids):
            raise IgrpoError(
                f"the engine returned {len(drawn)} completions of group {task.group_id} "
                f"(problem {task.problem.problem_id}) where {len(task.sample_ids)} were asked for",
                hint="run the same command again; finished blocks are kept",
            )


def _rows(plan: RolloutPlan, sampled: _Sampled) -> list[Rollout]:
    grades = iter(sampled.grades.result())
    rows = []
    per_task = zip(sampled.tasks, sampled.prompts, sampled.completions, sampled.texts, strict=True)
    for task, (prompt, prompt_ids), completions, texts in per_task:
        for sample_id, completion, text in zip(task.sample_ids, completions, texts, strict=True):
            grade = next(grades)
            parts = {"accuracy": float(grade.verdict == "correct"), "format": format_reward(text)}
            rows.append(
                Rollout(
                    iteration=plan.iteration,
                    stage=plan.stage,
                    problem_id=task.problem.problem_id,
                    group_id=task.group_id,
                    sample_id=sample_id,
                    draft_sample_id=task.draft_sample_id,
                    prompt=prompt,
                    prompt_ids=prompt_ids,
                    completion=text,
                    completion_ids=completion.completion_ids,
                    sampling_logprobs=completion.sampling_logprobs,
                    finish_reason=completion.finish_reason,
                    seed=plan.seed_of(task.group_id, sample_id),
                    reward=weighted_reward(parts, plan.reward_weights),
                    reward_parts=parts,
                    verdict=grade.verdict,
                    extracted_answer=grade.extracted_answer,
                )
            )
    return rows
