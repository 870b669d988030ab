"""Speculative decoding of vLLM on the tiny policy: the same distribution, right log-probs, and a seed for every row."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from vllm_on_tiny import GREEDY, PLAIN, TINY, TRUNCATED, VLLM, distribution, drain, sample

from igrpo_cli.config.engine import EngineSection
from igrpo_cli.config.sections import SamplingSettings
from igrpo_cli.engines.factory import create_engine, vllm_fits
from igrpo_cli.errors import UsageError
from igrpo_cli.records import SamplingGroup

pytestmark = pytest.mark.skipif(not vllm_fits("auto"), reason="needs vLLM in a build for this machine")

NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
SPECULATIVE = EngineSection(**{**VLLM.model_dump(), "speculative_config": NGRAM, "max_num_seqs": 128})
TEXTS = ("17 + 25 = 42\n17 + 25 = ", "9 - 4 = 5\n9 - 4 = ", "3 + 3")
WARM = SamplingSettings(temperature=1.3, max_completion_length=24)
IN_TURN = SamplingSettings(temperature=[0.5, 0.0, 2.0], top_k=30, max_completion_length=24)


@pytest.fixture(scope="module")
def engine():
    engine = create_engine(TINY, SPECULATIVE)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def groups(engine):
    """Prompts of which two hold a text twice, as the prompt of a refinement that repeats its draft."""
    return [
        SamplingGroup(engine.tokenizer.encode_text(text), range(10 * n, 10 * n + 8)) for n, text in enumerate(TEXTS, 1)
    ]


def flat(drawn):
    return [completion for group in drawn for completion in group]


@pytest.mark.parametrize(
    "settings", [PLAIN, WARM, TRUNCATED, IN_TURN], ids=["plain", "warm", "truncated", "temperatures in turn"]
)
def test_logprobs_are_those_of_the_distribution_sampled_from(engine, groups, settings):
    together = sample(engine, groups, settings)
    for group, drawn in zip(groups, together, strict=True):
        for sample_id, completion in enumerate(drawn):
            own = settings.of_sample(sample_id)
            if own.temperature == 0:
                assert completion.sampling_logprobs == [0.0] * len(completion.completion_ids)
                continue
            logprobs_TV = distribution(TINY, group, completion, own)
            expected = [row[token].item() for row, token in zip(logprobs_TV, completion.completion_ids, strict=True)]
            assert completion.sampling_logprobs == pytest.approx(expected, abs=1e-4)
    assert 0 < sum(each.num_accepted for each in flat(together)) < sum(each.num_proposed for each in flat(together))


@pytest.fixture(scope="module")
def many(engine):
    """A prompt, the completions of many seeds, and their settings."""
    settings = SamplingSettings(temperature=1.6, max_completion_length=6)
    group = SamplingGroup(engine.tokenizer.encode_text("3+3=4\n3+3"), range(1200))
    [drawn] = sample(engine, [group], settings)
    return group, drawn, settings


@pytest.mark.slow
@pytest.mark.parametrize("position", [1, 2])
def test_tokens_that_were_proposed_are_drawn_with_their_probability(many, position):
    """Chi-square over the likeliest tokens and the rest: 29.59 is exceeded once in a thousand sets of seeds.

    Rows with the same beginning have the same proposals, so the distribution after the commonest beginning is tested.
    """
    group, drawn, settings = many
    assert sum(each.num_accepted for each in drawn) > 500
    long_enough = [each for each in drawn if len(each.completion_ids) > position]
    ((beginning, number),) = Counter(tuple(each.completion_ids[:position]) for each in long_enough).most_common(1)
    assert number > 50
    alike = [each for each in long_enough if tuple(each.completion_ids[:position]) == beginning]
    probs = distribution(TINY, group, alike[0], settings)[position].exp().numpy()
    if position == 1:
        # The completion begins with the equals sign, and the prompt has an answer after one.
        proposed = group.prompt_ids[list(group.prompt_ids).index(beginning[0]) + 1]
        assert 0.05 < probs[proposed] < 0.95
    counts = np.bincount([each.completion_ids[position] for each in alike], minlength=len(probs))
    likeliest = np.argsort(-probs)[:10]
    likeliest = likeliest[number * probs[likeliest] >= 5]
    observed = np.append(counts[likeliest], number - counts[likeliest].sum())
    expected = number * np.append(probs[likeliest], 1 - probs[likeliest].sum())
    assert ((observed - expected) ** 2 / expected).sum() < 29.59


def test_greedy_completions_are_those_without_proposals(engine, groups):
    speculated = sample(engine, groups, GREEDY)
    for group, drawn in zip(groups, speculated, strict=True):
        logprobs_TV = distribution(TINY, group, drawn[0], PLAIN)
        assert list(drawn[0].completion_ids) == logprobs_TV.argmax(-1).tolist()
        assert drawn[0].sampling_logprobs == [0.0] * len(drawn[0].completion_ids)
    assert sum(each.num_accepted for each in flat(speculated)) > 0


def test_a_completion_depends_on_its_prompt_and_seed_only(engine, groups):
    together = sample(engine, groups, WARM)
    for group, drawn in zip(groups, together, strict=True):
        for seed, completion in list(zip(group.seeds, drawn, strict=True))[:3]:
            [[alone]] = sample(engine, [SamplingGroup(group.prompt_ids, [seed])], WARM)
            assert alone.completion_ids == completion.completion_ids
            assert alone.sampling_logprobs == pytest.approx(completion.sampling_logprobs, abs=1e-5)
            assert (alone.num_proposed, alone.num_accepted) == (completion.num_proposed, completion.num_accepted)


def test_more_completions_than_places_are_the_same(engine, groups):
    """Completions wait for a place, and enter while others are in progress."""
    many = SamplingGroup(groups[0].prompt_ids, range(200))
    [drawn] = sample(engine, [many], WARM)
    [few] = sample(engine, [SamplingGroup(many.prompt_ids, range(60, 70))], WARM)
    assert [each.completion_ids for each in drawn[60:70]] == [each.completion_ids for each in few]


def test_the_same_batch_has_the_same_bits_after_other_batches(engine, groups):
    before = sample(engine, groups, WARM)
    engine.submit("other", [SamplingGroup(groups[1].prompt_ids, range(500, 540))], PLAIN)
    drain(engine)
    assert sample(engine, groups, WARM) == before


def test_a_completion_ends_at_the_token_that_completes_a_stop_string(engine, groups):
    """Accepted proposals come several at a time; those after the stop string are left out."""
    settings = SamplingSettings(temperature=1.0, stop=["+", "="], max_completion_length=24)
    drawn = flat(sample(engine, groups, settings))
    stopped = [each for each in drawn if engine.tokenizer.reaches_stop(each.completion_ids, settings.stop)]
    assert len(stopped) > 3
    assert {each.finish_reason for each in stopped} == {"stop"}
    assert any(each.num_proposed for each in stopped)
    for each in drawn:
        assert len(each.sampling_logprobs) == len(each.completion_ids)
        lengths = range(1, len(each.completion_ids))
        assert not any(engine.tokenizer.reaches_stop(each.completion_ids[:n], settings.stop) for n in lengths)


def test_a_completion_is_not_longer_than_its_maximum(engine, groups):
    drawn = flat(sample(engine, groups, SamplingSettings(temperature=1.3, max_completion_length=5)))
    assert max(len(each.completion_ids) for each in drawn) == 5
    assert all(len(each.sampling_logprobs) == len(each.completion_ids) for each in drawn)


def test_a_vllm_that_does_not_count_proposals_is_refused(monkeypatch):
    from vllm import EngineArgs

    monkeypatch.delattr(EngineArgs, "per_request_spec_decode_metrics")
    with pytest.raises(UsageError, match="does not count the proposals"):
        create_engine(TINY, SPECULATIVE)
