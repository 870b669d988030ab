"""Sample completions of prompts, grade them and keep them as rows, for draft, refine and eval.

The work is cut into blocks, which are fixed ranges of groups. A block is one batch of the engine whatever the number of
shards, and a block that is done is kept when its shard is interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING

from igrpo_cli.config.sections import SamplingSettings
from igrpo_cli.engines.base import Engine, fault_of_completion, ignore_progress
from igrpo_cli.errors import Interrupted
from igrpo_cli.records import ChatPrompt, Completion, Problem, Proposals, Rollout, RolloutStage, SamplingGroup
from igrpo_cli.seeds import derive_seed
from igrpo_cli.watchdog import Watchdog

if TYPE_CHECKING:
    from igrpo_cli.rewards.scorer import Scorer, ScoringInput, ScoringResult
    from igrpo_cli.ui.progress import Progress

GRADING_THREADS = 4
"""Blocks that are graded and written at the same time: one slow completion must not delay the others."""
MAX_ATTEMPTS = 3
"""How often a batch is sampled for which the engine returns something else than was requested."""
Critique = tuple[str, Sequence[int]]
"""Text of a critique as it was written, and its token ids if the policy wrote it."""
MAX_BLOCKS_IN_GRADING = 64
"""Sampled blocks that may wait for their grades before sampling pauses. Bounds the memory that they take."""


@dataclass(frozen=True)
class RolloutTask:
    """Represents one prompt of one group and the samples to draw from it."""

    group_id: int
    problem: Problem
    prompt: ChatPrompt
    sample_ids: Sequence[int]
    draft_sample_id: int | None = None
    draft: str | None = None
    """The whole draft, of which the prompt may show a part; None without draft."""
    draft_truncated: bool = False
    """True where the draft in the prompt was cut to `prompts.max_draft_tokens`."""
    critique_prompt: ChatPrompt | None = None
    """Asks for the critique that is written first; None if the prompt needs none, or has it."""
    with_critique: Callable[[Critique], RolloutTask] | None = None
    """Returns the task with a critique in its prompt."""
    critique: str | None = None
    """See `records.Rollout`, as for `critique_ids`."""
    critique_ids: Sequence[int] | None = None
    existing: Sequence[Rollout] = ()
    """Rows of other samples, which are not sampled but scored again together with the new ones."""

    def without(self, rows: Mapping[tuple[int, int], Rollout], *, score_again: bool) -> RolloutTask:
        """Return the task without the samples that exist, where `rows` has them by their ids of group and sample."""
        is_there = {each: (self.group_id, each) in rows for each in self.sample_ids}
        existing = [rows[self.group_id, each] for each in self.sample_ids if score_again and is_there[each]]
        return replace(self, sample_ids=[each for each in self.sample_ids if not is_there[each]], existing=existing)


@dataclass(frozen=True)
class SamplingPlan:
    """Holds what decides the completions of a stage, apart from the prompts and the weights of the policy."""

    stage: RolloutStage
    iteration: int
    sampling: SamplingSettings
    seed: int
    seed_names: tuple[str | int, ...]
    """Names of the stream of random numbers. The seed of a row is derived from (seed, *seed_names, group, sample)."""
    critiques: SamplingPlan | None = None
    """How critiques are written; None in a stage without critiques."""
    ask_judge: Callable[[Sequence[ChatPrompt]], list[Critique]] | None = None
    """Returns the reply to each prompt; None where the policy is sampled."""

    def seed_of(self, group_id: int, sample_id: int) -> int:
        """Return the seed of one row, which follows from its identity alone."""
        return derive_seed(self.seed, *self.seed_names, group_id, sample_id)


@dataclass(frozen=True, eq=False)
class BlockJob:
    """A block to sample and grade, and what to do with its rows."""

    plan: SamplingPlan
    tasks: Sequence[RolloutTask]
    keep: Callable[[list[Rollout], Proposals], None]
    """Receives the rows in order of group and sample, on a background thread, and the proposals for those sampled."""
    note: Callable[[Rollout, str], None]
    """Receives each row that could not be graded, and the reason."""


class Sampler:
    """Keeps an engine busy with blocks: sample, decode, grade, keep.

    The engine goes on sampling while earlier blocks are decoded, graded and written. It waits for them only when it
    has nothing else to do, or when more than `MAX_BLOCKS_IN_GRADING` are behind.

    `start` returns the engine and the scorer. It is called when the first block comes in, so a command that has
    nothing to sample loads no model. `progress` counts blocks; the sampler tells it of completions within a block.

    Methods raise Interrupted where the engine repeatedly returns something else than was requested, and whatever
    `keep` raises. Where the engine hangs, the process ends with the exit code of Interrupted.
    """

    def __init__(self, start: Callable[[], tuple[Engine, Scorer]], progress: Progress) -> None:
        self._start = start
        self._progress = progress
        self._running: _Running | None = None

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        if self._running is not None:
            self._running.close()

    def submit(self, job: BlockJob) -> None:
        """Hand a block to the engine, as soon as it has room."""
        if self._running is None:
            self._running = _Running(*self._start(), self._progress)
        self.make_room()
        self._running.submit(job)

    def make_room(self, at_most: int | None = None) -> None:
        """Sample submitted blocks until the engine has room for another one, and has fewer than `at_most`."""
        while self._running is not None and not self._running.has_room(at_most):
            self._running.advance()

    def advance(self) -> bool:
        """Sample and grade submitted blocks for one step. Returns False if there are none."""
        if self._running is None or not self._running.is_busy:
            return False
        self._running.advance()
        return True


class _Running:
    """The engine, the scorer and the threads of a sampler that has work."""

    def __init__(self, engine: Engine, scorer: Scorer, progress: Progress) -> None:
        self.engine = engine
        self._progress = progress
        self._num_blocks = self._num_completions = self._max_tokens = 0
        engine.on_sampled = self._count
        self._scorer = scorer
        self._checked = _CheckedEngine(engine)
        self._stack = ExitStack()
        self._watchdog = self._stack.enter_context(_watchdog_of(engine))
        self._threads = ThreadPoolExecutor(GRADING_THREADS, thread_name_prefix="igrpo-grading")
        self._stack.callback(self._threads.shutdown, wait=False, cancel_futures=True)
        self._in_grading: set[Future[tuple[BlockJob, list[Critique]] | None]] = set()

    @property
    def is_busy(self) -> bool:
        return bool(self._checked.num_unfinished or self._in_grading)

    def has_room(self, at_most: int | None) -> bool:
        return self.engine.has_room and (at_most is None or self._checked.num_unfinished < at_most)

    def submit(self, job: BlockJob) -> None:
        """Sample a block, after its critiques are written."""
        prompts, plan = [(task, task.critique_prompt) for task in job.tasks], job.plan.critiques
        asked = [replace(task, prompt=prompt, sample_ids=(0,)) for task, prompt in prompts if prompt is not None]
        if plan is None or not asked:
            self._sample(job)
        elif (ask := plan.ask_judge) is not None:
            self._in_grading.add(self._threads.submit(lambda: (job, ask([task.prompt for task in asked]))))
        else:
            self._sample(replace(job, plan=plan, tasks=asked), criticised=job)

    def _sample(self, job: BlockJob, criticised: BlockJob | None = None) -> None:
        tokenizer, plan = self.engine.tokenizer, job.plan
        prompts = [tokenizer.encode_prompt(task.prompt) for task in job.tasks]
        groups = [
            SamplingGroup(
                prompt_ids, [plan.seed_of(task.group_id, sample_id) for sample_id in task.sample_ids], task.sample_ids
            )
            for task, (_, prompt_ids) in zip(job.tasks, prompts, strict=True)
        ]
        self._num_blocks += criticised is None
        self._num_completions += (completions := sum(len(group.seeds) for group in groups))
        self._max_tokens += completions * plan.sampling.max_completion_length
        self._checked.submit(_Request(job, prompts, groups, criticised=criticised))

    def advance(self) -> None:
        """Take one step of the engine, and raise what went wrong in grading; wait for a grade if nothing is sampled."""
        assert self.is_busy, "nothing is in progress"
        for request, completions in self._checked.step(self._watchdog.watching):
            self._in_grading.add(self._threads.submit(self._grade, request, completions))
        must_wait = not self._checked.num_unfinished or len(self._in_grading) > MAX_BLOCKS_IN_GRADING
        done, self._in_grading = wait(self._in_grading, None if must_wait else 0, FIRST_COMPLETED)
        for future in done:
            if (written := future.result()) is not None:
                job, critiques = written
                given = iter(critiques)
                tasks = [task.with_critique(next(given)) if task.with_critique else task for task in job.tasks]
                self._sample(replace(job, tasks=tasks))

    def close(self) -> None:
        self.engine.on_sampled = ignore_progress
        self._stack.close()

    def _count(self, completions: int, tokens: int) -> None:
        units = self._num_blocks * completions / self._num_completions
        self._progress.sample(units, completions, tokens, self._num_blocks * tokens / self._max_tokens)

    def _grade(self, request: _Request, completions: list[list[Completion]]) -> tuple[BlockJob, list[Critique]] | None:
        """Grade and keep the rows of a block. Critiques are not graded, but returned with the block that waits."""
        tokenizer = self.engine.tokenizer
        stops = tokenizer.with_all_stops(request.job.plan.sampling)
        # A thought that the template opens, and a prefill, are part of what is graded and shown.
        begun = [tokenizer.beginning_of_completion(task.prompt) for task in request.job.tasks]
        texts = [
            [before + tokenizer.decode_completion(each.completion_ids, stops, before) for each in drawn]
            for before, drawn in zip(begun, completions, strict=True)
        ]
        if request.criticised is not None:
            ids = [completion.completion_ids for (completion,) in completions]
            return request.criticised, list(zip((text for (text,) in texts), ids, strict=True))
        results = self._scorer.score(_scoring_inputs(request, completions, texts))
        rows = _rows(request, completions, texts, results)
        for row, result in zip(rows, results, strict=True):
            if result.grade.reason is not None:
                request.job.note(row, result.grade.reason)
        request.job.keep(rows, Proposals.of(completions))
        return None


@dataclass(frozen=True, eq=False)
class _Request:
    """A block as the engine receives it. It is its own key, so each attempt has a key that no engine can guess."""

    job: BlockJob
    prompts: list[tuple[str, list[int]]]
    """The prompt of each task as (text, token ids)."""
    groups: list[SamplingGroup]
    attempt: int = 1
    criticised: BlockJob | None = None
    """The block whose critiques these are; None for a block to grade."""

    @property
    def name(self) -> str:
        """The name of the batch in errors."""
        return f"the batch of {self.name_of(0)}" if self.groups else "a batch without groups"

    def name_of(self, index: int) -> str:
        """Return the name of one group in errors."""
        task = self.job.tasks[index]
        return f"group {task.group_id} (problem {task.problem.problem_id})"


class _CheckedEngine:
    """Checks what an engine returns: one completion that could be drawn for each seed of each group, exactly once.

    A batch that returns as something else, or not at all, is sampled again, `MAX_ATTEMPTS` times in all. Batches that
    were not requested are tolerated as often.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._in_progress: dict[Hashable, _Request] = {}
        self._num_strays = 0

    @property
    def num_unfinished(self) -> int:
        return len(self._in_progress)

    def submit(self, request: _Request) -> None:
        self._engine.submit(request, request.groups, request.job.plan.sampling)
        self._in_progress[request] = request

    def step(
        self, watching: Callable[[], AbstractContextManager[object]]
    ) -> list[tuple[_Request, list[list[Completion]]]]:
        """Take a step of the engine within `watching()` and return the batches that are complete and valid.

        Raises Interrupted where the engine repeatedly returns something else.
        """
        if not self._in_progress:
            return []
        with watching():
            done = self._engine.step()
        returned: dict[Hashable, list[list[list[Completion]]]] = {}
        for key, completions in done:
            returned.setdefault(key, []).append(completions)
        valid, faulty = [], []
        for key, answers in returned.items():
            if (request := self._in_progress.pop(key, None)) is None:
                self._count_stray(key)
            elif (fault := _fault_of(request, answers, self._engine.vocab_size)) is None:
                valid.append((request, answers[0]))
            else:
                faulty.append((request, fault))
        if not self._engine.num_unfinished:
            faulty += [(request, f"nothing of {request.name}") for request in self._in_progress.values()]
            self._in_progress.clear()
        for request, fault in faulty:
            if request.attempt == MAX_ATTEMPTS:
                raise _returned(fault)
            self.submit(replace(request, attempt=request.attempt + 1))
        return valid

    def _count_stray(self, key: Hashable) -> None:
        self._num_strays += 1
        if self._num_strays == MAX_ATTEMPTS:
            stray = f"{key.name} once more" if isinstance(key, _Request) else f"a batch called {repr(key)[:80]}"
            raise _returned(f"{stray}, which was not requested")


