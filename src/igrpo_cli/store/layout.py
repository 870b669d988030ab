"""Define the paths of a run, the split of blocks into shards, and the commands that make each file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from igrpo_cli.errors import UsageError
from igrpo_cli.store.hints import command_line, init_command, shell_path, with_overrides

SHARD_STAGES = ("draft", "select", "refine")
STAGES = (*SHARD_STAGES, "update")
PARTS, LOG = ".parts", "log"
PART_FILES, CHECKPOINT_DIRECTORIES = "block-*", "step_*"
SCORES = "scores"
SUMMARY = "summary.json"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@=-]{0,99}")
_SHARD_FILE = re.compile(r"shard-([0-9]{5,})-of-([0-9]{5,})\.(parquet|json)")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


@dataclass(frozen=True, slots=True)
class ShardPath:
    """Holds the paths of a data file and its manifest, and which shard they are."""

    root: Path
    """The run directory; paths in manifests are relative to it."""
    stage: str
    iteration: int
    shard: int
    num_shards: int
    data: Path
    manifest: Path

    @property
    def relative(self) -> str:
        """The path of the data file in manifests: `iteration_0000/draft/shard-00000-of-00008.parquet`."""
        return self.data.relative_to(self.root).as_posix()

    @property
    def parts(self) -> Path:
        """The directory of the complete blocks while the shard is being made; each shard has its own."""
        return self.data.parent / PARTS / self.data.stem

    @property
    def name(self) -> str:
        """The name in messages, for example `draft shard 3 of 8`."""
        return name_of(self.stage, self.iteration, self.shard, self.num_shards)

    @property
    def command(self) -> str:
        """The command that makes the shard."""
        return make_command(self)

    @property
    def overwrite_command(self) -> str:
        """The command that makes the shard again in place of the existing one."""
        return overwrite_command(self)


@dataclass(frozen=True, slots=True)
class UpdatePath:
    """Holds the paths of the directory `update/` of an iteration, which appears in one rename."""

    root: Path
    iteration: int
    directory: Path

    @property
    def metrics(self) -> Path:
        """The data file that the manifest describes."""
        return self.directory / "metrics.parquet"

    @property
    def advantages(self) -> Path:
        """The audit copy of the input of the gradient step."""
        return self.directory / "advantages.parquet"

    @property
    def optimizer(self) -> Path:
        """The directory of the optimiser state."""
        return self.directory / "optimizer"

    @property
    def adapter(self) -> Path:
        """The directory of the LoRA adapter, if one is trained."""
        return self.directory / "adapter"

    @property
    def checkpoints(self) -> Path:
        """The directory of checkpoints between optimiser steps, next to the update that does not exist yet."""
        return self.directory.parent / ".update"

    @property
    def manifest(self) -> Path:
        """The manifest, inside the directory so that it is published together with it."""
        return self.directory / "manifest.json"

    @property
    def policy(self) -> Path:
        """The place of the new policy until `promote_policy` moves it to `policies/`."""
        return self.directory / "policy"

    def relative(self, path: Path) -> str:
        """Return the name of a file of the run in manifests."""
        return path.relative_to(self.root).as_posix()

    @property
    def shard(self) -> ShardPath:
        """Metrics and manifest as the only shard of the stage, for `completed` and `open_input`."""
        return ShardPath(self.root, "update", self.iteration, 0, 1, self.metrics, self.manifest)


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Holds the paths of one run. Reads nothing but directory listings and creates nothing."""

    root: Path

    @property
    def name(self) -> str:
        """The name of the directory, also where it is the current one."""
        return self.root.resolve().name

    @property
    def run_toml(self) -> Path:
        """The file of the resolved settings."""
        return self.root / "run.toml"

    @property
    def changes(self) -> Path:
        """The directory of the changes of settings that followed."""
        return self.root / "changes"

    @property
    def fork(self) -> Path:
        """The record of a forked run: where it comes from."""
        return self.root / "fork.json"

    @property
    def policies(self) -> Path:
        """The directory of all policies."""
        return self.root / "policies"

    @property
    def judgements(self) -> Path:
        """The directory of judgements, which are kept so that no task pays for one twice."""
        return self.root / "judge"

    def problems(self) -> ShardPath:
        """Return the path of the training problems, which `init` freezes."""
        return self._problem_file(self.root)

    def policy(self, iteration: int) -> Path:
        """Return the directory of the policy that `iteration` samples from; iteration k makes policy k+1."""
        return self.policies / f"{iteration:04d}"

    def delta(self, iteration: int) -> Path:
        """Return the directory of the difference of a policy from the one before (`policy.keep`)."""
        return self.policies / f"{iteration:04d}.delta"

    def iteration(self, iteration: int) -> Path:
        """Return the directory of one iteration."""
        return self.root / f"iteration_{iteration:04d}"

    def stage(self, iteration: int, stage: str) -> Path:
        """Return the directory of one stage of one iteration."""
        return self.iteration(iteration) / stage

    def shard(self, iteration: int, stage: str, shard: int, num_shards: int) -> ShardPath:
        """Return the path of one shard of draft, select or refine."""
        return self._shard(self.stage(iteration, stage), stage, iteration, shard, num_shards)

    def shards(self, iteration: int, stage: str, num_shards: int) -> tuple[ShardPath, ...]:
        """Return the paths of all shards of draft, select or refine, in order."""
        return tuple(self.shard(iteration, stage, shard, num_shards) for shard in range(num_shards))

    def scores(self, rollouts: ShardPath, name: str) -> ShardPath:
        """Return the path of the set of scores called `name` of a shard of rollouts, in a folder next to it."""
        directory = rollouts.data.parent / SCORES / _checked_name(name, "set of scores")
        return self._shard(directory, SCORES, rollouts.iteration, rollouts.shard, rollouts.num_shards)

    def score_sets(self, iteration: int, stage: str) -> list[str]:
        """Return the names of the sets of scores of a stage."""
        directory = self.stage(iteration, stage) / SCORES
        names = (path.name for path in directory.iterdir()) if directory.is_dir() else ()
        return sorted(name for name in names if _NAME.fullmatch(name))

    def update(self, iteration: int) -> UpdatePath:
        """Return the paths of the update of one iteration."""
        return UpdatePath(self.root, iteration, self.stage(iteration, "update"))

    def eval(self, bench: str, policy: int | str, *, conditioned: str | None = None) -> Path:
        """Return the directory of one evaluation; `policy` is a number of the run, or the name of another model.

        `conditioned` is the `eval.selection` of an evaluation with draft, and None without draft.
        """
        return self._bench(bench) / _checked_name(eval_name(policy, conditioned), "model")

    def eval_shard(
        self, bench: str, policy: int | str, shard: int, num_shards: int, *, conditioned: str | None = None
    ) -> ShardPath:
        """Return the path of one shard of an evaluation; its iteration is that of the policy, 0 for other models."""
        return self.eval_shard_in(self.eval(bench, policy, conditioned=conditioned), shard, num_shards)

    def eval_shard_in(self, directory: Path, shard: int, num_shards: int) -> ShardPath:
        """Return the path of one shard of the evaluation in `directory`."""
        return self._shard(directory, "eval", eval_iteration(directory), shard, num_shards)

    def eval_summary(self, bench: str, policy: int | str, *, conditioned: str | None = None) -> Path:
        """Return the path of the summary of one evaluation."""
        return self.eval(bench, policy, conditioned=conditioned) / SUMMARY

    def eval_summaries(self) -> list[Path]:
        """Return the paths of the summaries of all complete evaluations."""
        return sorted(self.root.glob(f"eval/*/*/{SUMMARY}"))

    def eval_problems(self, bench: str) -> ShardPath:
        """Return the path of the problems of a benchmark as they were evaluated."""
        return self._problem_file(self._bench(bench))

    def iterations(self) -> list[int]:
        """Return the iterations that have a directory, in order."""
        return _numbered(self.root, r"iteration_([0-9]{4,})")

    def policy_iterations(self) -> list[int]:
        """Return the iterations whose policy has a directory, in order."""
        return _numbered(self.policies, r"([0-9]{4,})")

    def delta_iterations(self) -> list[int]:
        """Return the iterations whose policy is stored as a difference, in order."""
        return _numbered(self.policies, r"([0-9]{4,})\.delta")

    def _bench(self, bench: str) -> Path:
        return self.root / "eval" / _checked_name(bench, "benchmark")

    def _problem_file(self, directory: Path) -> ShardPath:
        data, manifest = directory / "problems.parquet", directory / "problems.json"
        return ShardPath(self.root, "problems", 0, 0, 1, data, manifest)

    def _shard(self, directory: Path, stage: str, iteration: int, shard: int, num_shards: int) -> ShardPath:
        if not 0 <= shard < num_shards:
            raise UsageError(f"shard {shard} of {num_shards} does not exist: shards count from 0")
        stem = f"shard-{shard:05d}-of-{num_shards:05d}"
        data, manifest = directory / f"{stem}.parquet", directory / f"{stem}.json"
        return ShardPath(self.root, stage, iteration, shard, num_shards, data, manifest)


