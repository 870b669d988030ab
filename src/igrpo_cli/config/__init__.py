"""The settings of a run: a model of all sections of `run.toml`, and the settings that each stage depends on."""

from __future__ import annotations

from typing import Any

from pydantic import Field, PrivateAttr, model_validator

from igrpo_cli.algo import WITHOUT_VERDICT
from igrpo_cli.config.blocks import Blocks
from igrpo_cli.config.data import DataSection
from igrpo_cli.config.engine import EngineSection
from igrpo_cli.config.rewards import JudgeSection, RewardSection
from igrpo_cli.config.sections import (
    CritiqueSection,
    EvalSection,
    GenerationSection,
    LogSection,
    Natural,
    PromptsSection,
    RunSection,
    Section,
    SelectSection,
)
from igrpo_cli.config.update import PolicySection, UpdateSection


class Change(Section):
    """Settings that differ from an iteration on."""

    from_iteration: Natural
    settings: dict[str, dict[str, Any]]
    """{section: {key: value}}"""


class RunConfig(Section):
    """All of `run.toml`, and the changes that followed."""

    run: RunSection = RunSection()
    data: DataSection = DataSection()
    policy: PolicySection = PolicySection()
    prompts: PromptsSection = PromptsSection()
    draft: GenerationSection = GenerationSection()
    select: SelectSection = SelectSection()
    critique: CritiqueSection = CritiqueSection()
    refine: GenerationSection = GenerationSection()
    reward: RewardSection = RewardSection()
    judge: JudgeSection = JudgeSection()
    update: UpdateSection = UpdateSection()
    engine: EngineSection = EngineSection()
    eval: EvalSection = EvalSection()
    log: LogSection = LogSection()
    changes: list[Change] = Field(default=[], exclude=True)
    """In order: where two set the same key, the later one counts."""
    _changed: dict[tuple[int, ...], RunConfig] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _plain_grpo_has_no_refinements(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("run", {}).get("method") != "grpo":
            return values
        # A preset may say how refinements are trained, and plain GRPO has none.
        of_drafts = {"train_on": "drafts", "baseline": "group", "refinement_prompt": "with_draft"}
        return {**values, "update": {**values.get("update", {}), **of_drafts}}

    @model_validator(mode="before")
    @classmethod
    def _stale_drafts_are_corrected(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not values.get("run", {}).get("staleness"):
            return values
        return {**values, "update": {"importance_sampling_correction": True, **values.get("update", {})}}

    @model_validator(mode="after")
    def _check_combinations(self) -> RunConfig:
        if "judge" in self.reward.weights and not self.judge.model:
            raise ValueError("reward.weights has judge: set judge.model, and judge.endpoint")
        if "copy" in self.reward.weights and ("refine" not in self.stages() or self.select.strategy == "none"):
            raise ValueError("reward.weights has copy, but no completion of this run sees a draft: remove it")
        if self.run.eval_every and not self.run.eval_bench:
            raise ValueError("run.eval_every needs run.eval_bench, for example columns")
        if self.data.spare_problems and not self.update.dynamic_sampling:
            raise ValueError("data.spare_problems needs update.dynamic_sampling = true")
        template = self.prompts.refine_template
        if template.count("{problem}") != 1 or template.count("{draft}") != 1:
            raise ValueError("prompts.refine_template must hold {problem} and {draft} exactly once each")
        self._check_selection()
        self._check_update()
        self._check_verdicts()
        self._check_critiques()
        self._check_speculation()
        return self

    def _check_update(self) -> None:
        section = self.update
        if section.baseline != "group" and section.train_on == "drafts":
            raise ValueError(f'update.baseline = "{section.baseline}" is for refinements; only drafts are trained on')
        weights = [section.loss_weight(stage) for stage in ("draft", "refine")]
        if weights != [1.0, 1.0] and section.train_on != "both":
            raise ValueError('update.loss_weights needs update.train_on = "both"')
        if section.refinement_prompt != "with_draft" and section.train_on == "drafts":
            raise ValueError("update.refinement_prompt is for refinements; only drafts are trained on")
        if not any(weights):
            raise ValueError("update.loss_weights are all 0: nothing would be trained")
        if section.optimizer_state == "from_policy" and section.lora_r:
            raise ValueError("update.optimizer_state = from_policy has no adapters to continue: use carry or fresh")

        if section.offload_optimizer and section.lora_r:
            raise ValueError(
                "update.offload_optimizer is for training of all weights; adapters have a small optimiser state: set "
                "update.offload_optimizer = false"
            )

    def _check_selection(self) -> None:
        is_external = self.select.strategy == "external"
        if is_external and self.select.external is None:
            raise ValueError('select.strategy = "external" needs select.external: a file of drafts, or another run')
        if is_external and self.prompts.draft_view == "answer_only":
            raise ValueError('external drafts have no extracted answer: set prompts.draft_view = "full" or "no_think"')

    def _check_verdicts(self) -> None:
        """Check the settings of a run whose refinements state the verdict on their draft, or see it."""
        is_stated = self.reward.refinements == "verdict"
        is_shown = self.prompts.shows_verdict or self.critique.shows_verdict
        if not is_stated and not is_shown:
            return
        what = 'reward.refinements = "verdict"' if is_stated else "{verdict} in the prompt"
        if is_stated and is_shown:
            raise ValueError(f"{what} asks for the verdict that {{verdict}} in the prompt tells: remove {{verdict}}")
        if is_stated and "refine" not in self.stages():
            raise ValueError(f"{what}, but no completion of this run sees a draft: remove it")
        if "refine" in self.stages() and self.select.strategy in WITHOUT_VERDICT:
            raise ValueError(
                f'{what} needs graded drafts of the same problem, and select.strategy = "{self.select.strategy}" '
                "shows none: set another one, for example random"
            )
        if self.prompts.empty_draft is not None:
            raise ValueError(f"{what} is for prompts with a draft only: unset prompts.empty_draft")
        if is_stated and (self.update.refinement_prompt, self.update.baseline) != ("with_draft", "group"):
            raise ValueError(
                f'{what} rewards no answers to the problem: set update.refinement_prompt = "with_draft" and '
                'update.baseline = "group"'
            )
        if is_stated and self.prompts.verdict_text("correct") == self.prompts.verdict_text("wrong"):
            raise ValueError(f"{what} needs different texts for correct and wrong in prompts.verdict_texts")

    def _check_critiques(self) -> None:
        """Check the settings of a run whose refinements see a critique in words."""
        section, prompts = self.critique, self.prompts
        where = "prompts.refine_template" if prompts.draft_turn == "user" else "prompts.refine_request"
        if section.by == "none":
            if prompts.shows_critique:
                raise ValueError(f'{where} has {{critique}}: set critique.by = "policy" or "judge", or remove it')
            return
        what = f'critique.by = "{section.by}"'
        if not prompts.shows_critique:
            raise ValueError(f"{what}, but no refinement sees a critique: put {{critique}} into {where}")
        if section.template.count("{problem}") != 1 or section.template.count("{draft}") != 1:
            raise ValueError("critique.template must hold {problem} and {draft} exactly once each")
        if section.by == "judge" and not self.judge.model:
            raise ValueError(f"{what}: set judge.model, and judge.endpoint")
        if self.select.strategy == "none":
            raise ValueError(f'{what} needs drafts, and select.strategy = "none" shows none')
        if prompts.empty_draft is not None:
            raise ValueError(f"{what} is for prompts with a draft only: unset prompts.empty_draft")
        if self.reward.refinements == "verdict":
            raise ValueError(
                f'{what} does not go with reward.refinements = "verdict": refinements would see the verdict'
            )

    def _check_speculation(self) -> None:
        if self.engine.speculative_config is None:
            return
        critiques = ("critique",) if self.critique.by == "policy" else ()
        for name in (*(stage for stage in ("draft", "refine") if stage in self.stages()), *critiques, "eval"):
            if getattr(self, name).min_p:
                raise ValueError(
                    f"engine.speculative_config: vLLM does not apply {name}.min_p with it: unset one of both"
                )

    @property
    def evaluations(self) -> tuple[str | None, ...]:
        """The evaluations of a policy: without draft (None), and with draft (`eval.selection`) if the run has one."""
        return (None, self.eval.selection) if self.evaluates_with_draft else (None,)

    @property
    def evaluates_with_draft(self) -> bool:
        """Return True if an evaluation with draft measures answers that the policy finds without the reference."""
        has_answers = self.reward.refinements == "answer" and not self.prompts.shows_verdict
        return has_answers and self.critique.by == "none"

    def at(self, iteration: int) -> RunConfig:
        """Return the settings of one iteration: `changed`, where solving and refining iterations alternate too."""
        config = self.changed(iteration)
        if config.update.train_on != "alternate":
            return config
        if iteration % 2:
            return config._with(update={"train_on": "refinements"})
        drafts = config.draft.num_generations + config.refine.num_generations
        return config._with(run={"method": "grpo"}, draft={"num_generations": drafts}, update={"train_on": "drafts"})

    def changed(self, iteration: int) -> RunConfig:
        """Return the settings after the changes from `iteration` or earlier on. Raises pydantic's ValidationError."""
        applied = tuple(n for n, change in enumerate(self.changes) if change.from_iteration <= iteration)
        if not self.changes:
            return self
        if applied not in self._changed:
            settings = self.model_dump(exclude_none=True)
            for change in (self.changes[number] for number in applied):
                for section, values in change.settings.items():
                    settings[section] = {**settings.get(section, {}), **values}
            self._changed[applied] = RunConfig.model_validate(settings)
        return self._changed[applied]

    @property
    def latest(self) -> RunConfig:
        """The settings after all changes."""
        return self.changed(max((change.from_iteration for change in self.changes), default=0))

    def _with(self, **changes: dict[str, Any]) -> RunConfig:
        return self.model_copy(
            update={name: getattr(self, name).model_copy(update=new) for name, new in changes.items()}
        )

    def stages(self) -> tuple[str, ...]:
        """Return the stages of one iteration, in order. Where iterations alternate, `at` says which it has."""
        if self.run.method == "grpo":
            return ("draft", "update")
        return ("draft", "select", "refine", "update")

    def num_iterations(self, num_problems: int) -> int:
        """Return the number of iterations: `run.num_iterations`, or what `data.num_train_epochs` takes."""
        passes = self.data.num_train_epochs * num_problems
        return self.run.num_iterations or max(1, round(passes / self.data.problems_sampled))

    def blocks(self) -> Blocks:
        """Return the blocks of a stage of training, which has one group for each problem of the iteration."""
        return Blocks(self.data.problems_sampled, self.engine.groups_per_block, self.run.num_shards)


_SAMPLED = ("data.problems_per_iteration", "data.spare_problems")
_EVALUATED = ("run.cpu_threads", "prompts", "eval", "reward", "judge", "engine")
STAGE_READS: dict[str, tuple[str, ...]] = {
    "draft": ("run.seed", "run.cpu_threads", *_SAMPLED, "prompts", "draft", "reward", "judge", "engine"),
    "select": ("run.seed", "select", "reward.ungraded", "reward.weights", "refine.num_generations"),
    "refine": ("run.seed", "run.cpu_threads", "prompts", "critique", "refine", "reward", "judge", "engine"),
    "scores": ("reward", "judge", "prompts.verdict_texts"),
    "update": (
        "run.seed",
        "run.cpu_threads",
        "run.method",
        "policy.dtype",
        "update",
        "reward.ungraded",
    ),
    "eval": _EVALUATED,
    "conditioned": (*_EVALUATED, "eval.selection"),
}
"""The sections, or single keys, that the results of a stage depend on. Other values conflict with a complete shard.

A key that is named here counts even if it is in `WITHOUT_EFFECT` of its section."""


def stage_identity(config: RunConfig, stage: str) -> dict[str, dict[str, Any]]:
    """Return the settings that `stage` depends on, as {section: {key: value}}; unset keys are None."""
    identity: dict[str, dict[str, Any]] = {}
    for name in STAGE_READS[stage]:
        if (stage, name) == ("scores", "prompts.verdict_texts") and config.reward.refinements == "answer":
            continue
        section_name, _, key = name.partition(".")
        asks_judge = "judge" in config.reward.weights or (stage == "refine" and config.critique.by == "judge")
        if section_name == "judge" and not asks_judge:
            continue
        if section_name == "critique" and config.critique.by == "none":
            continue
        if (stage, name) == ("select", "reward.weights") and not config.select.reads_verdicts:
            continue  # The weights only decide which drafts are wrong.
        if (stage, name) == ("select", "refine.num_generations") and config.select.allocation == "fixed":
            continue
        section: Section = getattr(config, section_name)
        values = {key: section.model_dump(mode="json")[key]} if key else section.identity()
        identity.setdefault(section_name, {}).update(values)
    if stage == "update":
        # A run that is extended does not change the updates that it has made.
        has_length = config.update.lr_scheduler_type != "constant"
        length = config.update.lr_scheduler_iterations or config.run.num_iterations
        identity["update"]["lr_scheduler_iterations"] = length if has_length else None
    return identity
