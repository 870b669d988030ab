"""Check every file of a run against its manifest and its inputs, for `igrpo verify`."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from igrpo_cli.errors import IgrpoError
from igrpo_cli.store.checksummed_json import (
    read_checksummed_line,
    read_sent,
    read_summary,
    summary_hint,
    verify_directory,
)
from igrpo_cli.store.conflicts import settings_differences
from igrpo_cli.store.deltas import verify_delta
from igrpo_cli.store.hashing import sha256_file
from igrpo_cli.store.hints import command_line, init_command
from igrpo_cli.store.layout import (
    LOG,
    PARTS,
    SCORES,
    SHARD_STAGES,
    SUMMARY,
    RunDirectory,
    ShardPath,
    format_shards,
    shards_in,
)
from igrpo_cli.store.lineage import changed_parent, is_sampled_ahead, read_fork
from igrpo_cli.store.manifest import Manifest, read_manifest
from igrpo_cli.store.policies import Policy, read_policy, verify_policy
from igrpo_cli.store.row_checks import IterationRows, check_stage, read_problem_ids, read_scores, read_shard
from igrpo_cli.store.settings import read_changes, samples_ahead, settings_fault
from igrpo_cli.store.temporaries import is_temporary


@dataclass(frozen=True, slots=True)
class FileProblem:
    """Represents a fault of a file, or a note about it."""

    path: Path
    what: str
    hint: str | None = None


@dataclass
class VerifyReport:
    """Holds the result of `verify_run`."""

    problems: list[FileProblem] = field(default_factory=list)
    notes: list[FileProblem] = field(default_factory=list)
    """Harmless findings: leftovers of interrupted commands, and removed policies."""
    num_checked: int = 0
    """Data files and policies that were read and compared with their manifests."""


MAX_COMPLAINTS = 5
"""Maximum number of faults that are reported per file."""
HASHED = ("*.parquet", "*.safetensors", "tokenizer.json")
"""Patterns of the files that make up nearly all bytes of a run."""


def verify_run(
    run: RunDirectory,
    on_file: Callable[[Path], None] | None = None,
    on_hashed: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Check a whole run, block by block.

    `on_file` receives each file before it is read, and `on_hashed` the number of its bytes.
    """
    return _Verifier(run, on_file or (lambda path: None), on_hashed or (lambda num_bytes: None)).verify()


def bytes_to_hash(run: RunDirectory) -> int:
    """Return about how many bytes `verify_run` will hash: those of all data files and weights in the run."""
    return sum(path.stat().st_size for name in HASHED for path in run.root.rglob(name) if path.is_file())