def name_of(stage: str, iteration: int, shard: int, num_shards: int) -> str:
    """Return the name of a shard in messages."""
    if stage == "problems":
        return "the problems file"
    return f"the update of iteration {iteration}" if stage == "update" else f"{stage} shard {shard} of {num_shards}"


def directory_name(name: str) -> str:
    """Return the name of a model or benchmark as a valid name of a directory."""
    return re.sub(r"[^A-Za-z0-9._+@=-]+", "--", name.strip("/.")) or "model"


def bench_name(bench: str) -> str:
    """Return the name of `--bench` on disk: the stem of a file, or the name of a benchmark."""
    is_file = bench.endswith((".jsonl", ".json", ".parquet", ".csv", ".tsv"))
    return Path(bench).stem if is_file else directory_name(bench)


def parse_shards(text: str, num_shards: int, kind: str = "shard") -> tuple[int, ...]:
    """Return `3,7,12-15` as sorted numbers without duplicates. `kind` names them in a UsageError, and their flag."""
    has = f"{'this run' if kind == 'shard' else 'it'} has {num_shards} {kind}s, counted from 0"
    hint = f"for example --{kind} 0 or --{kind} 0,2-3; {has}"
    shards: set[int] = set()
    for piece in text.split(","):
        match = _RANGE.fullmatch(piece.strip())
        if match is None:
            raise UsageError(f"{piece.strip()!r} names no {kind}", hint=hint)
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UsageError(f"the {kind}s {piece.strip()} run backwards", hint=hint)
        if last >= num_shards:
            raise UsageError(f"{kind} {last} of {num_shards} does not exist", hint=hint)
        shards.update(range(first, last + 1))
    return tuple(sorted(shards))


