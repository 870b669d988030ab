"""`igrpo init`: create a run directory, with its settings, its problems and its initial policy fixed."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from igrpo_cli.config import RunConfig
from igrpo_cli.config.files import (
    apply_overrides,
    check_config,
    merge,
    read_config_file,
    read_preset,
    read_toml,
    write_config,
)
from igrpo_cli.errors import ConflictError, DamagedFileError, IgrpoError, MissingInputError, UsageError
from igrpo_cli.inspection.run_config import differing_values, flat_settings
from igrpo_cli.pipeline.frozen_problems import freeze_problems
from igrpo_cli.pipeline.plan import describe_size, require_possible, size_of_run
from igrpo_cli.pipeline.prompt_lengths import PromptLengths, require_context, short_enough
from igrpo_cli.prompts import critique_prompt, prompt_with_draft, prompt_without_draft
from igrpo_cli.records import Problem
from igrpo_cli.store.hints import command_line, shell_path
from igrpo_cli.store.layout import RunDirectory
from igrpo_cli.store.settings import require_unedited, run_toml
from igrpo_cli.ui.console import Console, percent, printable

if TYPE_CHECKING:
    from igrpo_cli.engines.tokenization import PolicyTokenizer
    from igrpo_cli.problems.loading import LoadedProblems
    from igrpo_cli.rewards.functions import FunctionSignature

SHOWN_SETTINGS = 3
"""Maximum number of differing settings in the message about an existing run."""


SHOWN_DRAFT = "(draft)"
"""Text of the draft in the prompt that `igrpo init` prints."""
SHOWN_CRITIQUE = "(critique)"
"""Text of its critique there."""


class CreatedRun(NamedTuple):
    """Holds what `create_run` found."""

    counts: dict[str, int]
    """Numbers of problems read, kept and left out."""
    prompts: dict[str, str]
    """Rendered prompts of the first problem, without draft and with one."""


def run(
    path: Path, preset: str | None, config_file: Path | None, sets: list[str], *, dry_run: bool, console: Console
) -> None:
    """Create the run at `path` and print its content."""
    config = resolve_config(preset, config_file, sets)
    _require_data_and_model(config, _command(path, preset, config_file, sets))
    if dry_run:
        require_possible(config)
        size = _size(config)
        text = f"{write_config(config).decode()}\n{describe_size(config, size)}"
        console.data({"run": str(path), **_plan(config, size)}, text)
        return
    created = create_run(path, config, console)
    number = created.counts["kept"]
    size = _size(config, config.num_iterations(number))
    payload = {"run": str(path), "problems": number, "counts": created.counts, **_plan(config, size)}
    texts = (_shown(created.prompts), describe_size(config, size), _next_steps(path))
    console.data({**payload, "prompts": created.prompts}, "\n\n".join(texts))


def _origin(settings: Mapping[str, Any], sets: list[str], name: str) -> str:
    """Return where a mistake must be: in `--set` if the settings are right without, else in the file or preset."""
    if not sets:
        return name
    try:
        check_config(settings, name)
    except UsageError:
        return name
    return "--set"


def resolve_config(preset: str | None, config_file: Path | None, sets: list[str]) -> RunConfig:
    """Return the settings: the preset, overridden by the file, overridden by each `--set`."""
    settings = read_preset(preset) if preset else {}
    if config_file is not None:
        settings = merge(settings, read_config_file(config_file))
    changed = apply_overrides(settings, sets)
    config = check_config(changed, _origin(settings, sets, str(config_file or preset or "settings")))
    if config.changes:
        raise UsageError("changes are no settings of a new run", hint="igrpo init RUN, then igrpo set RUN")
    return config


def create_run(path: Path, config: RunConfig, console: Console) -> CreatedRun:
    """Create the run directory.

    `run.toml` is written last: a directory with it is a complete run, whose problems do not change any more. A second
    call with the same settings restores files that are damaged or missing and changes nothing else. Files of a call
    that was killed are replaced. Raises ConflictError when the run has other settings, or when `run.toml` was edited.
    """
    from igrpo_cli.engines.architectures import check_architecture
    from igrpo_cli.engines.hub import fetch_model, positions_of
    from igrpo_cli.engines.tokenization import PolicyTokenizer
    from igrpo_cli.problems.sources import model_location
    from igrpo_cli.rewards.functions import require_columns
    from igrpo_cli.store.atomic import publish_bytes, remove_stale_temporaries
    from igrpo_cli.store.manifest import read_manifest
    from igrpo_cli.store.policies import write_pointer

    run_directory, content = RunDirectory(path), run_toml(write_config(config))
    is_run = require_same_settings(run_directory, config)
    _require_data_and_model(config, "igrpo init RUN")
    require_possible(config)
    for directory in (path, run_directory.policies, run_directory.policy(0)):
        remove_stale_temporaries(directory)
    policy = config.policy
    signatures = _signatures_of_functions(config)
    loaded = _load(config)  # before transformers is imported, so that a wrong column is an error at once
    require_columns(signatures, list(loaded.problems[0].column_values()))
    for note in _notes_on_columns(loaded, signatures):
        console.note(note)
    model = fetch_model(model_location(policy.model), policy.revision, trust_remote_code=policy.trust_remote_code)
    for note in check_architecture(
        model.directory, config.engine.max_model_len, trust_remote_code=policy.trust_remote_code
    ):
        console.note(note)
    tokenizer = PolicyTokenizer(model.directory, trust_remote_code=policy.trust_remote_code)
    lengths = PromptLengths(loaded.problems, config, tokenizer)
    problems = short_enough(lengths, loaded.problems, config)
    for sampling in (config.draft, config.refine, config.eval.sampling()):
        tokenizer.with_all_stops(sampling)  # raises for a stop string that can never occur
    require_context(lengths, problems, config, positions_of(model.directory, policy.trust_remote_code))
    if config.select.external_in_use is not None:
        _require_external_drafts(config.select.external_in_use, config, problems)
    prompts = _prompts(problems[0], config, tokenizer)  # raises for a chat template that cannot show a draft
    place = model.directory.absolute()
    pointed = write_pointer(run_directory, policy.model, model.revision_commit, place, replace=not is_run)
    existing = _existing_problems(run_directory) if is_run else None
    if existing is None:
        _freeze(run_directory, config, loaded, problems, pointed.id, overwrite=is_run)
    elif existing != problems:
        console.note(f"{loaded.source} has changed: the run keeps its {len(existing)} problems")
    if not is_run:
        publish_bytes(run_directory.run_toml, content)
    counts = {kind: int(number) for kind, number in read_manifest(run_directory.problems()).counts.items()}
    left_out = {kind: number for kind, number in counts.items() if kind not in ("rows", "kept") and number}
    console.note(f"{counts['kept']} problems from {loaded.source}" + (f", left out: {left_out}" if left_out else ""))
    for note in _notes_on_draws(problems if existing is None else existing, config):
        console.note(note)
    return CreatedRun(counts, prompts)


def _notes_on_draws(problems: list[Problem], config: RunConfig) -> Iterator[str]:
    """Yield the share of each source of a mix, and a warning where an iteration takes more problems than there are."""
    from igrpo_cli.problems.order import shares_of, weighted_sources

    data = config.data
    sources = weighted_sources(problems, data.weights)
    for source, share in zip(sources, shares_of(sources), strict=True):
        yield f"{source.name}: {len(source.places)} problems, weight {source.weight:g}, {percent(share)} of the draws"
    if len(problems) < data.problems_sampled:
        of_spare = f" and data.spare_problems = {data.spare_problems}" if data.spare_problems else ""
        fitting = max(len(problems) - data.spare_problems, 1)
        yield (
            f"warning: an iteration samples each problem more than once: there are {len(problems)}, and it takes "
            f"{data.problems_sampled} (data.problems_per_iteration = {data.problems_per_iteration}{of_spare}); "
            f"with a new run: --set data.problems_per_iteration={fitting}"
            + (" --set data.spare_problems=0" if fitting + data.spare_problems > len(problems) else "")
        )


def _load(config: RunConfig) -> LoadedProblems:
    """Return the problems of the source, or of all sources, in the range of solve rates that the settings name."""
    from igrpo_cli.problems.loading import Reading, load_mix, load_problems

    data = config.data
    if data.mix is None:
        loaded = load_problems(data.train, skip_bad_rows=data.skip_bad_rows, **data.reading())
    else:
        sources = {source.label: (source.train, cast(Reading, source.reading())) for source in data.mix}
        loaded = load_mix(sources, skip_bad_rows=data.skip_bad_rows)
    return loaded if data.solve_rate_run is None else _by_solve_rate(loaded, data.solve_rate_run, config)


def _by_solve_rate(loaded: LoadedProblems, run: Path, config: RunConfig) -> LoadedProblems:
    """Leave out and sort problems as the settings say. Raises IgrpoError where none is left."""
    from igrpo_cli.problems.external import easy_first, external_sha256, read_solve_rates, with_solve_rates_between

    data, rates = config.data, read_solve_rates(run)
    problems, left_out = with_solve_rates_between(loaded.problems, rates, data.min_solve_rate, data.max_solve_rate)
    if not problems:
        reasons = ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in left_out.items() if number)
        raise IgrpoError(
            f"no problem of {loaded.source} has a solve rate in {run} within data.min_solve_rate and "
            f"data.max_solve_rate ({reasons})",
            hint="widen the range, or name a run on the same problems: --set data.solve_rate_run=RUN",
        )
    if data.curriculum == "easy_first":
        problems = easy_first(problems, rates, config.run.seed)
    counts = {**loaded.counts, "kept": len(problems), **{kind: number for kind, number in left_out.items() if number}}
    sha256 = hashlib.sha256(f"{loaded.sha256} {external_sha256(run)}".encode()).hexdigest()
    return replace(loaded, problems=problems, counts=counts, sha256=sha256)


def _command(path: Path, preset: str | None, config_file: Path | None, sets: list[str]) -> str:
    """Return the command line of this `igrpo init`, for hints that add to it."""
    options = [("--preset", preset), ("--config", config_file), *(("--set", text) for text in sets)]
    given = [f"{flag} {shlex.quote(str(value))}" for flag, value in options if value is not None]
    return " ".join([f"igrpo init {shell_path(path)}", *given])


def _require_data_and_model(config: RunConfig, command: str) -> None:
    """Raise UsageError for a preset that leaves the problems or the model to the user, who names none.

    The hint is `command` with both.
    """
    values = {"data.train": config.data.train, "policy.model": config.policy.model}
    examples = {"data.train": "problems.jsonl", "policy.model": "DIRECTORY_OR_HUB_ID"}
    if missing := [name for name, value in values.items() if not value]:
        raise UsageError(
            f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not set: the preset leaves that to you",
            hint=" ".join([command, *(f"--set {name}={examples[name]}" for name in missing)]),
        )


def _signatures_of_functions(config: RunConfig) -> Mapping[str, FunctionSignature]:
    """Return what the reward functions of the run are called with. Raises UsageError where one cannot be imported."""
    from igrpo_cli.rewards.functions import resolve_target
    from igrpo_cli.rewards.grading_pool import GradingPool

    functions = {name: resolve_target(name, target) for name, target in config.reward.functions_in_use.items()}
    if not functions:
        return {}
    with GradingPool(config.reward, functions) as pool:
        return pool.signatures


def _notes_on_columns(loaded: LoadedProblems, signatures: Mapping[str, FunctionSignature]) -> Iterator[str]:
    """Yield the other columns of the data that are kept, those that are not, and those that functions do not get."""
    from igrpo_cli.rewards.functions import PARAMETERS

    kept = list(loaded.problems[0].column_values())
    if kept:
        yield f"other columns of the data, for reward functions and SQL: {', '.join(kept)}"
    for name, reason in loaded.left_out_columns.items():
        yield f"the column {name} is not kept: {reason}"
    for name in kept:
        if name in PARAMETERS and any(signature.wants(name) for signature in signatures.values()):
            yield f"reward functions do not get the column {name}: their parameter {name} is {PARAMETERS[name]}"


def _require_external_drafts(location: Path, config: RunConfig, problems: list[Problem]) -> None:
    """Raise MissingInputError unless each problem that the run will see has an external draft."""
    from igrpo_cli.problems.external import read_external_drafts, require_external_drafts
    from igrpo_cli.problems.order import problems_of_iteration, weighted_sources

    number, sampled, seed = len(problems), config.data.problems_sampled, config.run.seed
    sources = weighted_sources(problems, config.data.weights)
    iterations = range(config.num_iterations(number))
    seen = {
        index
        for each in iterations
        for index in problems_of_iteration(
            number, each, sampled, seed, sources, is_shuffled=config.data.curriculum == "none"
        )
    }
    require_external_drafts(read_external_drafts(location), (problems[index].problem_id for index in seen), location)


def _prompts(problem: Problem, config: RunConfig, tokenizer: PolicyTokenizer) -> dict[str, str]:
    """Return the prompts of a problem as the model reads them: without draft, and with a short one if it is refined."""
    prompts = {"without draft": prompt_without_draft(problem, config.prompts)}
    if "refine" in config.stages() and config.select.strategy != "none":
        if config.critique.by != "none":
            prompts["for a critique"] = critique_prompt(problem, SHOWN_DRAFT, config, "wrong")
        prompts["with a draft"] = prompt_with_draft(problem, SHOWN_DRAFT, config.prompts, "wrong", SHOWN_CRITIQUE)
    return {name: tokenizer.encode_prompt(prompt)[0] for name, prompt in prompts.items()}


def _shown(prompts: dict[str, str]) -> str:
    parts = [f"prompt {name}:\n{indent(printable(text), '    ')}" for name, text in prompts.items()]
    return "\n\n".join(parts)


def _existing_problems(run_directory: RunDirectory) -> list[Problem] | None:
    """Return the problems of an existing run; None when their file is missing or damaged."""
    from igrpo_cli.store.completion import read_problems

    try:
        return read_problems(run_directory.problems())
    except (MissingInputError, DamagedFileError):
        return None


def _freeze(
    run_directory: RunDirectory,
    config: RunConfig,
    loaded: LoadedProblems,
    problems: list[Problem],
    policy: str,
    *,
    overwrite: bool,
) -> None:
    """Publish the problems. They replace those of a killed call with other settings or another source."""
    path = run_directory.problems()
    inputs = {
        "data": {**config.data.model_dump(mode="json"), "sha256": loaded.sha256},
        "prompts": config.prompts.model_dump(mode="json"),
    }
    counts = {**loaded.counts, "kept": len(problems), "too_long": len(loaded.problems) - len(problems)}
    freeze = partial(freeze_problems, path, problems, inputs, counts, policy=policy, revision=loaded.revision)
    try:
        freeze(overwrite=overwrite)
    except ConflictError:
        # If a concurrent call has just created the run, its problems are kept.
        if not require_same_settings(run_directory, config):
            freeze(overwrite=True)


def require_same_settings(run_directory: RunDirectory, config: RunConfig, hint: str | None = None) -> bool:
    """Return True if this run exists. Raises ConflictError, with `hint`, when the run there has other settings.

    A key that an earlier version did not know has its default.
    """
    path = run_directory.run_toml
    if not path.exists():
        return False
    if path.read_bytes() != run_toml(write_config(config)):
        require_unedited(path)
        existing = check_config(read_toml(path), str(path))
        both = (flat_settings(each.model_dump(mode="json")) for each in (existing, config))
        differing = [f"{name} {old!r} on disk, {new!r} now" for name, (old, new) in differing_values(*both).items()]
        if not differing:
            return True
        raise ConflictError(
            f"{run_directory.root} is already a run, with other settings ({'; '.join(differing[:SHOWN_SETTINGS])})",
            hint=hint or f"continue it ({command_line(run_directory.root, 'status')}), or use another directory",
        )
    return True


def _size(config: RunConfig, num_iterations: int | None = None) -> dict[str, Any]:
    from igrpo_cli.engines.hub import local_model
    from igrpo_cli.problems.sources import model_location

    model = local_model(model_location(config.policy.model), config.policy.revision)
    return size_of_run(config, num_iterations, model)


def _plan(config: RunConfig, size: dict[str, Any]) -> dict[str, object]:
    return {"plan": size, "config": config.model_dump(mode="json", exclude_none=True)}


def _next_steps(path: Path) -> str:
    shown = printable(str(path))
    return f"{shown} is ready. Next: igrpo run {shown}, or stage by stage: cd {shown} && igrpo draft"
