"""`igrpo what-if`: ask what other settings would do with the rollouts of a run, without sampling.

A variant has other settings than the run. Its drafts are selected with `select`, and its advantages come from `update`,
as if the stored rollouts had been made with it. What another selected draft would do to refinements is not known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from igrpo_cli.algo.diagnostics import rollout_metrics, selection_metrics
from igrpo_cli.commands import select
from igrpo_cli.config import RunConfig
from igrpo_cli.config.files import apply_overrides, check_config, parse_override
from igrpo_cli.errors import MissingInputError, UsageError
from igrpo_cli.pipeline.provenance import recorded_config
from igrpo_cli.pipeline.session import Session, open_session
from igrpo_cli.pipeline.training_groups import Observations, read_observations
from igrpo_cli.pipeline.update_steps import groups_with_advantages
from igrpo_cli.records import Rollout, Selection, TrainingGroup
from igrpo_cli.store.completion import open_input
from igrpo_cli.store.hints import command_line
from igrpo_cli.store.layout import ShardPath, parse_shards
from igrpo_cli.store.policies import Policy, read_policy
from igrpo_cli.ui.console import Console
from igrpo_cli.ui.tables import markdown_table, plain_table
from igrpo_cli.ui.what_if_tables import COLUMNS, SHARES, Figures, explanations, mean_figures, variant_rows

if TYPE_CHECKING:
    from igrpo_cli.store.views import CandidateBlock

OWN = "as run"
"""Name of the variant with the settings of the run."""
ASKED: dict[str, tuple[str, ...]] = {
    "select": (),
    "refine": ("num_generations",),
    "reward": ("weights", "ungraded"),
    "update": (
        *("train_on", "baseline", "loss_weights", "refinement_prompt", "shaping_gamma", "scores"),
        *("loss_type", "scale_rewards", "epsilon", "epsilon_high", "beta"),
        *("importance_sampling_correction", "importance_sampling_mode", "importance_sampling_clip_max"),
        *("mask_truncated_completions", "dynamic_sampling"),
    ),
}
"""Keys whose effect on stored rollouts is known, by section; () are all keys of the section."""
OTHER_KEYS = "what-if takes all keys of select, most of update, reward.weights, reward.ungraded, refine.num_generations"


@dataclass(frozen=True)
class WhatIfRequest:
    """The options of the command line."""

    run: Path
    iterations: str | None = None
    sets: tuple[str, ...] = ()
    varied: tuple[str, ...] = ()
    gradient: bool = False
    against: int | None = None
    """Number of the policy whose importance weights are asked for."""
    figures: Path | None = None
    """Folder to draw the figures in."""
    as_png: bool = False


@dataclass(frozen=True, slots=True)
class Variant:
    """Settings to ask about: those of the run, with overrides."""

    name: str
    overrides: tuple[str, ...] = ()


@dataclass
class Outcome:
    """What one variant does with the rollouts of one iteration."""

    config: RunConfig
    figures: Figures
    groups: list[TrainingGroup] | None
    """The groups that it trains on, with advantages; None where they are not known."""
    is_reselected: bool = False
    """True where refinements are known, though the reward of the variant selects other drafts."""


def run(request: WhatIfRequest, console: Console, *, markdown: bool = False) -> None:
    """Print a row for each variant, that of the run's own settings first."""
    from igrpo_cli.report.svg import MAX_COLOURS

    variants = [Variant(OWN), *_variants(request)]
    if request.as_png and request.figures is None:
        raise UsageError("--png needs a folder for the figures", hint="--figures what-if --png")
    if request.figures is not None and len(variants) > MAX_COLOURS:
        raise UsageError(f"{len(variants)} variants in one plot: at most {MAX_COLOURS} can be told apart")
    with open_session(request.run, [], console, only_looks=True) as session:
        _require_selection(session, variants)
        numbers = _iterations(session, request.iterations)
        outcomes = [_ask(session, number, variants, request) for number in numbers]
    by_iteration = [[each.figures for each in found] for found in outcomes]
    own = [found[0] for found in by_iteration]
    means = [mean_figures([each[index] for each in by_iteration], own) for index in range(len(variants))]
    rows = [
        {"name": variant.name, "settings": list(variant.overrides), **figures}
        for variant, figures in zip(variants, means, strict=True)
    ]
    reselected = [any(found[index].is_reselected for found in outcomes) for index in range(len(variants))]
    notes = explanations(
        numbers,
        request.sets if request.varied else (),
        is_reselected=any(reselected),
        has_cosines=request.gradient,
        against=request.against,
        has_clips=any("update.epsilon" in text for text in (*request.sets, *request.varied)),
    )
    payload = {
        "run": str(request.run),
        "iterations": list(numbers),
        "variants": rows,
        "by_iteration": [
            {variant.name: figures for variant, figures in zip(variants, found, strict=True)} for found in by_iteration
        ],
        "notes": notes,
        "figures": [str(path) for path in _draw(request, numbers, variants, by_iteration)],
    }
    table = (markdown_table if markdown else plain_table)(variant_rows(rows, reselected))
    console.data(payload, "\n\n".join([table, "\n".join(notes)]))


