"""The memory that an update will take, for `igrpo update --dry-run`: its rows, the prediction, what would fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from igrpo_cli.config import RunConfig
from igrpo_cli.config.update import UpdateSection
from igrpo_cli.errors import MissingInputError, UsageError
from igrpo_cli.pipeline.session import Session
from igrpo_cli.pipeline.update_steps import read_minibatches
from igrpo_cli.records import RolloutStage, TrainingGroup
from igrpo_cli.store.policies import Policy

if TYPE_CHECKING:
    from igrpo_cli.training.memory import MemoryPrediction

# numpy and torch are imported where they are needed, so that other commands start fast.

RESERVED = 0.05
"""Fraction of a GPU that the prediction leaves to the CUDA context, cuBLAS, NCCL and gaps of torch's allocator."""
PROCESS_BYTES = 10**9
"""Host memory of a process that has imported torch and transformers."""
MAX_TRIES, MAX_SUGGESTIONS, MAX_RANKS = 10, 4, 64
"""Predictions of other settings, settings that are shown, and ranks that are tried."""
SUGGESTED_LORA_R = 16
_UNITS = {"B": 1, **{f"{p}{b}": n**e for e, p in enumerate("KMGT", 1) for b, n in (("B", 1000), ("iB", 1024))}}
_LABELS = {
    "weights": "weights",
    "reference": "reference policy",
    "gradients": "gradients",
    "optimizer": "moments of AdamW",
    "weight_copies": "weights in the dtype of the step",
    "gathered": "layers gathered from all ranks",
    "activations": "activations",
    "head": "chunk of logits",
    "published": "weights to publish",
}


@dataclass(frozen=True, slots=True)
class MemoryRequest:
    """The machine that a prediction is for."""

    device_memory: int | None = None
    """Bytes of a GPU; None means the device of this machine."""
    num_ranks: int = 1


@dataclass(frozen=True, slots=True)
class _Rows:
    """What the rows of an update are predicted from."""

    minibatches: Sequence[Sequence[TrainingGroup]]
    num_groups: int
    """Groups of an optimiser step, of which a minibatch may hold only some."""
    source: str
    """`shards`, or `settings` where shards are missing."""