class _Verifier:
    def __init__(self, run: RunDirectory, on_file: Callable[[Path], None], on_hashed: Callable[[int], None]) -> None:
        self.run = run
        self.on_file = on_file
        self.on_hashed = on_hashed
        self.report = VerifyReport()
        self.policies: dict[int, Policy] = {}
        self._hashes: dict[Path, str] = {}
        self._samples_ahead = samples_ahead(run.run_toml)

    def verify(self) -> VerifyReport:
        if fault := settings_fault(self.run.run_toml):
            self.problem(self.run.run_toml, *fault)
        with self.guarded(self.run.changes):
            read_changes(self.run)
        problem_ids = self.check_problems(self.run.problems())
        self.check_policies()
        iterations = self.run.iterations()
        last = max([*iterations, *(policy - 1 for policy in self.run.policy_iterations())], default=-1)
        ahead = last - 1 if self.is_begun_ahead(last) else last
        for iteration in range(last + 1):
            if iteration in iterations:
                self.check_iteration(iteration, iteration < ahead, problem_ids)
            else:
                what = "does not exist, though later iterations or policies do"
                self.problem(self.run.iteration(iteration), what)
        self.check_evals()
        with self.guarded(self.run.fork):
            self.check_fork()
        self.report.problems += [*damaged_records(self.run), *broken_links(self.run)]
        self.report.notes += leftovers(self.run)
        return self.report

    def is_begun_ahead(self, iteration: int) -> bool:
        """Return True where an iteration has nothing but drafts of the policy before, and selections of them."""
        if not is_sampled_ahead(self.run, iteration):
            return False
        names = {path.name for path in self.run.iteration(iteration).iterdir() if not is_temporary(path.name)}
        return names <= {"draft", "select"}

    def check_fork(self) -> None:
        """Note where the run has another policy by now than the one it was forked from, or its parent has."""
        fork = read_fork(self.run)
        if fork is None:
            return
        policy = self.policies.get(fork.iteration)
        if policy is not None and policy.id != fork.policy:
            self.note(self.run.fork, f"policy {fork.iteration} is another one than that of {fork.parent}")
        elif changed := changed_parent(self.run, fork):
            self.note(self.run.fork, changed)

    def problem(self, path: Path, what: str, hint: str | None = None) -> None:
        self.report.problems.append(FileProblem(path, what, hint))

    def note(self, path: Path, what: str, hint: str | None = None) -> None:
        self.report.notes.append(FileProblem(path, what, hint))

    @contextmanager
    def guarded(self, path: Path, hint: str | None = None) -> Iterator[None]:
        """Record an exception as a fault of `path`, and continue."""
        try:
            yield
        except IgrpoError as error:
            self.problem(path, error.message, hint or error.hint)

    def check_problems(self, path: ShardPath) -> set[str] | None:
        ids: set[str] = set()
        sound = self.check_file(path, lambda manifest: read_problem_ids(path, manifest, ids))
        return ids if sound else None

    def check_policies(self) -> None:
        present = self.run.policy_iterations()
        for iteration in present:
            self.report.num_checked += 1
            self.on_file(self.run.policy(iteration))
            with self.guarded(self.run.policy(iteration)):
                policy = self.policies[iteration] = read_policy(self.run, iteration)
                verify_policy(policy, self.hash_of)
                before = self.policies.get(iteration - 1)
                if before is not None and policy.parent != before.id:
                    self.problem(policy.directory, f"was not made from policy {iteration - 1} ({before.id[:15]}…)")
        for iteration in self.run.delta_iterations():
            self.report.num_checked += 1
            with self.guarded(self.run.delta(iteration)):
                verify_delta(self.run, iteration)
        updates = [k for k in self.run.iterations() if self.run.update(k).manifest.exists()]
        needed = max(updates, default=-1) + 1
        for iteration in sorted(set(range(needed + 1)) - set(present)):
            self.tell_missing_policy(iteration, needed)

    def tell_missing_policy(self, iteration: int, needed: int) -> None:
        place = self.run.policy(iteration)
        if iteration and self.run.update(iteration - 1).policy.is_dir():
            self.note(place, "is still in the update that made it: the next command moves it here")
        elif iteration in (0, needed):
            made_by = (
                self.run.update(iteration - 1).shard.overwrite_command if iteration else init_command(self.run.root)
            )
            self.problem(place, "does not exist", made_by)
        elif self.run.delta(iteration).is_dir():
            self.note(place, f"is stored as a difference; {command_line(self.run.root, 'policy', str(iteration))}")
        else:
            self.note(place, "was removed: the shards sampled from it cannot be made again")

    def check_iteration(self, iteration: int, passed: bool, problem_ids: set[str] | None) -> None:
        known, update = IterationRows(problem_ids), self.run.update(iteration)
        passed = passed or update.directory.exists() or self.run.policy(iteration + 1).exists()
        shards = {stage: shards_in(self.run.stage(iteration, stage)) for stage in SHARD_STAGES}
        for number, stage in enumerate(SHARD_STAGES):

            def path_of(shard: int, num_shards: int, stage: str = stage) -> ShardPath:
                return self.run.shard(iteration, stage, shard, num_shards)

            # `igrpo run` refines a shard while drafts of later shards are sampled.
            later = {shard for each in SHARD_STAGES[number + 1 :] for shard, _ in shards[each]}
            self.check_shards(self.run.stage(iteration, stage), stage, path_of, known, passed, later)
            self.check_scores(iteration, stage, known)
        for directory in (update.optimizer, update.adapter):
            if directory.exists():
                with self.guarded(directory, update.shard.overwrite_command):
                    verify_directory(directory)
                self.on_hashed(sum(path.stat().st_size for path in directory.iterdir()))
        if update.directory.exists():
            self.check_file(update.shard, lambda manifest: read_shard(update.shard, manifest, known))
        elif passed:
            self.problem(update.directory, "does not exist, though what follows from it does", update.shard.command)

    def check_shards(
        self,
        directory: Path,
        stage: str,
        path_of: Callable[[int, int], ShardPath],
        known: IterationRows,
        passed: bool,
        later: Collection[int] = (),
    ) -> None:
        """Check all shards of a stage.

        No shard may be missing where `passed`, because later work needs all, and none that a `later` stage has.
        """
        found = shards_in(directory)
        totals = sorted({num_shards for _, num_shards in found})
        known.unread.add(stage)
        if len(totals) > 1:
            self.problem(directory, f"holds shards of {totals[0]} beside shards of {totals[1]}")
        if len(totals) != 1:
            return
        paths = [path_of(shard, totals[0]) for shard in range(totals[0])]
        missing = [path for path in paths if not path.manifest.exists()]
        for path in missing:
            if path.data.exists():
                self.note(path.data, "has no manifest, so it does not count: its stage makes it again", path.command)
        lost = [path for path in missing if passed or path.shard in later]
        if lost:
            shards = format_shards(path.shard for path in lost)
            self.problem(directory, f"shards {shards} of {totals[0]} are missing", lost[0].command)
        manifests = {path: self.check_shard(path, known) for path in paths if path not in missing}
        self.check_same_settings({path: manifest for path, manifest in manifests.items() if manifest is not None})
        if not missing and all(manifests.values()):
            known.unread.discard(stage)
            self.complain(directory, check_stage(stage, known), None)

    def check_scores(self, iteration: int, stage: str, known: IterationRows) -> None:
        """Check all sets of scores of a stage, which may cover only some of its shards."""
        for name in self.run.score_sets(iteration, stage):
            manifests: dict[ShardPath, Manifest] = {}
            for shard, num_shards in shards_in(self.run.stage(iteration, stage) / SCORES / name):
                path = self.run.scores(self.run.shard(iteration, stage, shard, num_shards), name)
                if not path.manifest.exists():
                    self.note(path.data, "has no manifest, so it does not count", path.command)
                elif manifest := self.check_file(path, partial(read_scores, path, stage=stage, known=known)):
                    manifests[path] = manifest
            self.check_same_settings(manifests)

    def check_shard(self, path: ShardPath, known: IterationRows) -> Manifest | None:
        return self.check_file(path, lambda manifest: read_shard(path, manifest, known))

    def check_same_settings(self, manifests: dict[ShardPath, Manifest]) -> None:
        for path, what in settings_differences(manifests):
            self.problem(path.manifest, what, path.overwrite_command)

    def check_file(self, path: ShardPath, read: Callable[[Manifest], Iterator[str]]) -> Manifest | None:
        """Check manifest, hashes and rows of one data file; None where later files cannot be compared with it."""
        self.report.num_checked += 1
        self.on_file(path.data)
        with self.guarded(path.manifest, path.overwrite_command):
            manifest = read_manifest(path)
            self.complain(path.manifest, self.check_made_from(path, manifest), path.overwrite_command)
            if self.hash(path.relative) is None:
                self.problem(path.data, "does not exist, though its manifest does", path.command)
            elif self.hash(path.relative) != manifest.data.sha256:
                self.problem(
                    path.data, f"is damaged: its SHA-256 is not the one in {path.manifest.name}", path.overwrite_command
                )
            elif self.complain(path.data, read(manifest), path.overwrite_command):
                return manifest
        return None

    def check_made_from(self, path: ShardPath, manifest: Manifest) -> Iterator[str]:
        """Compare the files that a manifest names with the files on disk."""
        for file in manifest.identity.inputs:
            now = self.hash(file.path)
            if now is None:
                yield f"was made from {file.path}, which does not exist"
            elif now != file.sha256:
                yield f"was made from another {file.path} (sha256 {file.sha256[:8]}… then, {now[:8]}… now)"
        for file in manifest.outputs:
            now = self.hash(file.path)
            # Old policies may be removed to save room; `check_policies` says which of them matter.
            if now is None and file in manifest.lasting_outputs and not file.path.startswith("policies/"):
                yield f"speaks of {file.path}, which does not exist"
            elif now is not None and now != file.sha256:
                yield f"speaks of another {file.path} (sha256 {file.sha256[:8]}… then, {now[:8]}… now)"
        policy = self.policies.get(path.iteration) if path.stage in ("draft", "refine", "update") else None
        is_ahead = self._samples_ahead and path.stage == "draft" and path.iteration > 0
        if policy is not None and manifest.identity.policy != (policy.parent if is_ahead else policy.id):
            yield f"was made from another policy than {policy.directory} holds"

    def complain(self, path: Path, complaints: Iterator[str], hint: str | None) -> bool:
        """Report the first complaints; return False where the file could not be read to its end."""
        try:
            for what in islice(complaints, MAX_COMPLAINTS):
                self.problem(path, what, hint)
            if any(True for _ in complaints):
                self.problem(path, "and more of the kind", hint)
        except IgrpoError as error:
            self.problem(path, error.message, hint)
            return False
        return True

    def hash(self, relative: str) -> str | None:
        """Return the SHA-256 of a file of the run; None where there is none."""
        path = self.run.root / relative
        return self.hash_of(path) if path.is_file() else None

    def hash_of(self, path: Path) -> str:
        """Return the SHA-256 of a file, computed once, since many manifests name the same file."""
        if path not in self._hashes:
            self._hashes[path] = sha256_file(path)
            self.on_hashed(path.stat().st_size)
        return self._hashes[path]

    def check_evals(self) -> None:
        for directory in sorted((self.run.root / "eval").glob("*/*/")):
            if directory.name.startswith(".") or not directory.is_dir():
                continue

            def path_of(shard: int, num_shards: int, directory: Path = directory) -> ShardPath:
                return self.run.eval_shard_in(directory, shard, num_shards)

            with self.guarded(directory):
                problems = self.run.eval_problems(directory.parent.name)
                ids = self.check_problems(problems) if problems.manifest.exists() else None
                summary = directory / SUMMARY
                self.check_shards(directory, "eval", path_of, IterationRows(ids), summary.exists())
                if summary.exists():
                    with self.guarded(summary, summary_hint(summary)):
                        read_summary(summary)


