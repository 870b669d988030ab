"""Errors of trainer, sampler and published policies for one small random model.

Everything is compared with plain transformers, one sequence at a time.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from small_models import MAX_PARAMETERS, VOCABULARY_SIZE
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from igrpo_cli.config.engine import EngineSection
from igrpo_cli.config.sections import SamplingSettings
from igrpo_cli.config.update import UpdateSection
from igrpo_cli.engines.architectures import check_architecture
from igrpo_cli.engines.factory import create_engine
from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.records import SamplingGroup, TrainingGroup
from igrpo_cli.training.adapters import add_adapters
from igrpo_cli.training.checkpoint import save_policy
from igrpo_cli.training.policy import load_policy
from igrpo_cli.training.step import PolicyTrainer

CPU = torch.device("cpu")
PROMPTS = (9, 4, 28)
"""Numbers of tokens of the prompts."""
COMPLETIONS = (12, 1, 7)
"""Numbers of tokens of the completions of each prompt."""
LIMITS = {"logprob": 1e-4, "gradient": 1e-3, "sampler": 5e-4, "saved": 1e-5, "lora": 1e-3}
"""Largest errors by rounding. A model that is wrong has errors above 1e-2."""
MAX_MODEL_LEN = 64
FLOAT32 = UpdateSection(dtype="float32", max_grad_norm=1e9)
LORA = FLOAT32.model_copy(update={"lora_r": 2, "lora_alpha": 4.0})


@dataclass(frozen=True, slots=True)
class Errors:
    """The result for one model: relative errors, or differences of log-probs in nats."""

    name: str
    rows: str = ""
    """How the trainer lays out its rows."""
    logprob: float | None = None
    """Largest difference of a log-prob of the trainer, relative to the largest log-prob."""
    gradient: float | None = None
    """Norm of the difference of the gradients, relative to the norm of the gradient."""
    sampler: float | None = None
    """Largest difference of a sampled log-prob, in nats."""
    saved: float | None = None
    """Largest difference of a log-prob of a published policy in bfloat16 and its source in bfloat16, in nats."""
    lora: float | None = None
    """Largest difference of a log-prob of a policy with adapters and the published merge, in nats."""
    notes: tuple[str, ...] = ()
    refused: str | None = None
    """Message with which `igrpo init` refuses the model."""
    failures: tuple[str, ...] = ()
    """Errors that are raised later."""

    @property
    def state(self) -> str:
        """`equal` if no error exceeds its limit, `warned` if only that of the sampler does, after a note of `init`."""
        if self.refused is not None:
            return "refused"
        over = {name for name, limit in LIMITS.items() if (value := getattr(self, name)) is None or value > limit}
        if self.failures or over - {"sampler"}:
            return "wrong"
        return (
            "equal"
            if not over
            else "warned"
            if any("log-probs of the sampler" in note for note in self.notes)
            else "wrong"
        )


class CannotBuildError(Exception):
    """transformers cannot build a small model of a type. The message is its reason."""


def build(config: PreTrainedConfig, directory: Path) -> None:
    """Write a random model with this configuration, and a tokenizer."""
    auto = auto_class(config)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"{config.model_type} is not small: {size:,} parameters")
    torch.manual_seed(0)
    model = auto.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if "e_score_correction_bias" in name or name.endswith(("dt_bias", "expert_bias")):
                tensor.copy_(torch.rand(tensor.shape, generator=generator))
    model.save_pretrained(directory)
    vocabulary = {f"t{number}": number for number in range(VOCABULARY_SIZE // 2)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token=None)), eos_token="t1", pad_token="t0"
    ).save_pretrained(directory)


def auto_class(config: PreTrainedConfig) -> Any:
    """Return the class of transformers for a configuration: the whole of a multimodal model."""
    is_multimodal = type(config) in AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if is_multimodal else AutoModelForCausalLM


def load_plain(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Return the model as transformers loads it, with the attention that applies its soft cap if it has one.

    Its bound of the time step, which transformers has in a whole forward pass only, is removed, and rotary embeddings
    of kind `dynamic` do not depend on earlier passes.
    """
    config = AutoConfig.from_pretrained(directory)
    softcap = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    attention = {} if softcap is None else {"attn_implementation": "eager"}
    model = auto_class(config).from_pretrained(directory, dtype=dtype, **attention).eval()
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, float("inf"))
        if getattr(module, "rope_type", None) == "dynamic":
            fresh = copy.deepcopy(module.__dict__["_buffers"])
            module.register_forward_pre_hook(
                lambda rotary, _, fresh=fresh: rotary.__dict__.update(
                    max_seq_len_cached=rotary.original_max_seq_len, _buffers=dict(fresh)
                )
            )
    return model


