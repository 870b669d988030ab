"""Every causal-LM class of transformers that can be built small is exact in training and sampling, or refused."""

from __future__ import annotations

import pytest
from measure import CannotBuildError, measure
from small_models import model_cases

QUICK = (
    "cohere2",
    "deepseek_v3",
    "deepseek_v4",
    "gemma3_text",
    "granite, logits_scaling 8",
    "jamba",
    "llama4_text",
    "minimax",
    "mistral3",
    "nemotron_h",
    "phi3, longrope",
    "qwen3_5",
    "qwen3_moe",
)
CASES = model_cases()


@pytest.mark.parametrize("name", QUICK)
def test_a_common_architecture_is_exact_or_refused(name):
    found = measure(name, CASES[name])
    assert found.state in ("equal", "refused", "warned"), found


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES.keys() - set(QUICK)))
def test_an_architecture_is_exact_or_refused(name):
    try:
        found = measure(name, CASES[name])
    except CannotBuildError as error:
        pytest.skip(f"cannot be built small: {error}")
    assert found.state in ("equal", "refused", "warned"), found