def _variants(request: WhatIfRequest) -> list[Variant]:
    """Return the variants of the command line. Raises UsageError for a setting whose effect is not known."""
    varied = [(text.partition("=")[0], text.partition("=")[2]) for text in request.varied]
    found = [f"{name}={value}" for name, values in varied for value in split_values(values)]
    for text in (*request.sets, *found):
        section, key, _ = parse_override(text)
        if section in ASKED and (not ASKED[section] or key.partition(".")[0] in ASKED[section]):
            continue
        check_config(apply_overrides({}, [text]), "what-if")  # An unknown key is an error that names the nearest one.
        keys = f"of update what-if takes {', '.join(ASKED['update'])}" if section == "update" else OTHER_KEYS
        raise UsageError(f"{section}.{key} changes nothing that stored rollouts show", hint=keys)
    if not request.varied:
        return [Variant(" ".join(request.sets), request.sets)] if request.sets else []
    return [Variant(text, (*request.sets, text)) for text in found]


def _require_selection(session: Session, variants: Sequence[Variant]) -> None:
    """Raise UsageError for a selection in a run that has none."""
    overrides = [text for variant in variants for text in variant.overrides if text.strip().startswith("select.")]
    if overrides and "select" not in session.run_config.stages():
        raise UsageError(f'{overrides[0]}: run.method = "grpo" has no selection', hint="what-if --set update.KEY=VALUE")


def split_values(text: str) -> list[str]:
    """Return the values in `v1,v2,…`. A comma in brackets, braces or quotes separates none."""
    values, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        else:
            depth += (sign in "[{") - (sign in "]}")
        if sign == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += sign
    return [value.strip() for value in values]


def _iterations(session: Session, text: str | None) -> tuple[int, ...]:
    """Return the iterations to ask; None are the newest one with a complete update, or else with drafts."""
    if text is not None:
        return parse_shards(text, session.num_iterations(), "iteration")
    run, numbers = session.run, reversed(session.run.iterations())
    drafted = [number for number in numbers if any(run.stage(number, "draft").glob("*.json"))]
    complete = [number for number in drafted if run.update(number).manifest.exists()]
    if not drafted:
        raise MissingInputError(f"{run.root} has no drafts", hint=command_line(run.root, "draft"))
    return tuple((complete or drafted)[:1])


def _ask(session: Session, number: int, variants: Sequence[Variant], request: WhatIfRequest) -> list[Outcome]:
    """Return the outcome of each variant in one iteration."""
    session.enter(number)
    asked = Iteration(session, number)
    settings = asked.own.model_dump(mode="json", exclude_none=True)
    outcomes = []
    for variant in variants:
        config = asked.own
        if variant.overrides:
            config = check_config(apply_overrides(settings, variant.overrides), "--set").at(number)
        outcomes.append(asked.outcome(config))
    if request.gradient:
        _add_cosines(asked, outcomes)
    if request.against is not None:
        _add_sample_sizes(asked, outcomes, request.against)
    return outcomes


