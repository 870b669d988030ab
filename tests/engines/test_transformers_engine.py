from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from igrpo_cli.config.engine import EngineSection
from igrpo_cli.config.files import check_config
from igrpo_cli.config.sections import SamplingSettings
from igrpo_cli.engines.decoding import _Forward
from igrpo_cli.engines.factory import create_engine
from igrpo_cli.engines.transformers import plan_waves
from igrpo_cli.errors import IgrpoError, MissingInputError, UsageError
from igrpo_cli.records import Completion, SamplingGroup

MakePolicy = Callable[..., Path]
PLAIN = SamplingSettings(temperature=1.0, top_p=1.0, top_k=0, max_completion_length=30)
GREEDY = SamplingSettings(temperature=0.0, top_p=1.0, top_k=0, max_completion_length=12)
TRUNCATED = SamplingSettings(temperature=0.7, top_p=0.8, top_k=20, max_completion_length=30)
GROUPS = [
    SamplingGroup(prompt_ids=[2, 10, 11, 12, 3], seeds=[11, 12, 13, 14]),
    SamplingGroup(prompt_ids=[2, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 3], seeds=[21, 22]),
    SamplingGroup(prompt_ids=[2, 3], seeds=[31, 32, 33]),
]
EOS = 1
pytestmark = pytest.mark.filterwarnings("error")
"""A warning of a library is a failure, for example that an argument has a new name."""


def engine_of(policy: Path, **settings: object):
    config = {"name": "transformers", "dtype": "float32", "device": "cpu", **settings}
    return create_engine(policy, EngineSection(**config))


def sample(engine, groups=GROUPS, settings=PLAIN) -> list[list[Completion]]:
    results = list(engine.sample(groups, settings))
    assert sorted(index for index, _ in results) == list(range(len(groups)))
    return [completions for _, completions in sorted(results, key=lambda result: result[0])]


def full_forward_logits(policy: Path, group: SamplingGroup, completion: Completion) -> torch.Tensor:
    """Return the logits [T, V] of the completion's tokens from one forward pass without cache."""
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    ids = torch.tensor([[*group.prompt_ids, *completion.completion_ids]])
    with torch.no_grad():
        return model(ids, use_cache=False).logits[0, len(group.prompt_ids) - 1 : -1]


def truncated_logprobs(logits: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """Log-probs of one position, token by token in plain Python."""
    scaled = logits.double() / settings.temperature
    order = scaled.argsort(descending=True).tolist()
    kept = order[: settings.top_k] if settings.top_k else order
    probs = dict(zip(kept, scaled[kept].softmax(0).tolist(), strict=True))
    nucleus, mass = [], 0.0
    for token in kept:
        if mass < settings.top_p:
            nucleus.append(token)
        mass += probs[token]
    result = torch.full_like(scaled, -torch.inf)
    result[nucleus] = scaled[nucleus].log_softmax(0)
    return result


@pytest.mark.parametrize("family", ["llama", "qwen2", "sliding", "hybrid"])
@pytest.mark.parametrize("settings", [PLAIN, TRUNCATED], ids=["plain", "truncated"])
def test_logprobs_are_those_of_a_full_forward_pass(make_policy: MakePolicy, family: str, settings: SamplingSettings):
    policy = make_policy(family)
    for group, completions in zip(GROUPS, sample(engine_of(policy), settings=settings), strict=True):
        for completion in (completions[0], completions[-1]):
            logits = full_forward_logits(policy, group, completion)
            expected = [
                truncated_logprobs(row, settings)[token].item()
                for row, token in zip(logits, completion.completion_ids, strict=True)
            ]
            assert completion.sampling_logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "sliding", "hybrid"])
def test_company_changes_a_completion_by_rounding_only(make_policy: MakePolicy, family: str):
    """Padding, shared prompts and complete rows must not affect other rows."""
    engine = engine_of(make_policy(family))
    for group, completions in zip(GROUPS, sample(engine), strict=True):
        for seed, completion in zip(group.seeds, completions, strict=True):
            [[alone]] = sample(engine, [SamplingGroup(group.prompt_ids, [seed])])
            assert completion.completion_ids == alone.completion_ids
            assert completion.sampling_logprobs == pytest.approx(alone.sampling_logprobs, abs=1e-4)