def make_groups() -> list[TrainingGroup]:
    """Return groups with prompts and completions of unequal lengths."""
    rng = np.random.default_rng(0)
    return [
        TrainingGroup(
            stage="refine",
            group_id=number,
            problem_id=f"problem-{number}",
            prompt_ids=rng.integers(2, VOCABULARY_SIZE, length).tolist(),
            temperatures=[0.8] * len(COMPLETIONS),
            completion_ids=[rng.integers(2, VOCABULARY_SIZE, each).tolist() for each in COMPLETIONS],
            sampling_logprobs=[[-1.0] * each for each in COMPLETIONS],
            rewards=[0.0] * len(COMPLETIONS),
            advantages=rng.normal(size=len(COMPLETIONS)).tolist(),
            is_masked=[False] * len(COMPLETIONS),
            max_completion_length=32,
        )
        for number, length in enumerate(PROMPTS)
    ]


def plain_logprobs(model: Any, prompt: Any, completion: Any, temperature: float) -> torch.Tensor:
    """Return the log-probs of a completion from one forward pass over the tokens that predict it."""
    ids = torch.tensor([[*prompt, *completion[:-1]]])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :].float() / temperature
    return logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(list(completion))]


def all_logprobs(model: Any, groups: list[TrainingGroup]) -> torch.Tensor:
    """Return the log-probs of all completions, one sequence at a time."""
    with torch.no_grad():
        return torch.cat(
            [plain_logprobs(model, g.prompt_ids, ids, g.temperatures[0]) for g in groups for ids in g.completion_ids]
        )


def trainer_errors(directory: Path, groups: list[TrainingGroup]) -> dict[str, Any]:
    """Compare the packed update with one sequence at a time."""
    plain = load_plain(directory)
    expected = all_logprobs(plain, groups)
    loss: Any = 0.0
    for group in groups:
        for ids, advantage in zip(group.completion_ids, group.advantages, strict=True):
            logprobs = plain_logprobs(plain, group.prompt_ids, ids, group.temperatures[0])
            loss = loss - logprobs.mean() * advantage / len(group.completion_ids) / len(groups)
    loss.backward()
    gradients = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    policy = load_policy(directory, CPU)
    trainer = PolicyTrainer(policy, FLOAT32)
    found = torch.from_numpy(trainer.compute_old_logprobs(groups))
    trainer.step(groups, learning_rate=0.0)
    own = dict(policy.model.named_parameters())
    difference = sum((own[name].grad - grad).square().sum() for name, grad in gradients.items())
    norm = sum(grad.square().sum() for grad in gradients.values())
    extra = sum(p.grad.square().sum() for name, p in own.items() if name not in gradients and p.grad is not None)
    return {
        "rows": _rows(policy),
        "logprob": ((found - expected).abs().max() / expected.abs().max()).item(),
        "gradient": float(((difference + extra) / norm).sqrt()),
    }


def _rows(policy: Any) -> str:
    if not policy.shares_prompts:
        return "own rows"
    return {"igrpo_segments": "shared, by segments", "sdpa": "shared, dense mask"}[
        policy.model.config._attn_implementation
    ]


def sampler_error(directory: Path, groups: list[TrainingGroup]) -> float:
    """Compare 9 sampled completions of 3 prompts of unequal length with plain forward passes."""
    plain, largest = load_plain(directory), 0.0
    positions = getattr(plain.config.get_text_config(), "max_position_embeddings", None) or MAX_MODEL_LEN
    room = min(MAX_MODEL_LEN, positions) - max(PROMPTS)
    settings = SamplingSettings(temperature=1.0, top_p=1.0, top_k=0, max_completion_length=min(12, room))
    section = EngineSection(
        name="transformers", dtype="float32", device="cpu", max_model_len=min(MAX_MODEL_LEN, positions)
    )
    requests = [SamplingGroup(g.prompt_ids, [10 * g.group_id + k for k in range(3)]) for g in groups]
    for index, completions in create_engine(directory, section).sample(requests, settings):
        for completion in completions:
            with torch.no_grad():
                expected = plain_logprobs(plain, requests[index].prompt_ids, completion.completion_ids, 1.0)
            found = torch.tensor(completion.sampling_logprobs)
            largest = max(largest, (found - expected).abs().max().item())
    return largest


