"""The one act behind draft, refine and eval: sample completions of prompts, grade them, keep them as rows.

Work is cut into fixed blocks of groups. A block is one batch of the engine whatever the number of
shards, and a finished block is kept when its shard is interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from igrpo_cli.engines.checking import CheckedEngine
from igrpo_cli.errors import Interrupted
from igrpo_cli.records import (
    ChatPrompt,
    Completion,
    Problem,
    Rollout,
    RolloutStage,
    SamplingGroup,
    SamplingSettings,
)
from igrpo_cli.seeds import derive_seed
from igrpo_cli.watchdog import Watchdog

if TYPE_CHECKING:
    from igrpo_cli.engines.base import Engine
    from igrpo_cli.engines.tokenization import PolicyTokenizer
    from igrpo_cli.rewards.scorer import Scorer, ScoringInput, ScoringResult

FINISHING_THREADS = 4
"""Blocks that are graded and written at the same time: one slow completion must not hold up the others."""
MAX_BLOCKS_IN_GRADING = 64
"""Sampled blocks that may wait for their grades before sampling pauses: what bounds the memory they take."""


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


@dataclass(frozen=True, eq=False)
class BlockJob:
    """A block to be sampled and graded, and what becomes of its rows."""

    plan: RolloutPlan
    block: int
    keep: Callable[[int, list[Rollout]], None]
    """Called with the block and its rows in order of group and sample, on a thread of its own."""
    note: Callable[[Rollout, str], None]
    """Told of each row that could not be graded, and why."""


@dataclass(frozen=True)
class _Sampled:
    """A block with its prompts: (text, token ids) of each task."""

    job: BlockJob
    tasks: list[RolloutTask]
    prompts: list[tuple[str, list[int]]]


def roll_out(jobs: Iterable[BlockJob | None], engine: Engine, scorer: Scorer) -> None:
    """Sample, score and keep all blocks of `jobs`; returns when the last one is kept.

    Blocks are drawn from `jobs` when the engine has room for them; None means that none is ready before another
    one is kept. The engine goes on sampling while earlier blocks are decoded, graded and written: it waits for
    them only when it has nothing else to do, or when more than `MAX_BLOCKS_IN_GRADING` are behind.
    Raises Interrupted where the engine keeps giving back something else than was asked for. Where it hangs, the
    process ends with the same exit code.
    """
    source, checked = iter(jobs), CheckedEngine[_Sampled](engine)
    all_drawn = False
    with _Finishing(engine.tokenizer, scorer) as finishing, _watchdog_of(engine) as watchdog:
        while not all_drawn or checked.num_unfinished or finishing.num_unfinished:
            while not all_drawn and engine.has_room:
                job = next(source, _END)
                if job is None:
                    assert checked.num_unfinished or finishing.num_unfinished, (
                        "nothing under way can make a block ready"
                    )
                    break
                if isinstance(job, BlockJob):
                    _submit(job, engine.tokenizer, checked)
                else:
                    all_drawn = True
            for sampled, completions in checked.step(watchdog.watching):
                finishing.start(sampled, completions)
            finishing.wait(for_one=not checked.num_unfinished)


_END = object()


def _submit(job: BlockJob, tokenizer: PolicyTokenizer, checked: CheckedEngine[_Sampled]) -> None:
    plan = job.plan
    tasks = plan.tasks(plan.groups_of(job.block), tokenizer)
    prompts = [tokenizer.encode_prompt(task.prompt) for task in tasks]
    groups = [
        SamplingGroup(prompt_ids, [plan.seed_of(task.group_id, sample_id) for sample_id in task.sample_ids])
        for task, (_, prompt_ids) in zip(tasks, prompts, strict=True)
    ]
    names = [f"group {task.group_id} (problem {task.problem.problem_id})" for task in tasks]
    checked.submit(_Sampled(job, tasks, prompts), groups, names, plan.sampling)


def _watchdog_of(engine: Engine) -> Watchdog:
    seconds = engine.step_timeout
    hangs = Interrupted(
        f"{engine.name} has not come back from a step for {seconds} s (engine.timeout); finished blocks are kept",
        hint="run the same command again, it goes on where it stopped; raise engine.timeout where steps take so long",
    )
    return Watchdog(seconds, hangs)


class _Finishing:
    """Sampled blocks on their way to disk: each is decoded, graded and kept by one of a few threads."""

    def __init__(self, tokenizer: PolicyTokenizer, scorer: Scorer) -> None:
        self._tokenizer = tokenizer
        self._scorer = scorer
        self._threads = ThreadPoolExecutor(FINISHING_THREADS, thread_name_prefix="igrpo-finishing")
        self._unfinished: set[Future[None]] = set()

    def __enter__(self) -> _Finishing:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def num_unfinished(self) -> int:
        return len(self._unfinished)

    def start(self, sampled: _Sampled, completions: list[list[Completion]]) -> None:
        self._unfinished.add(self._threads.submit(self._finish, sampled, completions))

    def wait(self, *, for_one: bool) -> None:
        """Take note of what has been kept meanwhile, raising what went wrong; wait until one is, if `for_one`."""
        behind = len(self._unfinished) > MAX_BLOCKS_IN_GRADING
        timeout = None if for_one or behind else 0
        done, self._unfinished = wait(self._unfinished, timeout, FIRST_COMPLETED)
        for future in done:
            future.result()

    def _finish(self, sampled: _Sampled, completions: list[list[Completion]]) -> None:
        texts = [[self._tokenizer.decode(c.completion_ids) for c in drawn] for drawn in completions]
        scored = self._scorer.score(_answered(sampled, completions, texts))
        rows = _rows(sampled, completions, texts, scored)
        for row, each in zip(rows, scored, strict=True):
            if each.grade.reason is not None:
                sampled.job.note(row, each.grade.reason)
        sampled.job.keep(sampled.job.block, rows)


def _answered(sampled: _Sampled, completions: list[list[Completion]], texts: list[list[str]]) -> list[ScoringInput]:
    from igrpo_cli.rewards.scorer import ScoringInput

    longest = sampled.job.plan.sampling.max_completion_length
    per_task = zip(sampled.tasks, sampled.prompts, completions, texts, strict=True)
    return [
        ScoringInput(task.problem, prompt, text, len(completion.completion_ids), longest, completion.finish_reason)
        for task, (prompt, _), drawn, texts_of_task in per_task
        for completion, text in zip(drawn, texts_of_task, strict=True)
    ]


def _rows(
    sampled: _Sampled, completions: list[list[Completion]], texts: list[list[str]], scored: list[ScoringResult]
) -> list[Rollout]:
    plan, scores = sampled.job.plan, iter(scored)
    rows = []
    per_task = zip(sampled.tasks, sampled.prompts, completions, texts, strict=True)
    for task, (prompt, prompt_ids), drawn, texts_of_task in per_task:
        for sample_id, completion, text in zip(task.sample_ids, drawn, texts_of_task, strict=True):
            score = next(scores)
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
                    reward=score.reward,
                    reward_parts=score.parts,
                    verdict=score.grade.verdict,
                    extracted_answer=score.grade.extracted_answer,
                )
            )
    return rows