def test_completions_of_a_group_take_the_temperatures_in_turn(make_policy: MakePolicy):
    """Also where a group is split into waves, and where its completions are not its first ones."""
    engine = engine_of(make_policy("llama"), max_num_seqs=3)
    later = SamplingGroup(GROUPS[0].prompt_ids, [11, 12], sample_ids=[7, 2])
    drawn = sample(engine, [*GROUPS, later], PLAIN.model_copy(update={"temperature": [0.5, 0.0, 2.0]}))
    low, greedy, high = (sample(engine, settings=PLAIN.model_copy(update={"temperature": t})) for t in (0.5, 0.0, 2.0))
    expected = [
        [low[0][0], greedy[0][1], high[0][2], low[0][3]],
        [low[1][0], greedy[1][1]],
        [low[2][0], greedy[2][1], high[2][2]],
        [greedy[0][0], high[0][1]],
    ]
    for group, wanted in zip(drawn, expected, strict=True):
        assert [each.completion_ids for each in group] == [each.completion_ids for each in wanted]
        for one, other in zip(group, wanted, strict=True):
            assert one.sampling_logprobs == pytest.approx(other.sampling_logprobs, abs=1e-4)


def test_it_tells_of_completions_and_tokens_while_it_samples(make_policy: MakePolicy):
    engine, counts = engine_of(make_policy("llama"), max_num_seqs=5), []
    engine.on_sampled = lambda *numbers: counts.append(numbers)
    drawn = [completion for group in sample(engine) for completion in group]
    expected = len(drawn), sum(len(completion.completion_ids) for completion in drawn)
    assert tuple(map(sum, zip(*counts, strict=True))) == expected
    assert counts[0][1] == 4, "the first wave, which has room for one group"


def test_some_rows_of_these_tests_end_before_others(make_policy: MakePolicy):
    """Otherwise no rows would leave the batch in the tests above."""
    lengths = {
        len(completion.completion_ids) for group in sample(engine_of(make_policy("llama"))) for completion in group
    }
    assert len(lengths) >= 3


def test_the_same_call_gives_the_same_bits_whatever_came_before(make_policy: MakePolicy):
    engine = engine_of(make_policy("llama"))
    first = sample(engine)
    sample(engine, GROUPS[:1], TRUNCATED)
    assert sample(engine) == first
    assert sample(engine_of(make_policy("llama"))) == first


def test_equal_seeds_give_equal_completions_and_others_do_not(make_policy: MakePolicy):
    [completions] = sample(engine_of(make_policy("llama")), [SamplingGroup([2, 10, 3], [7, 8, 7])])
    first, other, again = completions
    assert first.completion_ids == again.completion_ids
    # A matrix product may round a row by its place in the batch.
    assert first.sampling_logprobs == pytest.approx(again.sampling_logprobs, abs=1e-5)
    assert first.completion_ids != other.completion_ids


def test_greedy_takes_the_likeliest_token_with_logprob_zero(make_policy: MakePolicy):
    policy = make_policy("qwen2")
    [[completion]] = sample(engine_of(policy), [SamplingGroup([2, 10, 11, 3], [0])], GREEDY)
    logits = full_forward_logits(policy, SamplingGroup([2, 10, 11, 3], [0]), completion)
    assert completion.completion_ids == logits.argmax(-1).tolist()
    assert completion.sampling_logprobs == [0.0] * len(completion.completion_ids)


def test_a_completion_ends_with_eos_or_at_its_length(make_policy: MakePolicy):
    completions = [completion for group in sample(engine_of(make_policy("llama"))) for completion in group]
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    for completion in completions:
        assert EOS not in completion.completion_ids[:-1]
        assert len(completion.sampling_logprobs) == len(completion.completion_ids)
        if completion.finish_reason == "stop":
            assert completion.completion_ids[-1] == EOS
        else:
            assert len(completion.completion_ids) == PLAIN.max_completion_length
            assert completion.completion_ids[-1] != EOS


def test_eos_as_the_last_token_that_fits_is_a_stop(make_policy: MakePolicy):
    engine = engine_of(make_policy("llama"))
    stopped = next(c for group in sample(engine) for c in group if c.finish_reason == "stop")
    place = next((g, s) for g, group in enumerate(sample(engine)) for s, c in enumerate(group) if c == stopped)
    length = len(stopped.completion_ids)
    for limit, reason in ((length, "stop"), (length - 1, "length")):
        shorter = sample(
            engine, settings=SamplingSettings(temperature=1.0, top_p=1.0, top_k=0, max_completion_length=limit)
        )[place[0]][place[1]]
        assert (shorter.finish_reason, len(shorter.completion_ids)) == (reason, limit)


