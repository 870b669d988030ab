"""What another run or a file contributes: drafts for `select.strategy = "external"`, and solve rates of problems."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from igrpo_cli.errors import IgrpoError, MissingInputError, UsageError
from igrpo_cli.problems.files import digest_of, read_rows
from igrpo_cli.problems.rows import BLANK_LINE, BadRow
from igrpo_cli.records import Problem
from igrpo_cli.seeds import derive_seed
from igrpo_cli.store.hints import no_run_error
from igrpo_cli.store.layout import RunDirectory, ShardPath, shards_in

SUFFIXES = (".jsonl", ".parquet")
COLUMNS = ("problem_id", "draft")
SHOWN_IDS = 5
"""Maximum number of problem ids in an error."""

ExternalDrafts = Mapping[str, Sequence[str]]
"""The drafts of each problem by its id, in the order of the source."""


def read_external_drafts(location: Path) -> ExternalDrafts:
    """Return the drafts of a file with the columns `problem_id` and `draft`, or those of all iterations of a run.

    Raises MissingInputError where there is nothing at `location`, UsageError for a file of another kind, IgrpoError
    with the place of a row without the two texts, and DamagedFileError.
    """
    drafts: defaultdict[str, list[str]] = defaultdict(list)
    for problem_id, draft in _drafts_of_run(location) if location.is_dir() else _drafts_of_file(location):
        drafts[problem_id].append(draft)
    return dict(drafts)


def external_sha256(location: Path) -> str:
    """Return the SHA-256 of a file of drafts, or of the list of the draft shards of a run. Raises MissingInputError."""
    if not location.is_dir():
        _check_file(location)
        return digest_of([location], location.parent)
    from igrpo_cli.store.manifest import read_manifest

    shards = "".join(f"{read_manifest(path).data.sha256}  {path.relative}\n" for path in _shards_of_run(location))
    return hashlib.sha256(shards.encode()).hexdigest()


def require_external_drafts(drafts: ExternalDrafts, problem_ids: Iterable[str], location: Path) -> None:
    """Raise MissingInputError, naming their ids, where problems have no draft."""
    missing = sorted(set(problem_ids) - drafts.keys())
    if missing:
        named = ", ".join(missing[:SHOWN_IDS]) + (", …" if len(missing) > SHOWN_IDS else "")
        raise MissingInputError(
            f"{location} has no draft of {len(missing)} problems of this run: {named}",
            hint="add rows with these ids as problem_id, or select other drafts with --set select.strategy=random",
        )


def read_solve_rates(location: Path) -> dict[str, float]:
    """Return the fraction of correct samples without draft of a run by the text of the problem, white space aside.

    Samples that could not be graded do not count. Raises as `read_external_drafts`.
    """
    from igrpo_cli.store.completion import open_input, read_problems
    from igrpo_cli.store.schema import ROLLOUTS
    from igrpo_cli.store.tables import iterate_blocks

    shards, counts = _shards_of_run(location), Counter[tuple[str, bool]]()
    for path in shards:
        open_input(path)
        for block in iterate_blocks(path.data, ROLLOUTS, ("problem_id", "verdict")):
            samples = zip(block["problem_id"].to_pylist(), block["verdict"].to_pylist(), strict=True)
            counts.update(
                (problem_id, verdict == "correct") for problem_id, verdict in samples if verdict != "ungraded"
            )
    rates: dict[str, float] = {}
    for problem in read_problems(RunDirectory(location).problems()):
        correct, wrong = (counts[problem.problem_id, is_correct] for is_correct in (True, False))
        if correct + wrong:
            rates[_words_of(problem)] = correct / (correct + wrong)
    return rates


def with_solve_rates_between(
    problems: Sequence[Problem], rates: Mapping[str, float], minimum: float | None, maximum: float | None
) -> tuple[list[Problem], dict[str, int]]:
    """Return the problems whose solve rate is in the range, limits included, and the number of others by reason."""
    kept, counts = [], {"no_solve_rate": 0, "solved_too_rarely": 0, "solved_too_often": 0}
    for problem in problems:
        rate = rates.get(_words_of(problem))
        if minimum is None and maximum is None:
            kept.append(problem)
        elif rate is None:
            counts["no_solve_rate"] += 1
        elif minimum is not None and rate < minimum:
            counts["solved_too_rarely"] += 1
        elif maximum is not None and rate > maximum:
            counts["solved_too_often"] += 1
        else:
            kept.append(problem)
    return kept, counts


def easy_first(problems: Sequence[Problem], rates: Mapping[str, float], run_seed: int) -> list[Problem]:
    """Return the problems from the highest solve rate to the lowest, then those without one. Equals are shuffled."""

    def rank(problem: Problem) -> tuple[float, int]:
        return -rates.get(_words_of(problem), -1.0), derive_seed(run_seed, "curriculum", problem.problem_id)

    return sorted(problems, key=rank)


def _words_of(problem: Problem) -> str:
    return " ".join(problem.problem.split())


def _drafts_of_file(path: Path) -> Iterator[tuple[str, str]]:
    _check_file(path)
    for number, row in read_rows(path):
        if isinstance(row, BadRow):
            if row.kind == BLANK_LINE:
                continue
            raise IgrpoError(f"{path} row {number}: {row.reason}", hint=row.cure)
        problem_id, draft = (row.get(name) for name in COLUMNS)
        if not isinstance(problem_id, str) or not isinstance(draft, str):
            raise IgrpoError(
                f"{path} row {number} has no texts {' and '.join(COLUMNS)}",
                hint='one row for each draft, for example {"problem_id": "test-1", "draft": "1 + 1 = 2"}',
            )
        yield problem_id, draft


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise MissingInputError(
            f"select.external: {path} does not exist", hint="name a file, or the directory of a run"
        )
    if path.suffix not in SUFFIXES:
        raise UsageError(f"select.external: {path} is none of {', '.join(SUFFIXES)}", hint="export it as JSON lines")


def _drafts_of_run(location: Path) -> Iterator[tuple[str, str]]:
    from igrpo_cli.store.completion import open_input
    from igrpo_cli.store.schema import ROLLOUTS
    from igrpo_cli.store.tables import iterate_blocks

    for path in _shards_of_run(location):
        open_input(path)
        for block in iterate_blocks(path.data, ROLLOUTS, ("problem_id", "completion")):
            yield from zip(block["problem_id"].to_pylist(), block["completion"].to_pylist(), strict=True)


def _shards_of_run(location: Path) -> list[ShardPath]:
    """Return the complete draft shards of all iterations of a run."""
    run = RunDirectory(location)
    if not run.run_toml.exists():
        raise no_run_error(location)
    shards = [
        run.shard(iteration, "draft", *number)
        for iteration in run.iterations()
        for number, suffixes in shards_in(run.stage(iteration, "draft")).items()
        if "json" in suffixes
    ]
    if not shards:
        raise MissingInputError(f"the run {location} has no drafts", hint=f"igrpo draft {location}")
    return shards