def parse_bytes(text: str) -> int:
    """Return the number of bytes of a size such as `80GiB`, `80GB` or `500MiB`. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)", text.strip())
    size = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size <= 0:
        raise UsageError(f"{text!r} is not a size of memory", hint="for example --device-memory 80GiB")
    return size


def predict_update(session: Session, iteration: int, policy: Policy, request: MemoryRequest) -> dict[str, Any]:
    """Return the memory that the update of `iteration` takes, as JSON, in bytes.

    Where it does not fit, `suggestions` holds settings that do, each predicted like the settings themselves. A model
    that cannot be predicted has `error`, with the reason.
    """
    from igrpo_cli.training.memory import UnpredictableError

    rows = _rows_of(session, iteration, policy)
    predictor = _Predictor(session.config, policy, rows, request)
    try:
        found = predictor.predict(session.config.update, request.num_ranks)
    except UnpredictableError as error:
        return {"error": error.message}
    fits = predictor.fits(found)
    return {
        "device": predictor.device_type,
        "ranks": request.num_ranks,
        "rows_from": rows.source,
        "row_tokens": found.row_tokens,
        "row_completion_tokens": found.row_completion_tokens,
        "attention": found.attention,
        "dtype": found.dtype,
        "peak_bytes": found.peak,
        "at": "publication" if found.account is found.publication else "step",
        "account": {part: size for part, size in found.account.items() if size},
        "step_bytes": sum(found.step.values()),
        "publication_bytes": sum(found.publication.values()),
        "host_bytes": _host_bytes(found, predictor.device_type, request.num_ranks, session.config),
        "disk_bytes": {"policy": found.published, "optimizer_state": _state_bytes(found, session.config)},
        "device_memory": predictor.device_memory,
        "usable_bytes": predictor.usable,
        "fits": fits,
        "suggestions": [] if fits is not False else predictor.suggestions(found, request.num_ranks),
    }


def describe_memory(memory: Mapping[str, Any]) -> str:
    """Return the text of `predict_update`."""
    if "error" in memory:
        return f"memory: not predicted ({memory['error']})"
    ranks, kind = memory["ranks"], "GPU" if memory["device"] == "cuda" else "CPU"
    where = f"each of {ranks} {kind}s" if ranks > 1 else f"one {kind}"
    origin = "of the shards" if memory["rows_from"] == "shards" else "that the settings allow"
    account = ", ".join(f"{_LABELS[part]} {_gib(size)}" for part, size in memory["account"].items())
    lines = [
        f"memory: {_gib(memory['peak_bytes'])} on {where} at its peak, the {memory['at']} ({memory['dtype']})",
        f"of these: {account}",
        f"longest row {origin}: {memory['row_tokens']:,} tokens; attention: {memory['attention']}",
        f"host: {_gib(memory['host_bytes'])} for all processes of the update on one machine",
    ]
    if memory["fits"] is None:
        return "\n".join([*lines, "--device-memory 80GiB predicts a GPU, --ranks 8 several"])
    verdict = "fits into" if memory["fits"] else "does not fit into"
    lines.append(f"{verdict} {_gib(memory['device_memory'])}, of which {_gib(memory['usable_bytes'])} can be used")
    lines += [f"fits, {_gib(each['peak_bytes'])}: {_suggested(each)}" for each in memory["suggestions"]]
    if not memory["fits"] and not memory["suggestions"]:
        lines.append(f"no setting that was tried fits, up to {MAX_RANKS} ranks")
    return "\n".join(lines)


class _Predictor:
    """Predicts the update under other settings than its own."""

    def __init__(self, config: RunConfig, policy: Policy, rows: _Rows, request: MemoryRequest) -> None:
        from igrpo_cli.training.memory import memory_of_gpu

        self._config, self._policy, self._rows = config, policy, rows
        self.device_memory = request.device_memory or memory_of_gpu()
        """Bytes of a GPU; None for an update on a CPU."""
        self.device_type = "cpu" if self.device_memory is None else "cuda"
        self.usable = None if self.device_memory is None else int(self.device_memory * (1 - RESERVED))
        self._tries = 0

    def predict(self, section: UpdateSection, num_ranks: int) -> MemoryPrediction:
        """Return the prediction for the settings of an update."""
        from igrpo_cli.training.memory import predict_memory

        return predict_memory(
            self._policy.directory,
            section,
            self._config.policy,
            self._rows.minibatches,
            device_type=self.device_type,
            num_ranks=num_ranks,
            total_groups=self._rows.num_groups,
        )

    def fits(self, found: MemoryPrediction) -> bool | None:
        """Return True if a prediction fits into a GPU; None for a CPU."""
        return None if self.usable is None else found.peak <= self.usable

    def suggestions(self, base: MemoryPrediction, num_ranks: int) -> list[dict[str, Any]]:
        """Return up to MAX_SUGGESTIONS changes that fit, the smallest change of each kind first."""
        found: list[dict[str, Any]] = []
        for kind in (self._fewer_tokens, self._offloaded, self._adapters, self._more_ranks):
            suggestion = next(kind(base, num_ranks), None)
            if suggestion is not None and len(found) < MAX_SUGGESTIONS:
                found.append(suggestion)
        return found

    def _try(self, changes: dict[str, Any], num_ranks: int) -> tuple[MemoryPrediction | None, dict[str, Any]]:
        """Return the prediction for changed settings, None after too many, and the changes as a suggestion."""
        self._tries += 1
        if self._tries > MAX_TRIES:
            return None, {}
        found = self.predict(self._config.update.model_copy(update=changes), num_ranks)
        settings = {f"update.{key}": value for key, value in changes.items()}
        return found, {"set": settings, "ranks": num_ranks, "peak_bytes": found.peak}

    def _fewer_tokens(self, base: MemoryPrediction, num_ranks: int) -> Iterator[dict[str, Any]]:
        """Yield fewer activations: recomputed ones, shorter rows, or both."""
        assert self.usable is not None
        if base.state > self.usable:
            return
        is_recomputed, found = self._config.update.gradient_checkpointing, base
        if not is_recomputed:
            recomputed, suggestion = self._try({"gradient_checkpointing": True}, num_ranks)
            if recomputed is None:
                return
            if self.fits(recomputed):
                yield suggestion
            found = recomputed
        yield from self._shorter_rows(found, {} if is_recomputed else {"gradient_checkpointing": True}, num_ranks)

    def _shorter_rows(
        self, found: MemoryPrediction, changes: dict[str, Any], num_ranks: int
    ) -> Iterator[dict[str, Any]]:
        """Yield shorter rows. Activations are proportional to the tokens of a row, all else does not depend on them."""
        assert self.usable is not None
        activations = found.step["activations"]
        room = self.usable - (sum(found.step.values()) - activations)
        if activations <= 0 or room <= 0:
            return
        share = min(room / activations, 1.0)
        for margin in (0.95, 0.7):
            tokens = int(found.row_tokens * share * margin) // 256 * 256
            if tokens < 256:
                return
            shorter, suggestion = self._try({**changes, "max_tokens_per_batch": tokens}, num_ranks)
            if shorter is None or shorter.row_tokens == found.row_tokens:
                return
            if self.fits(shorter):
                yield suggestion

    def _offloaded(self, base: MemoryPrediction, num_ranks: int) -> Iterator[dict[str, Any]]:
        """Yield weights, gradients and moments in host memory."""
        if not (self._config.update.lora_r or self._config.update.offload_optimizer):
            yield from self._recomputed_with({"offload_optimizer": True}, num_ranks)

    def _adapters(self, base: MemoryPrediction, num_ranks: int) -> Iterator[dict[str, Any]]:
        """Yield adapters in the place of all weights."""
        if not self._config.update.lora_r and _has_peft():
            yield from self._recomputed_with({"lora_r": SUGGESTED_LORA_R}, num_ranks)

    def _recomputed_with(self, changes: dict[str, Any], num_ranks: int) -> Iterator[dict[str, Any]]:
        """Yield changes with recomputed activations and, if necessary, shorter rows."""
        changes = {**changes, "gradient_checkpointing": True}
        found, suggestion = self._try(changes, num_ranks)
        if found is None:
            return
        if self.fits(found):
            yield suggestion
        elif found.account is found.step:
            yield from self._shorter_rows(found, changes, num_ranks)

    def _more_ranks(self, base: MemoryPrediction, num_ranks: int) -> Iterator[dict[str, Any]]:
        """Yield the smallest number of ranks that fits, with recomputed activations."""
        assert self.usable is not None
        size = 2 * num_ranks
        while size <= MAX_RANKS:
            # Every rank also holds the whole weights to publish.
            if base.state * num_ranks / size + base.published <= self.usable:
                found, suggestion = self._try({"gradient_checkpointing": True}, size)
                if found is None:
                    return
                if self.fits(found):
                    yield suggestion
                if found.account is found.step and found.step["activations"] > self.usable:
                    return
            size *= 2


def _rows_of(session: Session, iteration: int, policy: Policy) -> _Rows:
    """Return the groups of the iteration from its shards, or the largest ones that the settings allow."""
    try:
        _, minibatches = read_minibatches(session, iteration, policy)
    except MissingInputError:
        return _rows_of_settings(session.config)
    return _Rows(minibatches, max(map(len, minibatches)), "shards")


def _rows_of_settings(config: RunConfig) -> _Rows:
    from igrpo_cli.pipeline.training_groups import TRAINED_STAGES

    draft, prompts, refine = config.draft, config.prompts, config.refine
    groups: list[TrainingGroup] = []
    of_a_step = max(1, config.data.problems_per_iteration // config.update.num_minibatches)
    for stage in TRAINED_STAGES[config.update.train_on]:
        prompt, section = prompts.max_prompt_length, draft if stage == "draft" else refine
        number = section.num_generations
        if stage == "refine":
            if config.update.refinement_prompt == "with_draft" and config.select.strategy != "none":
                template = prompts.refine_template if prompts.draft_turn == "user" else prompts.refine_request
                # A token of the template has at least one byte.
                prompt += min(draft.max_completion_length, prompts.max_draft_tokens) + len(template.encode())
                prompt += 0 if config.critique.by == "none" else config.critique.max_completion_length
            if config.select.allocation == "adaptive":
                number = config.select.max_refinements or 2 * number
        tokens = prompt + number * section.max_completion_length
        # Groups are joined into a row up to its maximum; more of them make no longer row.
        shown = min(of_a_step, config.update.max_tokens_per_batch // tokens + 2)
        groups += [_largest_group(stage, prompt, number, section.max_completion_length)] * shown
    return _Rows([groups], of_a_step * len(TRAINED_STAGES[config.update.train_on]), "settings")


def _largest_group(stage: str, prompt: int, number: int, length: int) -> TrainingGroup:
    import numpy as np

    as_stage: RolloutStage = "draft" if stage == "draft" else "refine"
    ids: Any = np.zeros(max(prompt, length), np.int64)
    logprobs: Any = np.zeros(length, np.float32)
    return TrainingGroup(
        stage=as_stage,
        group_id=0,
        problem_id="",
        prompt_ids=ids[:prompt],
        temperatures=[1.0] * number,
        completion_ids=[ids[:length]] * number,
        sampling_logprobs=[logprobs] * number,
        rewards=[0.0] * number,
        advantages=[1.0] * number,
        is_masked=[False] * number,
        max_completion_length=length,
    )


def _host_bytes(found: MemoryPrediction, device_type: str, num_ranks: int, config: RunConfig) -> int:
    """Return the peak of the host, with all ranks on one machine.

    On a CPU it is that of all ranks. For GPUs it is the larger one of loading and saving. Loading: the float32 weights
    of one policy, or with several ranks those of policy and reference in each of them, before they are sharded; or the
    moments of the previous update. Saving: the published weights in the first rank, and the optimiser state of all.
    With `update.offload_optimizer` weights, gradients and moments are there all the time.
    """
    if device_type == "cpu":
        return num_ranks * (found.peak + PROCESS_BYTES)
    policies = num_ranks * (2 if config.update.beta and num_ranks > 1 else 1)
    loading = max(policies * 4 * found.num_parameters, 8 * found.num_trainable)
    state = 8 * found.num_trainable if num_ranks == 1 else _state_bytes(found, config)
    offloaded = 16 * found.num_trainable if config.update.offload_optimizer else 0
    return num_ranks * PROCESS_BYTES + max(loading, found.published + max(state, offloaded))


def _state_bytes(found: MemoryPrediction, config: RunConfig) -> int:
    """Return the bytes of an optimiser state on disk, and of the adapters."""
    is_adapted = config.update.lora_r > 0
    with_master = config.policy.dtype != "float32" or is_adapted
    return (8 + (4 if with_master else 0) + (4 if is_adapted else 0)) * found.num_trainable


def _has_peft() -> bool:
    from importlib.util import find_spec

    return find_spec("peft") is not None


def _suggested(suggestion: Mapping[str, Any]) -> str:
    flags = [
        f"--set {key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in suggestion["set"].items()
    ]
    ranks = [f"{suggestion['ranks']} ranks (torchrun)"] if suggestion["ranks"] > 1 else []
    return ", ".join([" ".join(flags), *ranks])


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.1f} MiB"
