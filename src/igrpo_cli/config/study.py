"""The file of a study: arms and seeds, and from them the settings of every run of the study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from igrpo_cli.config import RunConfig
from igrpo_cli.config.files import apply_overrides, check_config, explain, merge, read_config_file, read_preset
from igrpo_cli.errors import UsageError

MAX_ARMS = 24
"""Arms that can be told apart in a plot: eight colours in three dash patterns."""
OWN_KEYS = {"run.seed": "seeds"}
"""Settings that the study sets itself, with the key of the study that decides them."""
PAGE, FIGURES = "study.html", "figures"
"""Names of the results in the directory of a study, next to the folders of the arms."""
MAX_SEED = 2**63 - 1
"""The largest integer of TOML. `run.toml` and manifests store the seed."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+@=-]{0,99}$")]


@dataclass(frozen=True)
class Cell:
    """One run of a study: an arm with a seed."""

    arm: str
    seed: int
    config: RunConfig

    @property
    def path(self) -> Path:
        """Its run directory below the directory of the study."""
        return Path(self.arm) / f"seed-{self.seed}"

    @property
    def evaluations(self) -> tuple[str | None, ...]:
        """The evaluations of a policy: without draft (None), and with draft (`eval.selection`) if the arm has one."""
        return self.config.evaluations

    @property
    def lock(self) -> Path:
        """The file that the process working on the cell holds a lock on."""
        return Path(self.arm) / f".seed-{self.seed}.lock"

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"{self.arm}, seed {self.seed}"


class Study(BaseModel):
    """The file of `igrpo study`. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Name
    """Name of the study. Its results are in `runs/<name>` unless `--output` names another directory."""
    preset: str | None = None
    """Preset that the settings of all arms begin with."""
    config: str | None = None
    """Settings file that overrides the preset, as `igrpo init --config`; relative to the file of the study."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, le=MAX_SEED)]], Field(min_length=1)]
    """Seeds of training (`run.seed`). Every arm is trained once with each of them."""
    baseline: str | None = None
    """Arm that the others are compared with; unset means the first one."""
    eval_bench: str = ""
    """Benchmark of the evaluations, as `igrpo eval --bench`. Unset means the test problems of the packaged set that
    `data.train` names. `eval.repeats` sets the samples per problem."""
    eval_every: Annotated[int, Field(ge=1)] = 10
    """Every how many iterations a policy is evaluated, without and with draft. The first and last policy always are."""
    compare_at_tokens: Annotated[int, Field(ge=1)] | None = None
    """Sampled tokens at which arms are compared; unset, or more than the total of the cheapest complete run, means that
    total."""
    target_accuracy: Annotated[float, Field(gt=0.0, le=1.0, strict=False)] | None = None
    """Accuracy without draft for the table of tokens and seconds until an arm reaches it; unset means the final
    accuracy of the baseline."""
    keep_policies: Literal["all", "evaluated"] = "all"
    """Policies that a complete run keeps on disk. `evaluated` removes the others, the last two aside: they cannot be
    evaluated later."""
    reported: dict[Name, float] = Field(default_factory=dict)
    """Accuracies in % that a paper reports for some of the arms, shown next to those of the study."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings of all arms, as `section.key = value`."""
    arms: Annotated[dict[Name, dict[str, Any]], Field(min_length=1, max_length=MAX_ARMS)]
    """Settings of each arm, which override those of `[set]`: `[arms.NAME]`, then `section.key = value`."""

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: list[int]) -> list[int]:
        if len({*seeds}) < len(seeds):
            raise ValueError("a seed is named twice")
        return seeds

    @model_validator(mode="after")
    def _check_arms(self) -> Study:
        named = [("baseline", self.baseline)] if self.baseline is not None else []
        for key, arm in [*named, *(("reported", arm) for arm in self.reported)]:
            if arm not in self.arms:
                raise ValueError(f"{key}: {arm!r} is not an arm; there are {', '.join(self.arms)}")
        # Some file systems do not tell upper from lower case.
        taken = {name.casefold(): f"the name of the results in {name}" for name in (PAGE, FIGURES)}
        for arm in self.arms:
            if other := taken.get(arm.casefold()):
                raise ValueError(f"arms: {arm!r} cannot name an arm: apart from case it is {other}")
            taken[arm.casefold()] = f"the arm {arm!r}"
        return self

    @property
    def reference(self) -> str:
        """The arm that the others are compared with."""
        return self.baseline or next(iter(self.arms))

    def evaluated(self, config: RunConfig) -> list[int]:
        """Return the policies of a run that are evaluated, in order; the last one is that of the last iteration."""
        last = config.run.num_iterations
        assert last is not None
        return sorted({*range(0, last, self.eval_every), last})


def read_study(path: Path, overrides: Iterable[str] = ()) -> tuple[Study, list[Cell]]:
    """Return a study and its cells, all arms of the first seed first. `overrides` apply to all arms, as `--set`.

    Raises UsageError, which names the file, the arm and the key, for anything that cannot be run.
    """
    try:
        study = Study.model_validate(read_config_file(path))
    except ValidationError as error:
        raise UsageError(explain(error, str(path), Study), hint="docs/studies.md describes the file") from None
    base = read_preset(study.preset) if study.preset else {}
    if study.config is not None:
        file = path.parent / study.config
        settings_of_file = read_config_file(file)
        _refuse_own_keys(settings_of_file, str(file))
        base = merge(base, settings_of_file)
    common = _with(base, study.set, f"{path} [set]")
    overrides = list(overrides)
    _refuse_own_keys(apply_overrides({}, overrides), "--set")
    settings = {}
    for arm, table in study.arms.items():
        where = f"{path} [arms.{arm}]"
        settings[arm] = apply_overrides(_with(common, table, where), overrides)
        _check(settings[arm], where, apply_overrides(common, overrides), f"{path} [set]")
    cells = [
        Cell(arm, seed, check_config(merge(settings[arm], {"run": {"seed": seed}}), str(path)))
        for seed in study.seeds
        for arm in study.arms
    ]
    return study, cells


def _check(settings: Mapping[str, Any], where: str, common: Mapping[str, Any], where_common: str) -> None:
    """Raise UsageError for settings that no run can have, naming the table with the mistake."""
    try:
        config = check_config(settings, where)
    except UsageError:
        check_config(common, where_common)
        raise
    if config.run.num_iterations is None:
        raise UsageError(
            f"{where}: run.num_iterations is not set, and a study evaluates the last policy",
            hint="[set] run.num_iterations = 40",
        )


def _with(settings: Mapping[str, Any], table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return `settings` with those of a table of the study; a quoted `"section.key"` is the same as one without."""
    merged = dict(settings)
    for name, value in table.items():
        section, _, key = name.partition(".")
        values = {key: value} if key else value
        if not isinstance(values, dict):
            raise UsageError(f"{where}: {name} is not section.key", hint="for example update.train_on = 'both'")
        _refuse_own_keys({section: values}, where)
        merged = merge(merged, {section: values})
    return merged


def _refuse_own_keys(settings: Mapping[str, Any], where: str) -> None:
    """Raise UsageError for a setting that would have no effect, because the study sets it itself."""
    for name, own in OWN_KEYS.items():
        section, _, key = name.partition(".")
        values = settings.get(section)
        if isinstance(values, Mapping) and key in values:
            raise UsageError(f"{where}: {name} is set by the study", hint=f"use the key {own} of the study file")
