"""The vLLM engine on the tiny policy: a real vLLM, compared with one full forward pass of transformers."""

from __future__ import annotations

import json
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm_on_tiny import GREEDY, MIN_P, PLAIN, TINY, TRUNCATED, VLLM, distribution, drain, sample

from igrpo_cli.config.engine import EngineSection
from igrpo_cli.config.sections import SamplingSettings
from igrpo_cli.engines.factory import create_engine, vllm_fits
from igrpo_cli.errors import IgrpoError, UsageError
from igrpo_cli.records import SamplingGroup

pytestmark = pytest.mark.skipif(not vllm_fits("auto"), reason="needs vLLM in a build for this machine")


@pytest.fixture(scope="module")
def engine():
    engine = create_engine(TINY, VLLM)
    yield engine
    engine.close()


@pytest.fixture
def groups(engine):
    texts = ["17 + 25 = ", "9 - 4 = ", "3 + 3"]
    prompts = [engine.tokenizer.encode_text(text) for text in texts]
    return [SamplingGroup(ids, range(10 * n, 10 * n + 5)) for n, ids in enumerate(prompts, start=1)]


@pytest.mark.parametrize("settings", [PLAIN, TRUNCATED, MIN_P], ids=["plain", "truncated", "min_p"])
def test_logprobs_are_those_of_the_distribution_sampled_from(engine, groups, settings):
    for group, drawn in zip(groups, sample(engine, groups, settings), strict=True):
        for completion in drawn:
            logprobs_TV = distribution(TINY, group, completion, settings)
            expected = [row[token].item() for row, token in zip(logprobs_TV, completion.completion_ids, strict=True)]
            assert completion.sampling_logprobs == pytest.approx(expected, abs=1e-4)


def test_a_completion_depends_on_its_prompt_and_seed_only(engine, groups):
    together = sample(engine, groups)
    for group, drawn in zip(groups, together, strict=True):
        for seed, completion in zip(group.seeds, drawn, strict=True):
            [[alone]] = sample(engine, [SamplingGroup(group.prompt_ids, [seed])])
            assert alone.completion_ids == completion.completion_ids
            assert alone.sampling_logprobs == pytest.approx(completion.sampling_logprobs, abs=1e-5)
    assert len({tuple(completion.completion_ids) for completion in together[0]}) > 1


def test_completions_of_a_group_take_the_temperatures_in_turn(engine, groups):
    temperatures = [0.5, 0.0, 2.0]
    rising = PLAIN.model_copy(update={"temperature": temperatures})
    for group, drawn in zip(groups, sample(engine, groups, rising), strict=True):
        for sample_id, completion in enumerate(drawn):
            one = PLAIN.model_copy(update={"temperature": temperatures[sample_id % 3]})
            [[alone]] = sample(engine, [SamplingGroup(group.prompt_ids, [group.seeds[sample_id]])], one)
            assert completion.completion_ids == alone.completion_ids
            assert completion.sampling_logprobs == pytest.approx(alone.sampling_logprobs, abs=1e-5)


def test_it_tells_of_completions_within_a_batch(engine, groups, monkeypatch):
    counts = []
    monkeypatch.setattr(engine, "on_sampled", lambda *numbers: counts.append(numbers))
    drawn = [completion for group in sample(engine, groups) for completion in group]
    assert sorted(counts) == sorted((1, len(completion.completion_ids)) for completion in drawn)


def test_batches_under_way_together_come_back_whole_under_their_own_keys(engine, groups):
    one_by_one = {index: sample(engine, [group]) for index, group in enumerate(groups)}
    for index, group in enumerate(groups):
        assert engine.has_room
        engine.submit(index, [group], PLAIN)
    assert engine.num_unfinished == 3
    together = drain(engine)
    for index, [drawn] in one_by_one.items():
        assert [c.completion_ids for c in together[index][0]] == [c.completion_ids for c in drawn]


def test_it_has_no_room_while_all_its_places_are_taken(engine, groups):
    engine.submit("many", [SamplingGroup(groups[0].prompt_ids, range(32))], PLAIN)
    assert not engine.has_room
    drain(engine)
    assert engine.has_room


def test_a_batch_without_completions_comes_back(engine):
    assert sample(engine, []) == []
    assert sample(engine, [SamplingGroup([5, 6], [])]) == [[]]