def saved_error(directory: Path, target: Path, groups: list[TrainingGroup]) -> float:
    """Compare a published policy in bfloat16 with its source, as transformers loads both."""
    policy = load_policy(directory, CPU)
    save_policy(policy.model, directory, target, torch.bfloat16)
    load_policy(target, CPU)
    load_plain(directory, torch.bfloat16).save_pretrained(target.with_name("expected"))
    compare_files(target, target.with_name("expected"))
    left, right = (all_logprobs(load_plain(each, torch.bfloat16).float(), groups) for each in (directory, target))
    return (left - right).abs().max().item()


def compare_files(found: Path, expected: Path) -> None:
    """Raise AssertionError if the weights differ in name, dtype or value."""
    left, right = (
        {n: t for file in each.glob("*.safetensors") for n, t in load_file(file).items()} for each in (found, expected)
    )
    for name in sorted(left.keys() | right.keys()):
        if name not in left or name not in right:
            raise AssertionError(f"only {'the published' if name in left else 'the expected'} policy has {name}")
        if left[name].dtype not in (right[name].dtype, torch.float32):
            raise AssertionError(f"{name} is {left[name].dtype}, not {right[name].dtype}")
        if not torch.equal(left[name].to(right[name].dtype), right[name]):
            raise AssertionError(f"{name} has other values")


def lora_error(directory: Path, target: Path, groups: list[TrainingGroup]) -> float:
    """Compare a policy with adapters and its merge."""
    policy = load_policy(directory, CPU)
    add_adapters(policy.model, LORA, seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.model.named_parameters():
        if ".lora_B" in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    expected = torch.from_numpy(PolicyTrainer(policy, LORA).compute_old_logprobs(groups))
    save_policy(policy.model, directory, target, torch.float32)
    before = all_logprobs(load_plain(directory), groups)
    after = all_logprobs(load_plain(target), groups)
    if not (after - before).abs().max() > 1e-3:
        raise AssertionError("the adapters change nothing")
    load_policy(target, CPU)
    return (after - expected).abs().max().item()


def _refusal(name: str, make_config: Callable[[], PreTrainedConfig], directory: Path) -> str | None:
    """Return the message with which a model is refused by its configuration alone; None if it is not."""
    directory.mkdir(exist_ok=True)
    try:
        make_config().save_pretrained(directory)
    except Exception:
        (directory / "config.json").write_text(json.dumps({"model_type": name}))
    try:
        check_architecture(directory, MAX_MODEL_LEN)
    except UsageError as error:
        return error.message.replace(str(directory), "the model")
    except Exception:
        return None
    return None


def measure(name: str, make_config: Callable[[], PreTrainedConfig]) -> Errors:
    """Build a model and measure it. Raises CannotBuildError."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        directory, groups, failures = Path(folder) / "source", make_groups(), []
        try:
            build(make_config(), directory)
        except Exception as error:
            reason = _refusal(name, make_config, directory)
            if reason is not None:
                return Errors(name, refused=reason)
            raise CannotBuildError(f"{type(error).__name__}: {str(error).strip()}") from error
        try:
            found = Errors(name, notes=tuple(check_architecture(directory, MAX_MODEL_LEN)))
        except IgrpoError as error:
            return Errors(name, refused=error.message.replace(str(directory), "the model"))
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "trainer": lambda: trainer_errors(directory, groups),
            "sampler": lambda: {"sampler": sampler_error(directory, groups)},
            "saved": lambda: {"saved": saved_error(directory, Path(folder) / "saved", groups)},
        }
        if importlib.util.find_spec("peft") is not None:
            parts["lora"] = lambda: {"lora": lora_error(directory, Path(folder) / "lora", groups)}
        for part, run in parts.items():
            try:
                found = replace(found, **run())
            except Exception as error:
                failures.append(f"{part}: {type(error).__name__}: {error}")
        return replace(found, failures=tuple(failures))