def test_every_eos_of_the_generation_config_ends_a_completion(make_policy: MakePolicy, tmp_path: Path):
    policy = Path(shutil.copytree(make_policy("llama"), tmp_path / "policy"))
    (policy / "generation_config.json").write_text('{"eos_token_id": [1, 5, 6, 7, 8, 9]}')
    engine = engine_of(policy)
    assert engine.tokenizer.eos_token_ids == (1, 5, 6, 7, 8, 9)
    last_tokens = {c.completion_ids[-1] for group in sample(engine) for c in group if c.finish_reason == "stop"}
    assert last_tokens <= {1, 5, 6, 7, 8, 9}
    assert last_tokens - {1}


def test_first_tokens_over_many_seeds_agree_with_the_softmax(make_policy: MakePolicy):
    """Chi-square over the ten likeliest tokens and the rest: 29.59 is exceeded once in a thousand sets of seeds."""
    policy = make_policy("llama")
    group = SamplingGroup([2, 10, 11, 12, 3], list(range(4000)))
    one_token = SamplingSettings(temperature=1.3, top_p=1.0, top_k=0, max_completion_length=1)
    [completions] = sample(engine_of(policy, max_num_seqs=4000), [group], one_token)
    probs = truncated_logprobs(full_forward_logits(policy, group, completions[0])[0], one_token).exp().numpy()
    counts = np.bincount([completion.completion_ids[0] for completion in completions], minlength=len(probs))
    likeliest = np.argsort(-probs)[:10]
    observed = np.append(counts[likeliest], 4000 - counts[likeliest].sum())
    expected = 4000 * np.append(probs[likeliest], 1 - probs[likeliest].sum())
    assert ((observed - expected) ** 2 / expected).sum() < 29.59


def test_waves_hold_whole_groups_in_order():
    groups = [SamplingGroup([2], range(count)) for count in (3, 2, 4, 1)]
    waves = plan_waves(groups, max_num_seqs=5)
    assert [[(part.group_index, list(part.seeds)) for part in wave] for wave in waves] == [
        [(0, [0, 1, 2]), (1, [0, 1])],
        [(2, [0, 1, 2, 3]), (3, [0])],
    ]


def test_a_group_larger_than_a_wave_is_cut_and_comes_back_whole(make_policy: MakePolicy):
    group = SamplingGroup([2, 10, 3], [1, 2, 3, 4, 5, 6, 7])
    [completions] = sample(engine_of(make_policy("llama"), max_num_seqs=3), [group])
    [reference] = sample(engine_of(make_policy("llama")), [group])
    assert [c.completion_ids for c in completions] == [c.completion_ids for c in reference]


def test_groups_come_as_soon_as_their_wave_is_done(make_policy: MakePolicy):
    results = engine_of(make_policy("llama"), max_num_seqs=4).sample(GROUPS, PLAIN)
    assert next(results)[0] == 0


def test_a_group_without_seeds_has_no_completions(make_policy: MakePolicy):
    assert sample(engine_of(make_policy("llama")), [SamplingGroup([2, 3], [])]) == [[]]


def test_a_loaded_policy_samples_like_a_fresh_engine_of_it(make_policy: MakePolicy):
    engine = engine_of(make_policy("llama"))
    before = sample(engine)
    engine.load_policy(make_policy("llama", seed=1))
    after = sample(engine)
    assert after == sample(engine_of(make_policy("llama", seed=1)))
    assert after != before


def test_a_closed_engine_says_so(make_policy: MakePolicy):
    engine = engine_of(make_policy("llama"))
    engine.close()
    with pytest.raises(IgrpoError, match="closed"):
        sample(engine)


def test_more_than_the_context_is_refused_with_all_lengths(make_policy: MakePolicy):
    engine = engine_of(make_policy("llama"))
    too_long = SamplingSettings(temperature=1.0, top_p=1.0, top_k=0, max_completion_length=120)
    with pytest.raises(IgrpoError, match=r"12 tokens.*120.*132.*128") as caught:
        sample(engine, GROUPS[1:2], too_long)
    assert caught.value.hint == "lower max_completion_length (in eval: max_gen_toks) to 116"


