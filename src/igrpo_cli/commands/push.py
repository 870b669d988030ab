"""`igrpo push`: upload a policy with a model card to the Hugging Face Hub, in one commit."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from igrpo_cli import __version__
from igrpo_cli.config import RunConfig
from igrpo_cli.config.sections import EvalSection
from igrpo_cli.errors import ConflictError, IgrpoError, Interrupted, MissingInputError, UsageError
from igrpo_cli.inspection.run_config import Settings, described_fork
from igrpo_cli.pipeline.changes import commands_until, shell_setting
from igrpo_cli.pipeline.session import Session, open_session
from igrpo_cli.store.checksummed_json import read_summary, recorded_files, verify_directory
from igrpo_cli.store.hints import command_line
from igrpo_cli.store.layout import bench_name, read_eval_name, shards_in
from igrpo_cli.store.lineage import newest_policy
from igrpo_cli.store.manifest import read_manifest
from igrpo_cli.store.policies import MODEL_FILES, Policy, read_policy, verify_policy
from igrpo_cli.ui.console import Console

CARD = "README.md"
ADAPTER_CONFIG = "adapter_config.json"
OF_THIS_MACHINE = {"log", "judge.endpoint", "engine.endpoints", "engine.device"}
"""Sections and keys that a card leaves out: they change no result, and addresses of servers are private."""
AGAIN = "run the same command again: files that have arrived are not sent twice"


@dataclasses.dataclass(frozen=True)
class PushRequest:
    """The options of the command line."""

    run: Path
    repo: str
    policy: int | None = None
    """None means the newest one."""
    adapter: bool = False
    """Push the LoRA adapter instead of the merged weights."""
    base_model: str | None = None
    """Hub id of the base model; None means that of the run, if it has one."""
    card: Path | None = None
    """A card of the user's own."""
    is_public: bool = False
    overwrite: bool = False
    dry_run: bool = False


@dataclasses.dataclass(frozen=True)
class Upload:
    """What is pushed: the files of a policy, whose hashes were verified, and the card."""

    number: int
    policy: Policy
    files: Mapping[str, Path | bytes]
    """Path or content of each file by its name in the repository."""

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {
            name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in self.files.items()
        }


def run(request: PushRequest, console: Console) -> None:
    """Verify the policy, write its card and upload both. A dry run prints the card and sends nothing."""
    if request.repo.count("/") != 1 or not all(request.repo.split("/")):
        raise UsageError(f"{request.repo!r} names no repository", hint="--repo USER/NAME")
    with open_session(request.run, [], console, only_looks=True) as session:
        upload, card = _prepare(session, request)
    total, visibility = sum(upload.sizes.values()), "public" if request.is_public else "private"
    payload = {
        "run": str(request.run),
        "policy": upload.number,
        "policy_id": upload.policy.id,
        "repo": request.repo,
        "private": not request.is_public,
        "files": [{"name": name, "bytes": size} for name, size in upload.sizes.items()],
        "bytes": total,
        "card": card,
    }
    what = f"policy {upload.number} of {request.run}: {len(upload.files)} files, {total:,} bytes"
    if request.dry_run:
        console.note(f"would push {what}, to {request.repo} ({visibility} if it is new)")
        for name, size in upload.sizes.items():
            console.note(f"{size:>14,}  {name}")
        console.data({**payload, "url": None, "skipped": False}, card.rstrip("\n"))
        return
    with _hub_errors(request.repo):
        url, skipped = _push(upload, request, console)
    done = f"{request.repo} has {what} already" if skipped else f"pushed {what}"
    console.data({**payload, "url": url, "skipped": skipped}, f"{done}\n{url}")


def _prepare(session: Session, request: PushRequest) -> tuple[Upload, str]:
    """Return the verified files and the card. Raises MissingInputError and DamagedFileError."""
    number = newest_policy(session.run) if request.policy is None else request.policy
    policy = session.policy(number)
    with session.console.activity("hashing the policy"):
        files: dict[str, Path | bytes]
        if request.adapter:
            files = _adapter_files(session, number, request.base_model)
        else:
            verify_policy(policy)
            files = {name: policy.directory / name for name in sorted(policy.files)}
    card = _card(session, number, request).markdown() if request.card is None else _own_card(request.card)
    return Upload(number, policy, {CARD: card.encode(), **files}), card


