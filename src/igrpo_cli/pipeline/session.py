"""The state that the commands of one process share: the run, its settings, and a warm engine and graders."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igrpo_cli.config import RunConfig, stage_identity
from igrpo_cli.config.files import read_toml, refuse_fixed
from igrpo_cli.errors import IgrpoError, MissingInputError, UsageError
from igrpo_cli.extras import require_extra
from igrpo_cli.inspection.run_config import read_run_config
from igrpo_cli.store.atomic import run_guard
from igrpo_cli.store.completion import count_problems, input_hashes
from igrpo_cli.store.hints import command_line, no_run_error, overrides_in_hints
from igrpo_cli.store.layout import RunDirectory, ShardPath, format_shards, parse_shards
from igrpo_cli.store.lineage import require_lineage
from igrpo_cli.store.manifest import FileHash
from igrpo_cli.store.policies import Policy, promote_policy, read_policy
from igrpo_cli.store.settings import require_unedited, settings_fault
from igrpo_cli.torchrun import rank_and_size
from igrpo_cli.ui.console import Console

if TYPE_CHECKING:
    from igrpo_cli.engines.base import Engine
    from igrpo_cli.loggers.background import BackgroundTrackers
    from igrpo_cli.problems.external import ExternalDrafts
    from igrpo_cli.records import Problem
    from igrpo_cli.rewards.grading_pool import GradingPool
    from igrpo_cli.rewards.judge import Judge
    from igrpo_cli.rewards.scorer import Scorer
    from igrpo_cli.training.launch import Launch
    from igrpo_cli.training.step import PolicyTrainer


ARRAY_TASK = "SLURM_ARRAY_TASK_ID"
"""The variable that gives `--shard` its value in a task of a job array."""


@dataclass(frozen=True)
class StageRequest:
    """The iteration and the shards that a stage is requested to make."""

    iteration: int
    shards: tuple[int, ...]
    overwrite: bool = False
    dry_run: bool = False
    take_over: bool = False
    """True to sample blocks of other shards that no task has begun, once the requested shards are done."""


def limit_cpu_threads(number: int) -> None:
    """Set the number of threads of torch, imported or not; 0 leaves the default."""
    if number:
        os.environ["OMP_NUM_THREADS"] = str(number)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(number)


def require_extras(config: RunConfig, stages: Iterable[str] = ()) -> None:
    """Raise UsageError where a setting of `stages` needs a package that is not installed. Imports none of them.

    Trackers are needed in all stages.
    """
    for name in config.log.report_to:
        require_extra(name, f"log.report_to = {name}")
    stages = set(stages)
    if config.engine.name == "vllm" and stages & {"draft", "refine", "eval"}:
        require_extra("vllm", "engine.name = vllm")
    if config.update.lora_r and "update" in stages:
        require_extra("lora", f"update.lora_r = {config.update.lora_r}")


class Session:
    """Represents one open run. The engine, the graders and the problems start when they are first needed."""

    def __init__(self, run: RunDirectory, config: RunConfig, console: Console) -> None:
        self.run = run
        self.config = config.latest
        """The settings in use, after `enter` those of an iteration."""
        self.run_config = config
        """The settings of the whole run."""
        self._settings = self.config
        self._iteration: int | None = None
        self.console = console
        self._engine: Engine | None = None
        self._engine_policy: str | None = None
        self._grader: GradingPool | None = None
        self._judge: Judge | None = None
        self._scorer: Scorer | None = None
        self._problems: list[Problem] | None = None
        self._chosen: dict[int, list[Problem]] = {}
        self._external_drafts: ExternalDrafts | None = None
        self._trackers: BackgroundTrackers | None = None
        self._known_lineage: set[str] = set()
        """Ids of policies whose ancestors are known to be those on disk."""
        self.has_problems = True
        """False for an evaluation without a run, where there are no training problems."""
        self.related_runs: tuple[Path, ...] = ()
        """Run directories whose shards of the initial policy are taken over where they are the same (`adopt_shard`)."""
        self.last_iteration: int | None = None
        """The last iteration that this process runs; None where it makes single stages."""
        self.overrides: tuple[str, ...] = ()
        """The `--set` of the command."""
        self.launch: Launch | None = None
        """The ranks that torchrun started for `igrpo run`; None for a single process."""
        self.warm_trainer: tuple[str, PolicyTrainer] | None = None
        """The id of the policy that the last update of this process published, and its trainer."""
        limit_cpu_threads(config.run.cpu_threads)

    def enter(self, iteration: int | None) -> None:
        """Use the settings of an iteration (`RunConfig.at`), or the latest ones for None, as evaluations do.

        What was started with other ones is closed.
        """
        before, self._iteration = self._settings, iteration
        after = self.run_config.latest if iteration is None else self.run_config.changed(iteration)
        if (before.reward, before.judge) != (after.reward, after.judge):
            self._close(self._grader, self._judge)
            self._grader = self._judge = self._scorer = None
        if before.engine != after.engine:
            self._close(self._engine)
            self._engine = self._engine_policy = None
        if before.update != after.update:
            self.warm_trainer = None
        if before.select.external != after.select.external:
            self._external_drafts = None
        self._settings, self.config = after, after if iteration is None else self.run_config.at(iteration)

    def _close(self, *resources: Engine | GradingPool | Judge | BackgroundTrackers | Launch | None) -> None:
        for resource in resources:
            if resource is not None:
                resource.close()

    def policy(self, iteration: int) -> Policy:
        """Return the policy that `iteration` samples from. Raises as `read_policy` and `require_lineage`."""
        if iteration > 0:
            promote_policy(self.run, iteration - 1)
        try:
            policy = read_policy(self.run, iteration)
        except MissingInputError as error:
            if iteration <= self.num_iterations():
                raise
            status = command_line(self.run.root, "status")
            extend = command_line(self.run.root, "extend", f"--iterations {iteration}")
            hint = f"{status} shows its {self.num_iterations()} iterations; {extend} adds iterations"
            raise MissingInputError(error.message, hint=hint) from None
        require_lineage(self.run, policy, self._known_lineage)
        self._known_lineage.add(policy.id)
        return policy

    def sampling_policy(self, stage: str, iteration: int) -> Policy:
        """Return the policy that a stage of `iteration` samples from: for drafts one `run.staleness` before."""
        lag = self.config.run.staleness if stage == "draft" else 0
        return self.policy(max(0, iteration - lag))

    def engine(self, policy: Policy) -> Engine:
        """Return the engine with the weights of `policy`. It starts once; later policies are loaded into it."""
        from igrpo_cli.engines.factory import create_engine
        from igrpo_cli.store.policies import verify_policy

        if self._engine_policy == policy.id and self._engine is not None:
            return self._engine
        with self.console.activity("hashing the policy"):
            verify_policy(policy)
        if self._engine is None:
            trust = self.config.policy.trust_remote_code
            with self.console.activity(f"starting the {self.config.engine.name} engine"):
                self._engine = create_engine(policy.directory, self.config.engine, trust_remote_code=trust)
        else:
            with self.console.activity("loading the policy"):
                self._engine.load_policy(policy.directory)
        self._engine_policy = policy.id
        self.console.detail(f"{self._engine.name} engine on {self._engine.device} samples from {policy.id}")
        return self._engine

    def size(self) -> dict[str, Any]:
        """Return the size of the run, counted for the iteration in use (`plan.size_of_run`)."""
        from igrpo_cli.pipeline.plan import size_of_run

        try:
            model = read_policy(self.run, 0).directory
        except IgrpoError:
            model = None
        return size_of_run(self.run_config, self.num_iterations(), model, self._iteration)

    def sleep_engine(self) -> None:
        """Free the accelerator for the update. The next `engine` call loads its policy again."""
        if self._engine is not None:
            self._engine_policy = None
            self._engine.sleep()

    def grader(self) -> GradingPool:
        """Return the grading processes, which start once."""
        from igrpo_cli.rewards.grading_pool import GradingPool

        if self._grader is None:
            self._grader = GradingPool(self.config.reward, self._reward_functions())
        return self._grader

    def scorer(self) -> Scorer:
        """Return the scorer of completions. Raises UsageError for a reward that cannot be computed."""
        from igrpo_cli.rewards.functions import require_columns
        from igrpo_cli.rewards.scorer import Scorer

        if self._scorer is None:
            section, signatures = self.config.reward, self.grader().signatures
            if signatures and self.has_problems:
                require_columns(signatures, list(self.problems()[0].column_values()))
            self._scorer = Scorer(
                self.grader(),
                section.weights,
                overlong_cache=section.overlong_cache_in_use,
                judge=self.judge() if "judge" in section.weights else None,
            )
        return self._scorer

    def judge(self) -> Judge:
        """Return the judge, which starts once. Raises UsageError without an endpoint."""
        from igrpo_cli.rewards.judge import Judge

        if self._judge is None:
            if not self.config.judge.endpoint:
                what = "reward.weights has judge" if "judge" in self.config.reward.weights else 'critique.by = "judge"'
                raise UsageError(
                    f"{what}, but judge.endpoint is not set",
                    hint="--set judge.endpoint=http://NODE:8000, any OpenAI-compatible server",
                )
            self._judge = Judge(self.config.judge, self.run.judgements)
        return self._judge

    def stage_identity(self, stage: str) -> dict[str, dict[str, Any]]:
        """Return the settings that `stage` reads, with the hashes of reward functions and external drafts in use."""
        from igrpo_cli.rewards.functions import source_sha256

        identity = stage_identity(self.config, stage)
        if "reward" in identity and self.config.reward.functions_in_use:
            targets = self._reward_functions()
            identity["reward"]["function_sources"] = {name: source_sha256(target) for name, target in targets.items()}
        if stage == "select" and self.config.select.external_in_use is not None:
            from igrpo_cli.problems.external import external_sha256

            identity["select"]["external_sha256"] = external_sha256(self.config.select.external_in_use)
        return identity

    def external_drafts(self) -> ExternalDrafts:
        """Return the drafts of `select.external`, which are read once. Raises as `read_external_drafts`."""
        from igrpo_cli.problems.external import read_external_drafts

        if self._external_drafts is None:
            assert self.config.select.external_in_use is not None
            self._external_drafts = read_external_drafts(self.config.select.external_in_use)
        return self._external_drafts

    def _reward_functions(self) -> dict[str, str]:
        from igrpo_cli.rewards.functions import resolve_target

        return {name: resolve_target(name, target) for name, target in self.config.reward.functions_in_use.items()}

    def problems_of_iteration(self, iteration: int) -> list[Problem]:
        """Return the problems of one iteration. The position of a problem is its `group_id`."""
        from igrpo_cli.problems.order import problems_of_iteration, weighted_sources

        if iteration not in self._chosen:
            problems, data, seed = self.problems(), self.config.data, self.config.run.seed
            sources = weighted_sources(problems, data.weights)
            number, is_shuffled = len(problems), data.curriculum == "none"
            chosen = problems_of_iteration(
                number, iteration, data.problems_sampled, seed, sources, is_shuffled=is_shuffled
            )
            # Only one iteration is kept, so that memory does not grow with the run.
            self._chosen = {iteration: [problems[index] for index in chosen]}
        return self._chosen[iteration]

    def problems(self) -> list[Problem]:
        """Return the training problems of the run as `init` froze them, checked against their manifest."""
        from igrpo_cli.store.completion import read_problems

        if self._problems is None:
            self._problems = read_problems(self.run.problems())
        return self._problems

    def inputs(self, *paths: ShardPath) -> list[FileHash]:
        """Return the hashes of shards from their manifests, without reading their data.

        Raises MissingInputError for a shard that is not complete.
        """
        return list(input_hashes(*paths))

    def require_extras(self, *stages: str) -> None:
        """Raise UsageError where a setting of `stages` needs a package that is not installed, as trackers do."""
        require_extras(self.config, stages)

    def report(self) -> None:
        """Notify the trackers of `log.report_to` of new figures, without waiting for them."""
        from igrpo_cli.loggers.background import BackgroundTrackers

        if not self.config.log.report_to or rank_and_size()[0] != 0:
            return
        if self._trackers is None:
            section = self.config.log.model_dump(exclude_none=True)
            self._trackers = BackgroundTrackers(self.run.root, section, self.console.note)
        self._trackers.wake()

    def close(self) -> None:
        """End the engine and the grading processes, then wait up to `log.timeout` for trackers."""
        self._close(self._engine, self._grader, self._judge, self._trackers, self.launch)
        self._engine = self._grader = self._judge = self._scorer = self.warm_trainer = self._trackers = None

    def num_iterations(self) -> int:
        """Return the number of iterations of the run: `run.num_iterations`, or what `data.num_train_epochs` takes."""
        return self._length(self.run_config.latest)

    def num_scheduled(self) -> int:
        """Return the number of iterations of the learning rate schedule: `update.lr_scheduler_iterations`, or all."""
        return self.config.update.lr_scheduler_iterations or self._length(self.config)

    def _length(self, config: RunConfig) -> int:
        fixed = config.run.num_iterations
        return config.num_iterations(count_problems(self.run.problems())) if fixed is None else fixed

    def current_iteration(self) -> int:
        """Return the first iteration without a complete update, or the last one when all are complete."""
        last = self.num_iterations() - 1
        for iteration in range(last):
            if not self.run.update(iteration).manifest.exists():
                return iteration
        return last

    def iteration_or_current(self, iteration: int | None) -> int:
        """Return `iteration` if the run has it, and the current one for None. Raises UsageError."""
        if iteration is None:
            return self.current_iteration()
        if iteration >= self.num_iterations():
            raise UsageError(
                f"iteration {iteration} does not exist: the run has {self.num_iterations()}, counted from 0",
                hint=command_line(self.run.root, "status"),
            )
        return iteration

    def shards_or_all(self, text: str | None) -> tuple[int, ...]:
        """Return the shards that `--shard` names, or all shards of the run for None and `all`. Raises UsageError."""
        num_shards = self.config.run.num_shards
        if text in (None, "all"):
            return tuple(range(num_shards))
        try:
            return parse_shards(text, num_shards)
        except UsageError as error:
            if text != os.environ.get(ARRAY_TASK):
                raise
            # The number may also be given as --shard in the script of an array. The hint is right there too.
            hint = (
                f"`--shard all` makes all shards, for an array with one task for each run; "
                f"for one task for each shard: --array={format_shards(range(num_shards))}"
            )
            raise UsageError(f"{error.message}; the number comes from {ARRAY_TASK}={text}", hint=hint) from None


@contextmanager
def open_session(
    path: Path, overrides: Iterable[str], console: Console, *, only_looks: bool = False
) -> Iterator[Session]:
    """Open the run at `path` with `overrides` applied to its settings; close engine and graders at the end.

    Raises MissingInputError where there is no run, and ConflictError for settings that `init` fixes and for a
    `run.toml` that is not what `init` wrote. With `only_looks` the latter is a note.
    """
    run = RunDirectory(path)
    if not run.run_toml.exists():
        raise no_run_error(path)
    if not only_looks:
        require_unedited(run.run_toml)
    overrides = list(overrides)
    config = read_run_config(run, overrides)
    if overrides:
        refuse_fixed(read_toml(run.run_toml), overrides, run.run_toml)
    session = Session(run, config, console)
    session.overrides = tuple(overrides)
    if only_looks and (fault := settings_fault(run.run_toml)):
        console.note(f"{run.run_toml} {fault[0]}")
    try:
        with run_guard(path), overrides_in_hints(overrides):
            yield session
    finally:
        session.close()
