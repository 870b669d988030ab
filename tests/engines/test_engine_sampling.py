from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from igrpo_cli.config.sections import SamplingSettings
from igrpo_cli.engines.sampling import choose_tokens, row_uniforms, tempered_logprobs

PROBS = [0.05, 0.5, 0.15, 0.3]


def settings(
    temperature: float | list[float] = 1.0, top_p: float = 1.0, top_k: int = 0, min_p: float | None = None
) -> SamplingSettings:
    return SamplingSettings(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, max_completion_length=8)


def logits(*probs: float) -> torch.Tensor:
    return torch.tensor([probs or PROBS]).log()


def distribution(logits_BV: torch.Tensor, chosen: SamplingSettings) -> dict[int, float]:
    """Return {token: probability} of the only row, without excluded tokens."""
    probs = tempered_logprobs(logits_BV, chosen)[0].exp().tolist()
    return {token: prob for token, prob in enumerate(probs) if prob > 0}


def test_uniforms_are_the_published_splitmix64_stream():
    """The first three outputs of the authors' program for seed 0."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    stream = [row_uniforms(np.zeros(1, dtype=np.uint64), step)[0] for step in range(3)]
    assert stream == [(output >> 11) / 2**53 for output in expected]


def test_a_rows_uniform_depends_on_its_own_seed_and_step_only():
    together = row_uniforms(np.array([5, 2**63 - 1, 7], dtype=np.uint64), 9)
    alone = row_uniforms(np.array([2**63 - 1], dtype=np.uint64), 9)
    assert together[1] == alone[0]
    assert len({*together, *row_uniforms(np.array([5], dtype=np.uint64), 10)}) == 4


def test_seeds_that_share_their_low_32_bits_have_different_streams():
    first, second = row_uniforms(np.array([5, 5 + 2**40], dtype=np.uint64), 0)
    assert first != second


def test_without_truncation_logprobs_are_those_of_the_tempered_softmax():
    squares = [prob**2 for prob in PROBS]
    expected = {token: square / sum(squares) for token, square in enumerate(squares)}
    assert distribution(logits(), settings(temperature=0.5)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (settings(top_k=1), {1: 1.0}),
        (settings(top_k=2), {1: 0.625, 3: 0.375}),
        (settings(top_p=0.79), {1: 0.625, 3: 0.375}),
        (settings(top_p=0.81), {1: 0.5 / 0.95, 3: 0.3 / 0.95, 2: 0.15 / 0.95}),
        (settings(top_p=0.01), {1: 1.0}),
        # Top-k first: 0.5 is 0.625 of what it leaves, which is above 0.6.
        (settings(top_p=0.6, top_k=2), {1: 1.0}),
        # Temperature first: 0.5 becomes 0.25 / 0.365 = 0.685, which is above 0.65.
        (settings(top_p=0.65, temperature=0.5), {1: 1.0}),
        # 0.15 is 0.3 of 0.5, the largest probability, and 0.05 is 0.1 of it.
        (settings(min_p=0.29), {1: 0.5 / 0.95, 3: 0.3 / 0.95, 2: 0.15 / 0.95}),
        (settings(min_p=0.31), {1: 0.625, 3: 0.375}),
        (settings(min_p=1.0), {1: 1.0}),
        (settings(min_p=0.0), {1: 0.5, 3: 0.3, 2: 0.15, 0: 0.05}),
        # Temperature first: 0.3 becomes 0.09, which is 0.36 of 0.25.
        (settings(min_p=0.37, temperature=0.5), {1: 1.0}),
        # Min-p before top-p: of 0.5 and 0.3 the first is 0.625, which is above 0.6.
        (settings(min_p=0.31, top_p=0.6), {1: 1.0}),
        (settings(top_k=99), {1: 0.5, 3: 0.3, 2: 0.15, 0: 0.05}),
    ],
)
def test_truncation_renormalises_what_it_leaves(chosen: SamplingSettings, expected: dict[int, float]):
    assert distribution(logits(), chosen) == pytest.approx(expected)


def test_tokens_as_likely_as_the_last_one_kept_stay():
    tied = logits(0.1, 0.3, 0.3, 0.3)
    for chosen in (settings(top_k=2), settings(top_p=0.4)):
        assert distribution(tied, chosen) == pytest.approx({1: 1 / 3, 2: 1 / 3, 3: 1 / 3})


def test_a_nucleus_of_thousands_of_tokens_is_found():
    """Probabilities fall by a factor of 1 - 2**-12 from token to token, so the first 9,431 have 0.9 of the mass."""
    decay = math.log1p(-(2**-12))
    row = torch.arange(50_000, dtype=torch.float64)[None] * decay
    kept = distribution(row, settings(top_p=0.9))
    assert len(kept) == pytest.approx(math.log(0.1) / decay, abs=2)
    assert max(kept) == len(kept) - 1
    assert sum(kept.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.0499, 0), (0.0501, 1), (0.5499, 1), (0.5501, 2), (0.71, 3), (1 - 2**-53, 3)]
)
def test_a_uniform_picks_the_token_where_the_cumulative_probability_exceeds_it(uniform: float, token: int):
    tokens, logprobs = choose_tokens(logits(), [uniform], settings())
    assert tokens.tolist() == [token]
    assert logprobs.tolist() == pytest.approx([math.log(PROBS[token])])


def test_the_logprob_of_a_drawn_token_is_that_of_the_truncated_distribution():
    tokens, logprobs = choose_tokens(logits().expand(2, -1), [0.6249, 0.6251], settings(top_p=0.79))
    assert tokens.tolist() == [1, 3]
    assert logprobs.tolist() == pytest.approx([math.log(0.625), math.log(0.375)])


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_tokens_of_probability_zero_are_never_drawn(uniform: float):
    assert choose_tokens(logits(0.0, 0.0, 1.0, 0.0), [uniform], settings())[0].tolist() == [2]


def test_rare_tokens_of_a_large_vocabulary_keep_their_share():
    """200,000 tokens of probability 2.5e-6 each have half of the mass."""
    row = torch.full((1, 200_001), math.log(0.5 / 200_000))
    row[0, 0] = math.log(0.5)
    uniforms = (np.arange(40) + 0.5) / 40
    tokens, _ = choose_tokens(row.expand(40, -1), uniforms, settings())
    expected = np.where(uniforms < 0.5, 0, np.floor((uniforms - 0.5) / 2.5e-6) + 1)
    assert np.abs(tokens.numpy() - expected).max() <= 2


def test_temperature_zero_takes_the_first_of_the_largest_with_logprob_zero():
    tokens, logprobs = choose_tokens(torch.tensor([[1.0, 3.0, 3.0], [2.0, 1.0, 0.0]]), [0.9, 0.9], settings(0.0))
    assert tokens.tolist() == [1, 0]
    assert logprobs.tolist() == [0.0, 0.0]


def test_each_row_has_its_temperature():
    """Of 0.05, 0.5, 0.15 and 0.3 the squares sum to 0.365; temperature 0 takes the second."""
    temperatures = np.array([0.5, 1.0, 0.0, 0.5], dtype=np.float32)
    # The squares of the first three are 0.275 of 0.365, so 0.754 of the mass lies before the last token.
    chosen = settings([0.5, 1.0, 0.0])
    tokens, logprobs = choose_tokens(logits().expand(4, -1), [0.5, 0.56, 0.99, 0.77], chosen, temperatures)
    assert tokens.tolist() == [1, 2, 1, 3]
    assert logprobs.tolist() == pytest.approx([math.log(0.25 / 0.365), math.log(0.15), 0.0, math.log(0.09 / 0.365)])


def test_rows_of_one_temperature_are_the_same_in_a_list_and_alone():
    rows, uniforms = logits().expand(3, -1), [0.1, 0.6, 0.9]
    for temperature in (0.7, 0.0):
        several = np.full(3, temperature, dtype=np.float32)
        in_list = choose_tokens(rows, uniforms, settings([temperature], top_p=0.9), several)
        alone = choose_tokens(rows, uniforms, settings(temperature, top_p=0.9))
        assert in_list[0].tolist() == alone[0].tolist()
        assert in_list[1].tolist() == pytest.approx(alone[1].tolist(), rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("chosen", [settings(), settings(0.0), settings(top_k=2), settings(top_p=0.5)])
def test_logits_that_are_not_finite_show_in_the_logprob_of_their_row_alone(bad: float, chosen: SamplingSettings):
    rows = torch.tensor([[0.1, 0.2, 0.3], [0.1, bad, 0.3]])
    tokens, logprobs = choose_tokens(rows, [0.5, 0.5], chosen)
    assert logprobs.isfinite().tolist() == [True, False]
    assert all(0 <= token < 3 for token in tokens.tolist())


def test_frequencies_over_many_seeds_agree_with_the_distribution():
    """Chi-square with 3 degrees of freedom: 16.27 is exceeded by chance once in a thousand sets of seeds."""
    seeds = np.arange(20_000, dtype=np.uint64)
    for step in (0, 1, 1000):
        tokens, _ = choose_tokens(logits().expand(len(seeds), -1), row_uniforms(seeds, step), settings())
        counts = np.bincount(tokens.numpy(), minlength=4)
        expected = np.array(PROBS) * len(seeds)
        assert ((counts - expected) ** 2 / expected).sum() < 16.27


def test_successive_tokens_of_a_row_are_independent():
    """Pairs of draws fill a 4 x 4 table as the product of the margins does: 15 degrees of freedom, 37.70 at 0.1 %."""
    seeds = np.arange(20_000, dtype=np.uint64)
    first, second = ((row_uniforms(seeds, step) * 4).astype(int) for step in (3, 4))
    counts = np.bincount(first * 4 + second, minlength=16)
    expected = len(seeds) / 16
    assert ((counts - expected) ** 2 / expected).sum() < 37.70