def format_shards(shards: Iterable[int]) -> str:
    """Return shard numbers as `3,7,12-15`, which `parse_shards` and Slurm's `--array` read; empty for none."""
    runs: list[list[int]] = []
    for shard in sorted(set(shards)):
        if runs and runs[-1][1] == shard - 1:
            runs[-1][1] = shard
        else:
            runs.append([shard, shard])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def shards_in(directory: Path) -> dict[tuple[int, int], set[str]]:
    """Return the shard files of a directory as {(shard, num_shards): suffixes}; suffixes are `parquet` and `json`."""
    found: dict[tuple[int, int], set[str]] = {}
    for path in directory.iterdir() if directory.is_dir() else ():
        if match := _SHARD_FILE.fullmatch(path.name):
            found.setdefault((int(match[1]), int(match[2])), set()).add(match[3])
    return dict(sorted(found.items()))


def _numbered(directory: Path, pattern: str) -> list[int]:
    if not directory.is_dir():
        return []
    matches = (re.fullmatch(pattern, path.name) for path in directory.iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in matches if match)


def _checked_name(name: str, kind: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a {kind}",
            hint="letters, digits and . _ + @ = - after a first letter or digit",
        )
    return name


_EVAL_NAME = re.compile(r"(?:policy_([0-9]{4,})|.+?)(_conditioned(?:_(majority|best))?)?")
"""Policy of the run, with or without draft, and `eval.selection` unless it is `each`."""


