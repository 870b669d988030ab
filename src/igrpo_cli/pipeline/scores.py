"""Score completions that are on disk again: a named set of scores next to their shards, and what it changes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from igrpo_cli.config import RunConfig
from igrpo_cli.errors import IgrpoError, MissingInputError, UsageError
from igrpo_cli.pipeline.session import Session, StageRequest
from igrpo_cli.pipeline.stage_shards import StagePlan, StageShards
from igrpo_cli.pipeline.ungraded import UngradedNotes, refuse_ungraded
from igrpo_cli.prompts import refined_problem
from igrpo_cli.records import VERDICTS, Grade, Problem, Rollout, Score, Selection, StageReport
from igrpo_cli.rewards.scorer import ScoringInput, ScoringResult
from igrpo_cli.store.completion import open_input
from igrpo_cli.store.hashing import sha256_file
from igrpo_cli.store.layout import ShardPath
from igrpo_cli.store.manifest import Manifest, read_manifest
from igrpo_cli.ui.console import Console, table
from igrpo_cli.ui.progress import Progress

SCORED_STAGES = ("draft", "refine")
SHOWN_FLIPS = 10
"""Rows whose verdict flipped that the text lists; `--json` counts all."""


@dataclass(frozen=True)
class ScoreSet:
    """A named set of scores of one stage of one iteration."""

    session: Session
    stage: str
    iteration: int
    name: str
    source: Path | None = None
    """A file with the rewards; None means that they are computed."""

    def rollouts(self, shard: int) -> ShardPath:
        """Return the shard that is scored."""
        return self.session.run.shard(self.iteration, self.stage, shard, self.session.config.run.num_shards)

    def path(self, shard: int, name: str | None = None) -> ShardPath:
        """Return the scores of a shard, under this name or another one."""
        return self.session.run.scores(self.rollouts(shard), name or self.name)

    def make(self, request: StageRequest) -> StageReport:
        """Score the rows of those requested shards that have no scores of this name yet."""
        from igrpo_cli.store.schema import SCORES

        inputs, given = [self.session.run.problems()], None if self.source is None else read_rewards(self.source)
        plan = StagePlan(
            "scores",
            self.path,
            lambda path: [*inputs, self.rollouts(path.shard), *self._selections(path.shard)],
            config=None if self.source is None else {"scores": {"file_sha256": sha256_file(self.source)}},
        )
        stage = StageShards(self.session, request, plan)
        title = self.path(0).data.parent.relative_to(self.session.run.root).as_posix()
        with self.session.console.progress(title, self._num_rows(request), "rows") as progress:
            for shard in stage.unfinished():
                rollouts = open_input(self.rollouts(shard.path.shard))
                if given is None:
                    stage.commit(shard, SCORES, partial(self._scores, shard.path, rollouts, progress))
                else:
                    stage.commit(shard, SCORES, partial(self._given_scores, shard.path, given))
        report = stage.report()
        if given is None:
            command = f"igrpo grade … --scores {self.name} --overwrite"
            refuse_ungraded(report, self.session.config.reward.max_ungraded_share, command)
        report.details |= {"of": self.stage, "scores": self.name}
        return report

    def flips(self, shards: Sequence[int], against: str | None) -> Flips:
        """Compare the verdicts of this set with those of another one, or with the recorded ones (None)."""
        from igrpo_cli.store.scores import open_scores, read_scored

        flips = Flips(against or "recorded", self.name)
        for shard in shards:
            paths = [None if against is None else self.path(shard, against), self.path(shard)]
            open_input(self.rollouts(shard))
            manifests = [None if path is None else open_scores(path, self.rollouts(shard)) for path in paths]
            before, after = (
                read_scored(self.rollouts(shard).data, None if path is None else path.data) for path in paths
            )
            leaves_out = [manifest is not None and bool(manifest.counts.get("left_out")) for manifest in manifests]
            for old, new in zip(before, after, strict=True):
                flips.add(old, new, leaves_out)
        return flips

    def _selections(self, shard: int) -> list[ShardPath]:
        """Return the selections of the shard where the reward depends on drafts."""
        reward = self.session.config.reward
        if (
            self.stage != "refine"
            or self.source is not None
            or ("copy" not in reward.weights and reward.refinements == "answer")
        ):
            return []
        return [self.session.run.shard(self.iteration, "select", shard, self.session.config.run.num_shards)]

    def _shown(self, shard: int) -> dict[int, Selection]:
        """Return the selection of each group whose refinements see a draft; {} if no reward depends on drafts."""
        from igrpo_cli.store.tables import read_records

        found: dict[int, Selection] = {}
        for path in self._selections(shard):
            open_input(path)
            chosen = read_records(path.data, Selection)
            found |= {each.group_id: each for each in chosen if each.action == "condition"}
        return found

    def _num_rows(self, request: StageRequest) -> int:
        """Rows of the requested shards that have no scores of this name yet, as far as they are there."""
        shards = (each for each in request.shards if request.overwrite or not self.path(each).manifest.exists())
        sources = (self.rollouts(shard) for shard in shards)
        return sum(read_manifest(source).data.rows for source in sources if source.manifest.exists())

    def _scores(
        self, path: ShardPath, source: Manifest, progress: Progress, counts: Counter[str]
    ) -> Iterator[list[Score]]:
        from igrpo_cli.store.tables import iterate_records

        assert source.sampling is not None
        max_length = int(source.sampling["max_completion_length"])
        problems = {problem.problem_id: problem for problem in self.session.problems()}
        shown, config = self._shown(path.shard), self.session.config
        scorer, notes = self.session.scorer(), UngradedNotes(path, self.session.console.note)
        for rollouts in iterate_records(self.rollouts(path.shard).data, Rollout):
            results = scorer.score(
                [
                    _scoring_input(row, problems[row.problem_id], max_length, shown.get(row.group_id), config)
                    for row in rollouts
                ]
            )
            for row, result in zip(rollouts, results, strict=True):
                counts[f"verdict_{result.grade.verdict}"] += 1
                if result.grade.reason is not None:
                    notes(row, result.grade.reason)
            progress.advance(len(rollouts))
            yield [_score(row, result) for row, result in zip(rollouts, results, strict=True)]

    def _given_scores(
        self, path: ShardPath, given: Mapping[tuple[int, int], float], counts: Counter[str]
    ) -> Iterator[list[Score]]:
        """Yield the rows with the rewards of a file; a completion without a reward is left out.

        Raises IgrpoError for a completion that the iteration does not have.
        """
        from igrpo_cli.store.tables import iterate_records

        found: set[tuple[int, int]] = set()
        for rollouts in iterate_records(self.rollouts(path.shard).data, Rollout):
            found |= {(row.group_id, row.sample_id) for row in rollouts}
            rewards = [given.get((row.group_id, row.sample_id)) for row in rollouts]
            scores = [_given_score(row, reward) for row, reward in zip(rollouts, rewards, strict=True)]
            counts["left_out"] += rewards.count(None)
            counts.update(f"verdict_{score.verdict}" for score in scores)
            yield scores
        groups = self.session.config.blocks().groups_of_shard(path.shard)
        is_last = path.shard == path.num_shards - 1
        ours = (key for key in given if key[0] in groups or (is_last and key[0] >= groups.stop))
        for group_id, sample_id in sorted(set(ours) - found)[:1]:
            raise IgrpoError(
                f"{self.source}: {self.stage} {self.iteration} has no sample {sample_id} of group {group_id}",
                hint="take group_id and sample_id from the rollouts of this stage and iteration",
            )


class Flips:
    """Rows that two sets of scores judge differently."""

    def __init__(self, before: str, after: str) -> None:
        self._names = (before, after)
        self._verdicts: Counter[tuple[str, str]] = Counter()
        self._rewards: tuple[list[float], list[float]] = ([], [])
        self._rows: list[tuple[str, int, int, str, str, str]] = []

    def add(self, before: Rollout, after: Rollout, leaves_out: Sequence[bool] = (False, False)) -> None:
        """Count one row. Where a set leaves completions out, the `ungraded` ones are in no mean."""
        self._verdicts[before.verdict, after.verdict] += 1
        for side, rewards, has_left_out in zip((before, after), self._rewards, leaves_out, strict=True):
            if not has_left_out or side.verdict != "ungraded":
                rewards.append(side.reward)
        if before.verdict != after.verdict and len(self._rows) < SHOWN_FLIPS:
            answer = (after.extracted_answer or before.extracted_answer or "")[:40]
            row = (before.problem_id, before.group_id, before.sample_id, before.verdict, after.verdict, answer)
            self._rows.append(row)

    def payload(self) -> dict[str, Any]:
        """Return the keys for the `--json` object."""
        before, after = (math.fsum(rewards) / max(len(rewards), 1) for rewards in self._rewards)
        flipped = {f"{old} -> {new}": n for (old, new), n in sorted(self._verdicts.items()) if old != new}
        return {
            "against": self._names[0],
            "flipped": flipped,
            "reward_mean_before": before,
            "reward_mean_after": after,
        }

    def text(self) -> str:
        """Verdicts before by verdicts after, and the first rows that flipped."""
        before, after = self._names
        means, num_rows, num_left = self.payload(), self._verdicts.total(), len(self._rewards[1])
        told = f"mean reward {means['reward_mean_before']:.4f} -> {means['reward_mean_after']:.4f}"
        if num_left < num_rows:
            mean = f"mean of the other {num_left}: {means['reward_mean_after']:.4f}"
            told = f"{num_rows - num_left} of {num_rows} left out; {mean}"
        grid = [(old, *(self._verdicts[old, new] for new in VERDICTS)) for old in VERDICTS]
        lines = [
            table((f"{before} \\ {after}", *VERDICTS), grid),
            "",
            f"{told}, {sum(means['flipped'].values())} of {num_rows} verdicts flipped",
        ]
        if self._rows:
            lines += ["", table(("problem", "group", "sample", before, after, "answer"), self._rows)]
        return "\n".join(lines)


def name_of_weights(weights: dict[str, float]) -> str:
    """Return the default name of a set of scores: its parts and their weights."""
    return "+".join(part if weight == 1 else f"{part}={weight:g}" for part, weight in weights.items())


def parse_weights(texts: Sequence[str]) -> dict[str, float]:
    """`--reward accuracy --reward judge=0.5` as weights. Raises UsageError."""
    weights: dict[str, float] = {}
    for text in texts:
        part, _, weight = text.partition("=")
        try:
            weights[part.strip()] = float(weight) if weight else 1.0
        except ValueError:
            raise UsageError(f"--reward {text!r}: {weight!r} is no weight", hint="--reward judge=0.5") from None
    return weights


def read_rewards(path: Path) -> dict[tuple[int, int], float]:
    """Return {(group_id, sample_id): reward} of a file in any format of problem files.

    A row without a reward (null) is left out. Raises IgrpoError, which names the row, MissingInputError and
    DamagedFileError.
    """
    from igrpo_cli.problems.files import read_rows
    from igrpo_cli.problems.rows import BLANK_LINE, BadRow

    if not path.is_file():
        raise MissingInputError(f"{path} does not exist", hint="a JSONL, CSV or Parquet file of rewards")
    rewards: dict[tuple[int, int], float] = {}
    for number, row in read_rows(path):
        if isinstance(row, BadRow):
            if row.kind == BLANK_LINE:
                continue
            raise IgrpoError(f"{path} row {number}: {row.reason}", hint=row.cure)
        if "reward" in row and row["reward"] in (None, ""):
            continue
        try:
            key, reward = (_position(row["group_id"]), _position(row["sample_id"])), float(row["reward"])
            if not math.isfinite(reward) or key in rewards:
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError):
            raise IgrpoError(
                f"{path} row {number} has no numbers group_id, sample_id and reward, or repeats a completion",
                hint="one row for each completion, for example group_id,sample_id,reward in a CSV file; the ids are "
                "whole numbers from 0, as in the rollouts",
            ) from None
        rewards[key] = reward
    if not rewards:
        raise IgrpoError(
            f"{path} has no reward for any completion: all would be left out",
            hint="one row for each completion that counts, for example group_id,sample_id,reward in a CSV file",
        )
    return rewards


def _position(value: Any) -> int:
    """Return the whole number from 0 that a file has. Raises TypeError, ValueError and OverflowError for another."""
    number = int(value)
    if number < 0 or isinstance(value, bool) or not (isinstance(value, str) or value == number):
        raise ValueError
    return number


def grade_stage(
    session: Session,
    stage: str,
    request: StageRequest,
    name: str,
    against: str | None,
    console: Console,
    source: Path | None = None,
) -> None:
    """Make a set of scores, from the file `source` if given, and print what it changed."""
    scores = ScoreSet(session, stage, request.iteration, name, source)
    report = scores.make(request)
    if request.dry_run:
        console.data(report.payload(), f"missing shards: {report.details['missing_shards'] or 'none'}")
        return
    flips = scores.flips(request.shards, against)
    heading = f"iteration {report.iteration} {stage}, scores {name}: {report.rows:,} rows of {report.groups:,} groups"
    console.data({**report.payload(), **flips.payload()}, f"{heading}\n\n{flips.text()}")


def _scoring_input(
    row: Rollout, problem: Problem, max_length: int, selection: Selection | None, config: RunConfig
) -> ScoringInput:
    ids, draft = row.completion_ids, None
    if selection is not None:
        problem, draft = refined_problem(problem, selection, config), selection.draft
    facts = (problem, row.prompt, row.completion, len(ids), max_length, row.finish_reason)
    return ScoringInput(*facts, draft, row.group_id, ids)


def _given_score(row: Rollout, reward: float | None) -> Score:
    """Return the score of a completion with another reward; without one it is left out: `ungraded`, and worth 0."""
    verdict, parts = row.verdict, dict(row.reward_parts)
    if reward is None:
        verdict, parts = "ungraded", dict.fromkeys(parts, 0.0)
    return _score(row, ScoringResult(Grade(verdict, row.extracted_answer, seconds=0.0), parts, reward or 0.0))


def _score(row: Rollout, result: ScoringResult) -> Score:
    return Score(
        iteration=row.iteration,
        stage=row.stage,
        problem_id=row.problem_id,
        group_id=row.group_id,
        sample_id=row.sample_id,
        reward=result.reward,
        reward_parts=result.parts,
        verdict=result.grade.verdict,
        extracted_answer=result.grade.extracted_answer,
    )