def _own_card(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MissingInputError(
            f"cannot read the card {path}: {error}", hint="igrpo push … --dry-run > card.md"
        ) from None


def _adapter_files(session: Session, number: int, base_model: str | None) -> dict[str, Path | bytes]:
    """Return the files of the adapter. Its config names the base model without the folders of this machine."""
    directory = session.run.update(number - 1).adapter if number else session.run.policy(0) / "adapter"
    if not directory.is_dir():
        raise MissingInputError(
            f"policy {number} has no adapter", hint="leave out --adapter; adapters are trained with update.lora_r"
        )
    verify_directory(directory)
    files: dict[str, Path | bytes] = {name: directory / name for name in sorted(recorded_files(directory))}
    config = json.loads((directory / ADAPTER_CONFIG).read_bytes())
    initial = _shortened(session.config.policy.model, _local_names(session))
    config["base_model_name_or_path"] = base_model or initial
    files[ADAPTER_CONFIG] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    return files


def _hub_model(session: Session) -> str | None:
    """Return the Hub id of the initial policy; None for a local directory and a packaged model."""
    initial = read_policy(session.run, 0)
    return initial.model if initial.revision is not None else None


def _card(session: Session, number: int, request: PushRequest) -> Any:
    from igrpo_cli.report.model_card import ModelCard

    config = session.run_config.changed(max(number - 1, 0))
    base_model = request.base_model or _hub_model(session)
    local = _local_names(session)
    base_name = base_model or _shortened(config.policy.model, local)
    evaluations, benches = _evaluations(session, number)
    if not evaluations:
        flags = f"--bench BENCH --iteration {number}"
        session.console.note(f"the card has no evaluation: {command_line(session.run.root, 'eval', flags)}")
    return ModelCard(
        repo=request.repo,
        title=request.repo.partition("/")[2],
        is_adapter=request.adapter,
        base_model=base_model,
        base_name=base_name,
        datasets=list(_hub_data(session).values()),
        method="iGRPO" if "refine" in session.run_config.stages() else "GRPO",
        facts=_facts(config, number, base_name, local),
        evaluations=evaluations,
        system_prompt=config.prompts.system_prompt,
        has_own_system_prompts=any(problem.system_prompt for problem in session.problems()),
        settings=_settings(session.run_config, local),
        commands=_commands(session, number, benches, local),
        notes=_notes(session, config),
        version=__version__,
    )


def _facts(config: RunConfig, number: int, base_name: str, local: Collection[str]) -> dict[str, str]:
    drafts, refinements, update = config.draft.num_generations, config.refine.num_generations, config.update
    if "refine" in config.stages():
        shown = f"draft shown: {config.select.strategy}"
        sampled = f"iGRPO, {drafts} drafts + {refinements} refinements of each problem; {shown}"
    else:
        sampled = f"GRPO, {drafts} completions of each problem"
    return {
        "base model": base_name,
        "data": ", ".join(_shortened(_data_sources(config), local)),
        "method": sampled,
        "policy": f"{number}, after {number} iterations of {config.data.problems_per_iteration} problems",
        "objective": f"{update.loss_type}, trained on {update.train_on}, beta {update.beta:g}",
        "learning rate": f"{update.learning_rate:g}, {update.lr_scheduler_type}",
        "reward": ", ".join(f"{name} x {weight:g}" for name, weight in config.reward.weights.items()),
        "weights": f"LoRA, r = {update.lora_r}" if update.lora_r else "all",
    }


def _data_sources(config: RunConfig) -> list[str]:
    return [source.train for source in config.data.mix or ()] or [config.data.train]


def _hub_data(session: Session) -> dict[str, str]:
    """Return the Hub id of each source of problems that `init` read from the Hub: those whose commit it recorded."""
    from igrpo_cli.problems.sources import TRAINING_SETS

    config, commits = session.run_config, read_manifest(session.run.problems()).versions.get("problems", "")
    of_mix = [source.train for source in config.data.mix or () if f", {source.label} " in f", {commits}"]
    names = of_mix if config.data.mix or not commits else [config.data.train]
    return {name: str(TRAINING_SETS[name].source.location) if name in TRAINING_SETS else name for name in names}


def _local_names(session: Session) -> set[str]:
    """Return the values of settings that name files and folders of this machine, relative paths too."""
    from igrpo_cli.problems.sources import PREFIX

    config = session.run_config
    names = {*_data_sources(config), config.policy.model, str(config.data.solve_rate_run)}
    of_hub = {*_hub_data(session), _hub_model(session)}
    for each in (config, *(config.changed(change.from_iteration) for change in config.changes)):
        names |= {each.select.external or "", bench := each.run.eval_bench or ""}
        problems = session.run.eval_problems(bench_name(bench or "unset"))
        if problems.manifest.exists() and "problems" in read_manifest(problems).versions:
            of_hub.add(bench)
    return {name for name in names - of_hub if not name.startswith(PREFIX)}


def _evaluations(session: Session, number: int) -> tuple[list[list[str]], list[str]]:
    """Return a row for each evaluation of the policy, and the flags of `igrpo eval` that make them."""
    from igrpo_cli.report.model_card import accuracy_text

    rows, flags = [], []
    for path in session.run.eval_summaries():
        policy, selection = read_eval_name(path.parent.name)
        summary = read_summary(path)
        if policy != number or summary["avg_at_k"] is None:
            continue
        before = session.run.eval_summary(path.parent.parent.name, 0, conditioned=selection)
        initial = read_summary(before) if number and before.exists() else {}
        trained_on = f", {summary['trained_on']} of them trained on" if summary.get("trained_on") else ""
        sampling, sets = _sampling(session, number, path.parent, summary["problems"])
        rows.append(
            [
                summary["bench"],
                f"{summary['problems']} x {summary['samples']}{trained_on}, {sampling}",
                "without draft" if selection is None else f"with draft ({selection})",
                accuracy_text(summary["avg_at_k"], summary["ci95"]),
                accuracy_text(initial["avg_at_k"], initial["ci95"]) if initial.get("avg_at_k") is not None else "",
            ]
        )
        draft = "" if selection is None else f" --with-draft --set eval.selection={selection}"
        flags.append(f"--bench {shlex.quote(summary['bench'])} --samples {summary['samples']}{draft}{sets}")
    return rows, flags


def _sampling(session: Session, number: int, directory: Path, problems: int) -> tuple[str, str]:
    """Return how an evaluation was sampled, in words and as `--set` of what differs from the settings of the run."""
    place = next(iter(shards_in(directory)), None)
    if place is None:
        return "sampling not recorded", ""
    identity = read_manifest(session.run.eval_shard_in(directory, *place)).identity
    recorded, of_run = EvalSection().with_recorded(identity.config["eval"]), session.run_config.changed(number - 1).eval
    # A command cannot unset a key, so what was unset has the value that means the same.
    values = {"min_p": 0.0, "limit": problems}
    values |= {key: value for key, value in recorded.identity().items() if value is not None}
    differing = (key for key, value in of_run.identity().items() if value != recorded.identity()[key])
    sets = [f" --set {shell_setting(f'eval.{key}', values[key])}" for key in differing if key != "repeats"]
    top_k = f", top-k {recorded.top_k}" if recorded.top_k else ""
    min_p = f", min-p {recorded.min_p:g}" if recorded.min_p else ""
    words = f"temperature {recorded.temperature:g}, top-p {recorded.top_p:g}{top_k}{min_p}"
    return f"{words}, at most {recorded.max_gen_toks} tokens", "".join(sets)


def _commands(session: Session, number: int, benches: Sequence[str], local: Collection[str]) -> list[str]:
    training = commands_until(session.run_config, number, lambda settings: _shown(settings, local))
    evaluations = [f"igrpo eval RUN --iteration {number} {flags}" for flags in benches]
    install, init = f"pip install igrpo-cli=={__version__}", "igrpo init RUN --config settings.toml"
    return [install, init, *training, *evaluations]


def _notes(session: Session, config: RunConfig) -> list[str]:
    notes = []
    if described_fork(session.run) is not None:
        notes.append("The run is a fork: its first iterations come from another run, perhaps with other settings.")
    if functions := config.reward.functions_in_use:
        notes.append(f"The reward functions {', '.join(sorted(functions))} are code that is not part of this card.")
    return notes


def _settings(config: RunConfig, local: Collection[str]) -> str:
    """Return the settings that differ from the defaults, as TOML."""
    import tomli_w

    ours, defaults = (each.model_dump(mode="json", exclude_none=True) for each in (config, RunConfig()))
    if config.data.mix is not None:
        del ours["data"]["train"]  # The names of the sources in `mix`, joined.
    sections = {
        name: {key: value for key, value in keys.items() if value != defaults[name].get(key)}
        for name, keys in ours.items()
    }
    return tomli_w.dumps({name: keys for name, keys in _shown(sections, local).items() if keys})


def _shown(settings: Settings, local: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return settings as a card shows them: without those of this machine, and paths as their last name."""
    return {
        name: {key: _shortened(value, local) for key, value in keys.items() if f"{name}.{key}" not in OF_THIS_MACHINE}
        for name, keys in settings.items()
        if name not in OF_THIS_MACHINE
    }


def _shortened(value: Any, local: Collection[str]) -> Any:
    """Return a setting with the last names of the `local` paths and of all absolute paths in it."""
    if isinstance(value, str):
        is_path = value in local or (value.startswith(("/", "~", "./", "../")) and "\n" not in value)
        return (Path(value).name or value) if is_path else value
    if isinstance(value, list):
        return [_shortened(each, local) for each in value]
    return {key: _shortened(each, local) for key, each in value.items()} if isinstance(value, dict) else value


def _push(upload: Upload, request: PushRequest, console: Console) -> tuple[str, bool]:
    """Create the repository if it is new and commit the files; return its URL, and True if it had all of them."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if console.verbosity == 0 or not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi(library_name="igrpo", library_version=__version__)
    url = str(api.create_repo(request.repo, private=not request.is_public, exist_ok=True))
    present = {file.path: file for file in api.list_repo_tree(request.repo, recursive=True) if hasattr(file, "blob_id")}
    same = {name for name, file in upload.files.items() if name in present and _is_same(file, present[name])}
    if same == upload.files.keys() and not _others(present, upload):
        return url, True
    replaced = [name for name in upload.files if name in present and name not in same] + _others(present, upload)
    if replaced and not request.overwrite:
        raise ConflictError(
            f"{request.repo} holds other files: {', '.join(replaced[:4])}{', …' if len(replaced) > 4 else ''}",
            hint="push to another repository, or --overwrite replaces them in a new commit (the history keeps them)",
        )
    operations: list[Any] = [
        *(CommitOperationAdd(name, file) for name, file in upload.files.items() if name not in same),
        *(CommitOperationDelete(name) for name in _others(present, upload)),
    ]
    with console.activity(f"uploading {len(operations)} files to {request.repo}"):
        api.create_commit(request.repo, operations, commit_message=f"Policy {upload.number} ({upload.policy.id[:15]}…)")
    return url, False


def _is_same(file: Path | bytes, present: Any) -> bool:
    """Return True if the Hub has these bytes: it knows large files by their SHA-256 and others by their git hash."""
    from huggingface_hub.utils.sha import git_hash

    from igrpo_cli.store.hashing import sha256_file

    size = len(file) if isinstance(file, bytes) else file.stat().st_size
    if size != present.size:
        return False
    if present.lfs is not None and not isinstance(file, bytes):
        return sha256_file(file) == str(present.lfs.sha256)
    return bool(git_hash(file if isinstance(file, bytes) else file.read_bytes()) == present.blob_id)


def _others(present: Mapping[str, Any], upload: Upload) -> list[str]:
    """Return the model files in the repository that the policy does not have: with them it would be another model."""
    is_model = (name for name in sorted(present) if any(fnmatchcase(name, pattern) for pattern in MODEL_FILES))
    return [name for name in is_model if name not in upload.files]


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turn the errors of the client into ours. A lost connection is worth another try, a refusal is not."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    # Base class of the errors of the HTTP library, which is another one in other versions of huggingface_hub.
    transport: type[Exception] = HfHubHTTPError.__mro__[1]
    try:
        yield
    except IgrpoError:
        raise
    except HFValidationError as error:
        raise UsageError(f"{repo!r} cannot name a repository: {_first_line(error)}", hint="--repo USER/NAME") from error
    except OfflineModeIsEnabled as error:
        raise IgrpoError("HF_HUB_OFFLINE is set: nothing can be pushed", hint="unset HF_HUB_OFFLINE") from error
    except (transport, OSError, RuntimeError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status in (401, 403):
            raise IgrpoError(
                f"the Hub does not accept a push to {repo} ({status}): {_first_line(cause)}",
                hint="`hf auth login`, or HF_TOKEN, with a token that may write there",
            ) from error
        if status is None or status >= 500 or status == 429:
            raise Interrupted(f"the push to {repo} was interrupted: {_first_line(cause)}", hint=AGAIN) from error
        raise IgrpoError(f"the Hub refused the push to {repo} ({status}): {_first_line(cause)}") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
