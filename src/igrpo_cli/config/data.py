"""The section [data] of `run.toml`: where the training problems are, and how iterations draw them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from igrpo_cli.config.sections import Natural, Positive, PositiveInt, Section, Share
from igrpo_cli.records import AnswerForm


class SourceSection(Section):
    """Where problems are, and how to read them."""

    train: str = "arithmetic"
    """Name of a packaged data set, a file (JSONL, JSON, CSV, TSV, Parquet, Arrow), a folder of such files or of
    `save_to_disk`, or a Hub id."""
    split: str | None = None
    """Split of a folder or a Hub set; unset means that of a named data set, else `train`, else the only split."""
    config: str | None = None
    """Configuration of a Hub data set, or a subfolder of a folder."""
    revision: str | None = None
    """Branch, tag or commit of a Hub data set."""
    problem_column: str | None = None
    """Column of the problems; unset means the column with one of the usual names. `a.b.0` is the first element of the
    list `b` in the objects of column `a`."""
    answer_column: str | None = None
    """Column of the reference answers; unset as above."""
    answer_form: AnswerForm = "auto"
    """`plain`: the column holds the answers. `solution`: it holds worked solutions, whose last `\\boxed{…}` or text
    after `####` is the answer. `auto`: a mark counts if there is one, and a column `solution` needs one, unless it
    holds only a number, a formula or a word."""
    id_column: str | None = None
    """Column of the ids; unset as above."""
    choices_column: str | None = None
    """Column with the choices of each problem; `none` ignores the choices of multiple-choice data."""
    system_column: str | None = None
    """Column with a system prompt for each problem, which follows `prompts.system_prompt`; unset means `system_prompt`
    or `system` if there is such a column of texts; `none` ignores it."""
    columns: list[str] | None = None
    """Other columns to keep with the problems, for reward functions and `igrpo sql`. Unset means all of them, without
    columns of binary data and columns of more than 64 MiB, which are reported."""

    def reading(self) -> dict[str, Any]:
        """Return the settings besides `train` that say how problems are read."""
        return self.model_dump(include=set(SourceSection.model_fields) - {"train"})


class MixSource(SourceSection):
    """One of several sources of problems."""

    train: str
    """As `data.train`."""
    name: Annotated[str, Field(pattern="^[^/]+$")] | None = None
    """Name of the source; unset means the last part of `train` without its suffix."""
    weight: Positive = 1.0
    """How often its problems are drawn, relative to those of the other sources."""

    @property
    def label(self) -> str:
        """Name of the source, with which the ids of its problems begin."""
        return self.name or re.sub(r"\.[a-z]+$", "", Path(self.train).name) or "problems"


class DataSection(SourceSection):
    """The training problems. `igrpo init` reads them once and stores them in the run directory."""

    mix: Annotated[list[MixSource], Field(min_length=1)] | None = None
    """Several sources, instead of `train`. Each is a table with `train`, `weight` (1 if unset), `name` and the settings
    from `split` to `columns`; a text is the `train` of a source. A problem of a source with weight 2 is drawn
    twice as often as one of a source with weight 1, and an epoch has as many draws as there are problems. The ids of
    problems begin with the name of their source, which is the last part of its `train` unless `name` is set."""
    skip_bad_rows: bool = False
    """Skip and count unusable rows (empty answer, duplicate, wrong type); by default such a row is an error."""
    solve_rate_run: Path | None = None
    """Directory of an earlier run. The solve rate of a problem is the fraction of correct samples among those that this
    run drew for the same text without draft, in all iterations."""
    min_solve_rate: Share | None = None
    """Leave out problems with a lower solve rate, and those that the earlier run did not sample."""
    max_solve_rate: Share | None = None
    """Leave out problems with a higher solve rate, and those that the earlier run did not sample."""
    curriculum: Literal["none", "easy_first"] = "none"
    """`none`: each epoch is shuffled. `easy_first`: each epoch begins with the problems of the highest solve rate, and
    ends with those that the earlier run did not sample. Problems with the same rate are shuffled, once for the run."""
    problems_per_iteration: PositiveInt = 32
    """Problems that one iteration trains on."""
    spare_problems: Natural = 0
    """Additional problems sampled in every iteration, which replace groups without reward variance."""
    num_train_epochs: Positive = 1.0
    """Passes over the problems, used if `run.num_iterations` is unset."""

    @model_validator(mode="before")
    @classmethod
    def _read_mix(cls, values: Any) -> Any:
        """Accept a text as a source, and let `train` name the sources, for people who read the settings."""
        if not isinstance(values, dict) or not isinstance(values.get("mix"), list):
            return values
        mix = [{"train": each} if isinstance(each, str) else each for each in values["mix"]]
        names = [str(each["train"]) for each in mix if isinstance(each, dict) and "train" in each]
        return {**values, "mix": mix, "train": " + ".join(names)}

    @model_validator(mode="after")
    def _check_mix(self) -> DataSection:
        if self.mix is None:
            return self
        unused = [key for key in self.reading() if getattr(self, key) != type(self).model_fields[key].default]
        if unused:
            raise ValueError(f"{unused[0]} is a setting of data.train: write it into the sources of data.mix")
        labels = [source.label for source in self.mix]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"mix: {labels.count(label)} sources are called {label}: give them a name each")
        return self

    @model_validator(mode="after")
    def _check_solve_rates(self) -> DataSection:
        uses = {"min_solve_rate": self.min_solve_rate is not None, "max_solve_rate": self.max_solve_rate is not None}
        uses["curriculum"] = self.curriculum != "none"
        used = next((key for key, is_set in uses.items() if is_set), None)
        if used is not None and self.solve_rate_run is None:
            raise ValueError(f"{used} needs data.solve_rate_run, the directory of an earlier run")
        if used is None and self.solve_rate_run is not None:
            raise ValueError(f"solve_rate_run has no effect: set one of {', '.join(f'data.{key}' for key in uses)}")
        if (self.min_solve_rate or 0.0) > (1.0 if self.max_solve_rate is None else self.max_solve_rate):
            raise ValueError(f"min_solve_rate = {self.min_solve_rate} is above max_solve_rate = {self.max_solve_rate}")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each source by its name; empty without `mix`."""
        return {source.label: source.weight for source in self.mix or ()}

    @property
    def problems_sampled(self) -> int:
        """Number of problems that one iteration samples completions for."""
        return self.problems_per_iteration + self.spare_problems