def _returned(fault: str) -> Interrupted:
    return Interrupted(
        f"the engine returned {fault}, {MAX_ATTEMPTS} times",
        hint="run the same command again; finished blocks are kept",
    )


def _fault_of(request: _Request, answers: Sequence[Sequence[Sequence[Completion]]], vocab_size: int) -> str | None:
    """Return what is wrong with a batch; None for exactly one valid completion of each seed of each group."""
    completions, *more = answers
    if more:
        return f"{request.name} {len(answers)} times at once"
    if len(completions) != len(request.groups):
        return f"{len(completions)} groups instead of {len(request.groups)}"
    for index, (group, drawn) in enumerate(zip(request.groups, completions, strict=True)):
        if len(drawn) != len(group.seeds):
            return f"{len(drawn)} completions of {request.name_of(index)} instead of {len(group.seeds)}"
        for sample, (seed, completion) in enumerate(zip(group.seeds, drawn, strict=True)):
            if (fault := fault_of_completion(completion, seed, vocab_size)) is not None:
                return f"{fault} as sample {sample} of {request.name_of(index)}"
    return None


def _watchdog_of(engine: Engine) -> Watchdog:
    seconds = engine.step_timeout
    hangs = Interrupted(
        f"{engine.name} has not returned from a step for {seconds} s (engine.timeout); finished blocks are kept",
        hint="run the same command again, it continues where it stopped; raise engine.timeout if steps take that long",
    )
    return Watchdog(seconds, hangs)