class Iteration:
    """The stored rollouts of one iteration."""

    def __init__(self, session: Session, number: int) -> None:
        """Open the iteration. Raises MissingInputError where a draft shard is not complete."""
        self.session, self.number = session, number
        self.own = recorded_config(session.run, number, session.config)
        """The settings that the shards were made with."""
        self.policy = self._policy()
        sampled = self.own.stages()[:-1]
        self.is_complete = all(shard.manifest.exists() for stage in sampled for shard in self._shards(stage))
        if not self.is_complete:
            session.console.note(f"selections or refinements of iteration {number} are not complete: only drafts count")
        self._observations: dict[tuple[str | None, str], Observations] = {}
        self._rows: dict[tuple[ShardPath, str | None], dict[tuple[int, int], Rollout]] = {}
        self._own_selections: list[Selection] = []

    def _policy(self) -> Policy:
        """Return the policy of the iteration, or ids alone where its files were removed: rollouts need no more."""
        drafts = open_input(self._shards("draft")[0]).identity.policy
        try:
            return read_policy(self.session.run, self.number)
        except MissingInputError:
            path = self._shards("refine")[0]
            own = open_input(path).identity.policy if path.manifest.exists() else drafts
            return Policy(own or "", self.session.run.policy(self.number), self.number, drafts)

    def outcome(self, config: RunConfig) -> Outcome:
        """Return what the settings `config` do."""
        observations = self.observations(config)
        figures = dict.fromkeys(COLUMNS, None) | _variance(observations, "draft")
        is_known, is_reselected = self.is_complete, False
        if "select" in self.own.stages():
            selections = self.selections(config)
            own = self._own_selections = self._own_selections or self.selections(self.own)
            pairs = list(zip(own, selections, strict=True))
            same = [_shown(before) == _shown(after) for before, after in pairs]
            number, before = config.refine.num_generations, self.own.refine.num_generations
            sizes = [each.num_samples(number) for each in selections]
            figures["same_draft"] = sum(same) / len(same)
            figures["draft_reward"] = selection_metrics(selections).get("select/draft_reward_mean")
            figures["refinements"] = float(sum(sizes))
            is_equal = all(same) and sizes == [each.num_samples(before) for each in own]
            is_asked_of_selection = config.select != self.own.select or number != before
            is_known = self.is_complete and (is_equal or not is_asked_of_selection)
            is_reselected = is_known and not is_equal
        if is_known:
            figures |= _variance(observations, "refine")
        groups = None
        if is_known or config.update.train_on == "drafts":
            groups = groups_with_advantages(observations, config)
            figures |= _advantages(groups)
        return Outcome(config, figures, groups, is_reselected and config.update.train_on != "drafts")

    def observations(self, config: RunConfig) -> Observations:
        """Return the rollouts with the rewards of `config`; only drafts where the refinements are not complete."""
        key = config.update.scores, config.reward.ungraded
        if key not in self._observations:
            only_drafts = {"run": config.run.model_copy(update={"method": "grpo"})}
            readable = config if self.is_complete else config.model_copy(update=only_drafts)
            self._observations[key] = read_observations(self.session_with(readable), self.number, self.policy)
        found = self._observations[key]
        if config.reward.weights == self.own.reward.weights:
            return found
        rollouts = {
            stage: [replace(row, reward=self._reward(row, config)) for row in rows]
            for stage, rows in found.rollouts.items()
        }
        return replace(found, rollouts=rollouts)

    def selections(self, config: RunConfig) -> list[Selection]:
        """Return the selections of all groups. Those of the run's own settings are the stored ones, if complete."""
        if config is self.own and self.is_complete:
            return self.observations(config).selections
        session = self.session_with(config)
        paths = self._shards("select")
        for path in paths[:1] if config.select.reads_all_drafts else paths:
            select.check_inputs(session, path)
        return [
            selection
            for path in paths
            for block in select.selections_of_shard(session, path, Counter(), self._draft_blocks)
            for selection in block
        ]

    def _draft_blocks(self, session: Session, shard: ShardPath) -> Iterator[CandidateBlock]:
        """Yield the drafts of a shard with the rewards of the variant."""
        config = session.config
        if config.reward.weights == self.own.reward.weights:
            yield from select.draft_blocks(session, shard)
            return
        rows = self._rows_of(shard, config.select.scores)
        for block in select.draft_blocks(session, shard):
            rewards = [
                [self._reward(rows[group_id, sample_id], config) for sample_id in range(block.rewards_BN.shape[1])]
                for group_id in block.group_ids
            ]
            yield replace(block, rewards_BN=np.array(rewards, np.float32))

    def _rows_of(self, shard: ShardPath, scores: str | None) -> dict[tuple[int, int], Rollout]:
        from igrpo_cli.store.scores import read_scored

        if (shard, scores) not in self._rows:
            file = None if scores is None else self.session.run.scores(shard, scores).data
            self._rows[shard, scores] = {(row.group_id, row.sample_id): row for row in read_scored(shard.data, file)}
        return self._rows[shard, scores]

    def _reward(self, row: Rollout, config: RunConfig) -> float:
        from igrpo_cli.rewards.scorer import weighted_reward

        weights = config.reward.weights
        if missing := sorted(weights.keys() - row.reward_parts.keys()):
            named = " ".join(f"--reward {name}={weight:g}" for name, weight in weights.items())
            flags = f"--stage {row.stage} --iteration {self.number} {named} --scores NAME"
            raise UsageError(
                f"the {row.stage} rollouts of iteration {self.number} have no part {missing[0]}, "
                f"but {', '.join(row.reward_parts)}",
                hint=command_line(self.session.run.root, "grade", flags)
                + ", then what-if --set select.scores=NAME --set update.scores=NAME",
            )
        return float(np.float32(weighted_reward(row.reward_parts, weights)))

    def _shards(self, stage: str) -> tuple[ShardPath, ...]:
        return self.session.run.shards(self.number, stage, self.own.run.num_shards)

    def session_with(self, config: RunConfig) -> Session:
        """Return a session of the run with other settings."""
        return Session(self.session.run, config, self.session.console)


