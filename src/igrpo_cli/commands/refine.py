"""`igrpo refine`: sample and grade G refinements of each problem, with its selected draft in the prompt.

This is stage 2 of iGRPO (arXiv 2602.09000): o_1, …, o_G ~ pi_old(. | q'), where pi_old is the same policy as in stage 1
and q' is the template `prompts.refine_template`, filled with the problem q and its selected draft. With `critique.by`,
a critique of the draft is written first, by pi_old or by the judge, and is a part of q' (arXiv 2506.03106).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

from igrpo_cli.pipeline.rollout_stage import RolloutPlan, RolloutStage, open_rollouts, training_plan
from igrpo_cli.pipeline.session import Session, StageRequest
from igrpo_cli.prompts import (
    critique_prompt,
    prompt_with_draft,
    prompt_without_draft,
    refined_problem,
    visible_critique,
    visible_draft,
)
from igrpo_cli.records import ChatPrompt, Selection, StageReport
from igrpo_cli.rollouts import Critique, RolloutTask, SamplingPlan
from igrpo_cli.store.completion import open_input
from igrpo_cli.store.layout import ShardPath

# pyarrow is imported where it is needed, so that a command with nothing to do starts fast.


def run(session: Session, request: StageRequest) -> StageReport:
    """Make the refinement shards of one iteration that are not complete. Nothing is trained here."""
    with open_rollouts(session, request, plan(session, request.iteration)) as stage:
        sample(stage)
    return stage.report()


def sample(stage: RolloutStage, shards: Iterable[int] | None = None) -> None:
    """Sample G = `refine.num_generations` completions of the prompt with the selected draft, for each problem.

    `select.allocation = "adaptive"` gives each problem a number of its own. A group whose selection has the action
    `drop` gets no refinements. As in `draft.sample`, `open_rollouts` waits for the last blocks, and `shards` are some
    of the requested shards.
    """
    for shard in stage.unfinished(shards):
        if stage.session.config.critique.by == "judge":
            stage.session.judge()  # One that cannot be reached fails before anything is sampled.
        selections = read_selections(stage.session, selection_shard(stage.session, shard.path))
        for block in shard.blocks():
            selected = [selections[group_id] for group_id in block.groups]
            block.sample_and_grade([_task(stage, selection) for selection in selected if selection.action != "drop"])


def plan(session: Session, iteration: int) -> RolloutPlan:
    """Return the plan of the refinements of an iteration. Their inputs are the problems and the selections."""
    found = training_plan(
        session, "refine", iteration, inputs_of=lambda shard: [session.run.problems(), selection_shard(session, shard)]
    )
    return replace(found, sampling=replace(found.sampling, critiques=_critiques(session, iteration)))


def _critiques(session: Session, iteration: int) -> SamplingPlan | None:
    """Return how the critiques of an iteration are written: one of each draft that refinements see."""

    def ask_judge(prompts: Sequence[ChatPrompt]) -> list[Critique]:
        return [(text, ()) for text in session.judge().write(prompts)]

    section, seed = session.config.critique, session.config.run.seed
    if section.by == "none":
        return None
    by_judge = ask_judge if section.by == "judge" else None
    return SamplingPlan("refine", iteration, section, seed, ("critique", iteration), ask_judge=by_judge)


def selection_shard(session: Session, shard: ShardPath) -> ShardPath:
    """Return the selections shard that a refinements shard reads. Both hold the same groups."""
    return session.run.shard(shard.iteration, "select", shard.shard, shard.num_shards)


def read_selections(session: Session, path: ShardPath) -> dict[int, Selection]:
    """Return the selections of a shard by group id, after checking the file, its groups and their problems.

    Raises MissingInputError, DamagedFileError, and ConflictError for a selection of another problem.
    """
    from igrpo_cli.store.row_checks import require_groups, require_problems
    from igrpo_cli.store.tables import read_records

    open_input(path)
    rows = read_records(path.data, Selection)
    require_groups(path, [row.group_id for row in rows], session.config.blocks().groups_of_shard(path.shard))
    require_problems(path, rows, session.problems_of_iteration(path.iteration))
    return {row.group_id: row for row in rows}


def _task(stage: RolloutStage, selection: Selection) -> RolloutTask:
    """Return the sampling task of one group. Its prompt holds the selected draft, unless the action is `bare`."""
    config = stage.session.config
    problem = stage.session.problems_of_iteration(selection.iteration)[selection.group_id]
    sample_ids = range(selection.num_samples(config.refine.num_generations))
    if selection.action == "bare":
        prompt = prompt_without_draft(problem, config.prompts)
        task = RolloutTask(group_id=selection.group_id, problem=problem, prompt=prompt, sample_ids=sample_ids)
        return task if config.critique.by == "none" else replace(task, critique="", critique_ids=())
    # `prompts.draft_view` shows the whole draft, the draft without its thinking, or only its answer.
    draft, truncated = visible_draft(
        selection.draft, selection.draft_answer, config.prompts, truncate=stage.tokenizer.truncate
    )
    task = RolloutTask(
        group_id=selection.group_id,
        # With `reward.refinements = "verdict"`, the reference answer is the verdict on the draft.
        problem=refined_problem(problem, selection, config),
        prompt=prompt_with_draft(problem, draft, config.prompts, selection.draft_verdict),
        sample_ids=sample_ids,
        draft_sample_id=selection.draft_sample_id,
        draft=selection.draft,
        draft_truncated=truncated,
    )
    if config.critique.by == "none":
        return task
    asks = critique_prompt(problem, draft, config, selection.draft_verdict)
    prompt_of = partial(prompt_with_draft, problem, draft, config.prompts, selection.draft_verdict)

    def with_critique(critique: Critique) -> RolloutTask:
        text, token_ids = critique
        shown = visible_critique(text, config.critique.max_completion_length, stage.tokenizer.truncate)
        return replace(task, prompt=prompt_of(shown), critique=shown, critique_ids=token_ids)

    return replace(task, critique_prompt=asks, with_critique=with_critique)