def damaged_records(run: RunDirectory) -> Iterator[FileProblem]:
    """Yield tracker records and judgements that are damaged."""
    for path in sorted((run.root / LOG).glob("*.json")):
        try:
            read_sent(path)
        except IgrpoError as error:
            yield FileProblem(path, error.message, error.hint)
    for path in sorted(run.judgements.glob("*.jsonl")):
        try:
            # What follows the last newline is a line that is being written, or whose writer was killed.
            lines = path.read_bytes().split(b"\n")[:-1]
        except OSError as error:
            yield FileProblem(path, f"cannot be read: {error.strerror}")
            continue
        damaged = [number for number, line in enumerate(lines, start=1) if not _is_judgement(line)]
        if damaged:
            others = f" and {len(damaged) - 1} others" if len(damaged) > 1 else ""
            hint = "remove these lines: what they were about is judged again when it is needed"
            yield FileProblem(path, f"line {damaged[0]}{others}: no judgement as it was written", hint)


def broken_links(run: RunDirectory) -> Iterator[FileProblem]:
    """Yield links whose target does not exist."""
    for path in _walk(run.root):
        if path.is_symlink() and not os.path.exists(path):
            hint = "remove the link, or make available what it leads to"
            yield FileProblem(path, f"is a link that leads nowhere ({os.readlink(path)})", hint)


def leftovers(run: RunDirectory) -> Iterator[FileProblem]:
    """Yield what killed commands have left behind."""
    for path in _walk(run.root):
        if is_temporary(path.name):
            yield FileProblem(path, "is a temporary of a command that runs, or was killed")
        elif path.name == PARTS and any(path.glob("*/*")):
            yield FileProblem(path, "holds finished blocks of unfinished shards")


def _walk(root: Path) -> Iterator[Path]:
    """Yield everything below `root` except the content of leftovers."""
    for directory, names, files in os.walk(root):
        yield from (Path(directory, name) for name in sorted([*names, *files]))
        names[:] = [name for name in names if name != PARTS and not is_temporary(name)]


def _is_judgement(line: bytes) -> bool:
    try:
        read_checksummed_line(line)
    except ValueError:
        return False
    return True