def _scoring_inputs(
    request: _Request, completions: list[list[Completion]], texts: list[list[str]]
) -> list[ScoringInput]:
    from igrpo_cli.rewards.scorer import ScoringInput

    longest, inputs = request.job.plan.sampling.max_completion_length, []
    for task, (prompt, _), _, each, text in _samples(request, completions, texts):
        facts = (task.problem, prompt, text, len(each.completion_ids), longest, each.finish_reason)
        inputs.append(ScoringInput(*facts, task.draft, task.group_id, each.completion_ids))
    return inputs


def _rows(
    request: _Request, completions: list[list[Completion]], texts: list[list[str]], results: list[ScoringResult]
) -> list[Rollout]:
    plan, samples = request.job.plan, _samples(request, completions, texts)
    return [
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
            critique=task.critique,
            critique_ids=task.critique_ids,
        )
        for (task, (prompt, prompt_ids), sample_id, completion, text), score in zip(samples, results, strict=True)
    ]


def _samples(
    request: _Request, completions: list[list[Completion]], texts: list[list[str]]
) -> Iterator[tuple[RolloutTask, tuple[str, list[int]], int, Completion, str]]:
    """Yield task, prompt, sample id, completion and text of each row, in order."""
    for task, prompt, drawn, texts_of_task in zip(request.job.tasks, request.prompts, completions, texts, strict=True):
        samples = list(zip(task.sample_ids, drawn, texts_of_task, strict=True))
        samples += [(row.sample_id, row.sampled, row.completion) for row in task.existing]
        yield from ((task, prompt, *sample) for sample in sorted(samples, key=itemgetter(0)))