def _shown(selection: Selection) -> tuple[str, int, int]:
    """Return what is equal for two selections that lead to the same prompt."""
    sees_draft = selection.action == "condition"
    return (selection.action, *((selection.draft_group_id, selection.draft_sample_id) if sees_draft else (0, 0)))


def _variance(observations: Observations, stage: str) -> Figures:
    share = rollout_metrics(observations.rollouts.get(stage, []), stage).get(f"{stage}/groups_with_gradient")
    return {f"{'draft' if stage == 'draft' else 'refinement'}_groups_with_variance": share}


def _advantages(groups: Sequence[TrainingGroup]) -> Figures:
    advantages = np.array([each for group in groups for each in group.advantages])
    if not len(advantages):
        return {}
    return {
        "nonzero_advantages": float((advantages != 0).mean()),
        "advantage_abs_mean": float(np.abs(advantages).mean()),
    }


def _add_cosines(asked: Iteration, outcomes: Sequence[Outcome]) -> None:
    from igrpo_cli.pipeline.update_trainer import gradient_cosines

    policy = read_policy(asked.session.run, asked.number)
    variants = [(each.config.update, each.groups) for each in outcomes]
    for outcome, cosine in zip(
        outcomes, gradient_cosines(asked.session_with(asked.own), policy, variants), strict=True
    ):
        outcome.figures["cosine"] = cosine


def _add_sample_sizes(asked: Iteration, outcomes: Sequence[Outcome], against: int) -> None:
    from igrpo_cli.pipeline.update_trainer import sample_sizes

    policy = read_policy(asked.session.run, against)
    found = sample_sizes(asked.session_with(asked.own), policy, [each.groups for each in outcomes])
    for outcome, sizes in zip(outcomes, found, strict=True):
        outcome.figures["ess_tokens"], outcome.figures["ess_sequences"] = sizes


def _draw(
    request: WhatIfRequest, numbers: Sequence[int], variants: Sequence[Variant], found: Sequence[Sequence[Figures]]
) -> list[Path]:
    """Write a plot of each figure over the iterations; return the files."""
    if request.figures is None:
        return []
    from igrpo_cli.inspection.curves import Point
    from igrpo_cli.report.page import HERE
    from igrpo_cli.report.svg import Axis, Line, chart, rasterise, standalone
    from igrpo_cli.store.atomic import publish_bytes

    css, written = (HERE / "page.css").read_text("utf-8"), []
    for name, heading in COLUMNS.items():
        lines = []
        for index, variant in enumerate(variants):
            values = [(number, of_iteration[index][name]) for number, of_iteration in zip(numbers, found, strict=True)]
            points = [(float(number), Point(value)) for number, value in values if value is not None]
            lines += [Line(variant.name, index, 0, points)] if points else []
        if not lines:
            continue
        svg = chart(lines, lines, Axis("iteration"), Axis(heading, is_share=name in SHARES), heading)
        files = {"svg": standalone(svg, css).encode()} | ({"png": rasterise(svg, css)} if request.as_png else {})
        for suffix, content in files.items():
            written.append(request.figures / f"{name.replace('_', '-')}.{suffix}")
            publish_bytes(written[-1], content, replace=True)
    return written