def eval_name(policy: int | str, conditioned: str | None) -> str:
    """Return `policy_0003`, `policy_0003_conditioned` or `SmolLM2_conditioned_best`.

    `conditioned` is the `eval.selection` of an evaluation with draft, and None without draft.
    """
    name = policy if isinstance(policy, str) else f"policy_{policy:04d}"
    if conditioned is None:
        return name
    return f"{name}_conditioned" if conditioned == "each" else f"{name}_conditioned_{conditioned}"


def eval_iteration(directory: Path) -> int:
    """Return the iteration of the evaluated policy; 0 for other models."""
    return int(_eval_parts(directory)[0] or 0)


def read_eval_name(name: str) -> tuple[int | str, str | None]:
    """Return the arguments that `eval_name` made the name of a directory from."""
    policy, conditioned, selection = _eval_parts(Path(name))
    model = name.removesuffix(conditioned or "")
    return (model if policy is None else int(policy)), (selection or "each") if conditioned else None


def eval_flags(directory: Path) -> str:
    """Return the flags of `igrpo eval` that make the results in a directory."""
    policy, conditioned, selection = _eval_parts(directory)
    bench = f"--bench {directory.parent.name}"
    flags = [f"--model MODEL {bench}" if policy is None else f"{bench} --iteration {int(policy)}"]
    flags += ["--with-draft"] if conditioned else []
    flags += [f"--set eval.selection={selection}"] if selection else []
    return " ".join(flags)


def _eval_parts(directory: Path) -> tuple[str | None, ...]:
    match = _EVAL_NAME.fullmatch(directory.name)
    return match.groups() if match else (None, None, None)


def make_command(path: ShardPath) -> str:
    """Return the command that makes a shard, with the `--set` of the command that is running."""
    return with_overrides(_make_command(path), path.stage)


def _make_command(path: ShardPath) -> str:
    if path.stage == "problems":
        if path.data.parent == path.root:
            return init_command(path.root)
        return command_line(path.root, "eval", f"--bench {path.data.parent.name}")
    if path.stage == "eval":
        return eval_command(path, f"--shard {path.shard}")
    if path.stage == "scores":
        stage, name = path.data.parents[2].name, path.data.parent.name
        flags = f"--stage {stage} --iteration {path.iteration} --scores {name} --shard {path.shard}"
        return f"igrpo grade {shell_path(path.root)} {flags}"
    flags = f"--iteration {path.iteration}" + ("" if path.stage == "update" else f" --shard {path.shard}")
    return command_line(path.root, path.stage, flags)


def overwrite_command(path: ShardPath) -> str:
    """Return the command that makes a shard in place of the existing one.

    `igrpo init` replaces damaged problems without a flag.
    """
    is_of_run = path.stage == "problems" and path.data.parent == path.root
    return make_command(path) if is_of_run else f"{make_command(path)} --overwrite"


def eval_command(path: ShardPath, flags: str) -> str:
    """Return the `igrpo eval` with these flags for the evaluation of a shard."""
    flags = f"{eval_flags(path.data.parent)} {flags}"
    if not flags.startswith("--model"):
        return command_line(path.root, "eval", flags)
    return f"igrpo eval {flags}" + ("" if path.root == Path() else f" --output {shell_path(path.root)}")