def test_first_tokens_over_many_seeds_agree_with_the_softmax(engine, groups):
    """Chi-square over the likeliest tokens and the rest: 29.59 is exceeded once in a thousand sets of seeds."""
    one_token, group = (
        SamplingSettings(temperature=1.3, top_p=1.0, top_k=0, max_completion_length=1),
        SamplingGroup(groups[0].prompt_ids, range(2000)),
    )
    [drawn] = sample(engine, [group], one_token)
    probs = distribution(TINY, group, drawn[0], one_token)[0].exp().numpy()
    counts = np.bincount([completion.completion_ids[0] for completion in drawn], minlength=len(probs))
    likeliest = np.argsort(-probs)[:10]
    observed = np.append(counts[likeliest], 2000 - counts[likeliest].sum())
    expected = 2000 * np.append(probs[likeliest], 1 - probs[likeliest].sum())
    assert ((observed - expected) ** 2 / expected).sum() < 29.59


def test_greedy_takes_the_likeliest_token_with_logprob_zero(engine, groups):
    [[completion]] = sample(engine, [SamplingGroup(groups[0].prompt_ids, [0])], GREEDY)
    logprobs_TV = distribution(TINY, groups[0], completion, PLAIN)
    assert completion.completion_ids == logprobs_TV.argmax(-1).tolist()
    assert completion.sampling_logprobs == [0.0] * len(completion.completion_ids)


def test_a_completion_ends_with_eos_or_at_its_length(engine, groups):
    drawn = list(
        chain(
            *sample(engine, groups),
            *sample(engine, groups, SamplingSettings(temperature=1.0, top_p=1.0, top_k=0, max_completion_length=3)),
        )
    )
    assert {completion.finish_reason for completion in drawn} == {"stop", "length"}
    for completion in drawn:
        assert (completion.completion_ids[-1] == 2) == (completion.finish_reason == "stop")
        assert 2 not in completion.completion_ids[:-1]
        assert len(completion.sampling_logprobs) == len(completion.completion_ids)


def test_a_loaded_policy_samples_like_a_fresh_engine_of_it_and_not_from_the_old_cache(engine, groups, tmp_path):
    before = sample(engine, groups)
    other = Path(shutil.copytree(TINY, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    torch.manual_seed(0)
    changed = {name: weight + 0.05 * weight.std() * torch.randn_like(weight) for name, weight in weights.items()}
    save_file(changed, other / "model.safetensors", metadata={"format": "pt"})
    try:
        engine.load_policy(other)
        for group, drawn in zip(groups, sample(engine, groups), strict=True):
            logprobs_TV = distribution(other, group, drawn[0], PLAIN)
            expected = [row[token].item() for row, token in zip(logprobs_TV, drawn[0].completion_ids, strict=True)]
            assert drawn[0].sampling_logprobs == pytest.approx(expected, abs=1e-4)
    finally:
        engine.load_policy(TINY)
    assert sample(engine, groups) == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_engine_that_rests_gives_its_memory_back_and_samples_the_same_afterwards(engine, groups):
    before = sample(engine, groups)
    in_use = torch.cuda.mem_get_info()[0]
    engine.sleep()
    assert torch.cuda.mem_get_info()[0] > in_use + VLLM.kv_cache_memory_bytes // 2
    engine.load_policy(TINY)
    assert sample(engine, groups) == before


def test_a_prompt_that_leaves_no_room_is_refused_by_its_group(engine):
    with pytest.raises(IgrpoError, match=r"the prompt of group 1 has 500 tokens.*takes 512 \(max_model_len\)"):
        engine.submit("batch", [SamplingGroup([5], [1]), SamplingGroup([5] * 500, [1])], PLAIN)
    assert engine.num_unfinished == 0


def test_it_says_what_it_is(engine):
    assert engine.name == "vllm"
    assert engine.dtype == "float32"
    assert {"vllm", "torch"} <= engine.versions.keys()
    assert json.dumps(engine.versions)


def test_replicas_in_one_process_are_refused():
    config = EngineSection(name="vllm", data_parallel_size=2)
    with pytest.raises(UsageError, match="data_parallel_size = 2") as refused:
        create_engine(TINY, config)
    assert "--shard" in str(refused.value.hint)


def test_a_quantisation_that_vllm_does_not_have_is_refused_by_name():
    config = EngineSection(**{**VLLM.model_dump(), "quantization": "none-such"})
    with pytest.raises(IgrpoError, match="none-such") as refused:
        create_engine(TINY, config)
    assert "engine.quantization" in str(refused.value.hint)