def test_max_model_len_narrows_the_context_and_cannot_widen_it(make_policy: MakePolicy):
    with pytest.raises(IgrpoError, match="max_model_len"):
        sample(engine_of(make_policy("llama"), max_model_len=20), GROUPS[1:2])
    with pytest.raises(UsageError, match="exceeds the model's 128 positions"):
        engine_of(make_policy("llama"), max_model_len=129)


def test_a_policy_with_nan_weights_is_named(make_policy: MakePolicy, tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(make_policy("llama"))
    model.model.norm.weight.data[0] = torch.nan
    policy = Path(shutil.copytree(make_policy("llama"), tmp_path / "diverged"))
    model.save_pretrained(policy)
    for settings in (PLAIN, GREEDY):
        with pytest.raises(IgrpoError, match=r"diverged \(group 0, token 0.*model.safetensors holds NaN.* not finite"):
            sample(engine_of(policy), settings=settings)


def test_bfloat16_on_request(make_policy: MakePolicy):
    engine = engine_of(make_policy("llama"), dtype="bfloat16")
    assert engine.dtype == "bfloat16"
    logprobs = [lp for group in sample(engine) for c in group for lp in c.sampling_logprobs]
    assert all(-20 < lp <= 0 for lp in logprobs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", ["llama", "sliding"])
def test_a_gpu_samples_from_the_same_distribution(make_policy: MakePolicy, family: str):
    policy = make_policy(family)
    engine = engine_of(policy, device="cuda")
    drawn = sample(engine)
    assert sample(engine) == drawn
    for group, completions in zip(GROUPS, drawn, strict=True):
        logprobs = full_forward_logits(policy, group, completions[0]).log_softmax(-1)
        expected = logprobs.gather(1, torch.tensor(completions[0].completion_ids)[:, None])[:, 0]
        assert completions[0].sampling_logprobs == pytest.approx(expected.tolist(), abs=1e-3)


def test_attention_is_the_fused_one(make_policy: MakePolicy):
    assert engine_of(make_policy("llama"))._model.config._attn_implementation == "sdpa"


class TakesCache:
    def forward(self, input_ids, cache=None, use_cache=None): ...


class TakesPastKeyValues:
    def forward(self, input_ids, past_key_values=None, use_cache=None): ...


class TakesCacheParams:
    def forward(self, input_ids, cache_params=None, use_cache=None): ...


class TakesAnything:
    def forward(self, input_ids, **kwargs): ...


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (TakesCache(), "cache"),
        (TakesPastKeyValues(), "past_key_values"),
        (TakesCacheParams(), "cache_params"),
        (TakesAnything(), "past_key_values"),
    ],
)
def test_the_cache_is_passed_under_the_name_that_the_model_has_for_it(model: object, name: str):
    assert set(_Forward(model, cache="the cache")._fixed) == {name, "use_cache"}


def test_weights_that_could_run_code_are_refused(make_policy: MakePolicy, tmp_path: Path):
    policy = Path(shutil.copytree(make_policy("llama"), tmp_path / "pickled"))
    (policy / "model.safetensors").rename(policy / "pytorch_model.bin")
    with pytest.raises(IgrpoError, match=r"only pickled weights \(pytorch_model.bin\)"):
        engine_of(policy)


def test_a_directory_that_is_no_model_is_a_missing_input(tmp_path: Path):
    with pytest.raises(MissingInputError, match="tokenizer"):
        engine_of(tmp_path)


@pytest.mark.parametrize(
    ("device", "message"), [("warp", "knows no device"), ("cuda:99", "there is no device cuda:99")]
)
def test_an_unknown_device_is_a_usage_error(make_policy: MakePolicy, device: str, message: str):
    with pytest.raises(UsageError, match=message):
        engine_of(make_policy("llama"), device=device)


def test_an_unknown_engine_is_a_usage_error_that_names_those_that_exist():
    with pytest.raises(UsageError, match=r"engine\.name = 'transfomers'.*'auto', 'transformers', 'vllm' or 'server'"):
        check_config({"engine": {"name": "transfomers"}}, "run.toml")


def test_importing_the_room_loads_nothing_heavy():
    program = "import sys, igrpo_cli.engines.factory; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == "set()"
