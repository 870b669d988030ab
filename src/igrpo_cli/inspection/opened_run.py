"""A run in Python: `igrpo_cli.open_run`. Tables are read as `igrpo sql` reads them, and nothing is ever written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from operator import index
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igrpo_cli.config import RunConfig
from igrpo_cli.errors import MissingInputError, UsageError
from igrpo_cli.inspection.run_config import read_run_config
from igrpo_cli.store.checksummed_json import read_summary
from igrpo_cli.store.completion import open_input
from igrpo_cli.store.hints import command_line, no_run_error
from igrpo_cli.store.layout import RunDirectory, ShardPath, format_shards, read_eval_name
from igrpo_cli.store.policies import read_policy, verify_policy
from igrpo_cli.store.settings import settings_fault

if TYPE_CHECKING:
    from igrpo_cli.store.views import Table

# pyarrow is imported by the first table that is read.

SAMPLED = ("draft", "refine")


class Run:
    """A run that was opened with `igrpo_cli.open_run`.

    Tables are `pyarrow.Table`; `.to_pandas()` makes a data frame of one. They have the columns of
    docs/reference/schemas.md. `iteration` is one iteration, or None for all of them. `columns` are the columns to read,
    or None for all of them; token ids and log-probs are most of the bytes of rollouts.

    Complete shards are read, also while the run is in progress; a UserWarning says which stages are incomplete. Every
    page checksum is verified. Raises MissingInputError, which says what exists, for an iteration without such rows,
    UsageError for unknown columns and stages, and DamagedFileError.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._run = RunDirectory(Path(fspath(path)))
        if not self._run.run_toml.exists():
            raise no_run_error(self._run.root)
        self._config = read_run_config(self._run)
        if fault := settings_fault(self._run.run_toml):
            warnings.warn(f"{self._run.run_toml} {fault[0]}", stacklevel=3)

    def __repr__(self) -> str:
        return f"<igrpo run {self.path}: iterations {format_shards(self.iterations) or 'none'}>"

    @property
    def path(self) -> Path:
        """The run directory."""
        return self._run.root

    @property
    def iterations(self) -> list[int]:
        """The iterations that have a directory."""
        return self._run.iterations()

    @property
    def policies(self) -> list[int]:
        """The numbers of the policies that exist. Policy k is the one that iteration k samples from."""
        return self._run.policy_iterations()

    @property
    def settings(self) -> RunConfig:
        """The settings after all changes, as they were when the run was opened: `settings.draft.temperature`."""
        return self._config.latest

    def settings_of(self, iteration: int) -> RunConfig:
        """Return the settings of an iteration."""
        return self._config.at(index(iteration))

    def problems(self, columns: Sequence[str] | None = None) -> Table:
        """Return the training problems."""
        open_input(self._run.problems())
        return _read("problems", [self._run.problems().data], columns)

    def rollouts(
        self, iteration: int | None = None, stage: str | None = None, columns: Sequence[str] | None = None
    ) -> Table:
        """Return the drafts and refinements, or those of one `stage`: draft or refine."""
        return _read("rollouts", self._files(_stages(stage), iteration), columns)

    def selections(self, iteration: int | None = None, columns: Sequence[str] | None = None) -> Table:
        """Return the selections: a row for each problem of an iteration."""
        return _read("selections", self._files(("select",), iteration), columns)

    def advantages(self, iteration: int | None = None, columns: Sequence[str] | None = None) -> Table:
        """Return what each completion contributed to each optimiser step: its reward and its advantage."""
        paths = [self._run.update(number).advantages for number in self._updates(iteration)]
        return _read("advantages", paths, columns)

    def metrics(self, iteration: int | None = None, columns: Sequence[str] | None = None) -> Table:
        """Return the metrics that the updates recorded; `step` is -1 for a metric of the whole iteration."""
        paths = [self._run.update(number).metrics for number in self._updates(iteration)]
        return _read("metrics", paths, columns)

    def scores(
        self, name: str, iteration: int | None = None, stage: str | None = None, columns: Sequence[str] | None = None
    ) -> Table:
        """Return the set of scores called `name`, which `igrpo grade RUN` made."""
        stages = _stages(stage)
        places = [(number, each) for number in self.iterations for each in stages]
        sets = sorted({found for place in places for found in self._run.score_sets(*place)})
        if name not in sets:
            raise MissingInputError(
                f"{self.path} has no scores {name!r}; it has {', '.join(sets) or 'none'}",
                hint=command_line(self.path, "grade", "--stage draft --reward accuracy"),
            )
        files = self._files(stages, iteration, lambda shard: self._run.scores(shard, name), f"scores {name!r} of ")
        return _read("scores", files, columns)

    def evaluations(self) -> list[dict[str, Any]]:
        """Return the figures of all complete evaluations, as `igrpo eval --json` prints them.

        Three keys come first: `bench`, `policy` (its number, or the name of another model), and `with_draft`, which is
        `eval.selection` of an evaluation with draft and else None.
        """
        found = []
        for path in self._run.eval_summaries():
            policy, selection = read_eval_name(path.parent.name)
            found.append({"bench": path.parent.parent.name, "policy": policy, "with_draft": selection})
            found[-1].update((key, value) for key, value in read_summary(path).items() if key != "bench")
        return found

    def policy(self, number: int | None = None) -> Path:
        """Return the model directory of a policy, by default the newest one, after every file was hashed.

        Raises MissingInputError, which says which policies exist, and DamagedFileError for a file that has changed.
        """
        number = max(self.policies, default=0) if number is None else index(number)
        try:
            policy = read_policy(self._run, number)
        except MissingInputError as error:
            existing = format_shards(self.policies) or "none"
            raise MissingInputError(f"{self.path} has no policy {number}; it has {existing}", hint=error.hint) from None
        verify_policy(policy)
        return policy.directory

    def _files(
        self,
        stages: Sequence[str],
        iteration: int | None,
        file_of: Callable[[ShardPath], ShardPath] = lambda shard: shard,
        what: str = "",
    ) -> list[Path]:
        """Return the complete files of the shards of some stages, in order. Warns of stages that are incomplete."""
        found = {number: list(self._complete(stages, number, file_of, what)) for number in self._numbers(iteration)}
        if iteration is not None and not any(found.values()):
            having = [each for each in self.iterations if any(self._complete(stages, each, file_of, None))]
            raise self._missing(f"{what}{' or '.join(stages)} shard", index(iteration), having, stages[0])
        return [path for paths in found.values() for path in paths]

    def _complete(
        self, stages: Sequence[str], iteration: int, file_of: Callable[[ShardPath], ShardPath], what: str | None
    ) -> Iterator[Path]:
        for stage in stages:
            shards = self._run.shards(iteration, stage, self._config.run.num_shards)
            complete = [file for file in map(file_of, shards) if file.manifest.exists()]
            if what is not None and 0 < len(complete) < len(shards):
                told = f"{what}{stage} of iteration {iteration}: {len(complete)} of {len(shards)} shards are complete"
                warnings.warn(told, stacklevel=5)
            yield from (file.data for file in complete)

    def _updates(self, iteration: int | None) -> list[int]:
        """Return the iterations with a complete update, or the given one. Raises MissingInputError."""
        having = [number for number in self.iterations if self._run.update(number).manifest.exists()]
        if iteration is not None and index(iteration) not in having:
            raise self._missing("complete update", index(iteration), having, "update")
        return having if iteration is None else [index(iteration)]

    def _numbers(self, iteration: int | None) -> list[int]:
        return self.iterations if iteration is None else [index(iteration)]

    def _missing(self, what: str, iteration: int, having: Sequence[int], stage: str) -> MissingInputError:
        has = f"; iterations {format_shards(having)} have one" if having else ", and no other iteration has one"
        return MissingInputError(
            f"{self.path} has no {what} in iteration {iteration}{has}",
            hint=command_line(self.path, stage, f"--iteration {iteration}"),
        )


def _read(kind: str, paths: Sequence[Path], columns: Sequence[str] | None) -> Table:
    from igrpo_cli.store.views import read_together

    return read_together(kind, paths, columns)


def _stages(stage: str | None) -> tuple[str, ...]:
    if stage not in (None, *SAMPLED):
        raise UsageError(f"{stage!r} is not a stage with completions", hint=f"stage={' or '.join(SAMPLED)}")
    return SAMPLED if stage is None else (stage,)
