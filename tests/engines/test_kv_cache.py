from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, MistralConfig
from transformers.cache_utils import DynamicLayer

from igrpo_cli.engines.decoding import GrowingLayer, create_cache, is_full_attention, select_rows


def states(tokens: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 2, tokens, 4), torch.randn(rows, 2, tokens, 4)


@pytest.mark.parametrize("prompt_length", [1, 63, 64, 65, 130])
def test_a_growing_layer_holds_what_a_dynamic_one_does(prompt_length: int):
    """The cache grows many times, with rows repeated and left out in between."""
    torch.manual_seed(0)
    growing, dynamic = GrowingLayer(), DynamicLayer()
    appended = [states(prompt_length), *(states(1) for _ in range(100)), *(states(1, rows=4) for _ in range(100))]
    for number, (keys, values) in enumerate(appended):
        if number == 101:
            rows = torch.tensor([2, 0, 0, 1])
            growing.reorder_cache(rows)
            dynamic.reorder_cache(rows)
        for got, expected in zip(growing.update(keys, values), dynamic.update(keys, values), strict=True):
            assert torch.equal(got, expected)
        assert growing.get_seq_length() == prompt_length + number
        assert growing.get_mask_sizes(1) == dynamic.get_mask_sizes(1)


def test_growing_copies_the_cache_once_in_64_tokens():
    layer = GrowingLayer()
    addresses = {layer.update(*states(1))[0].data_ptr() for _ in range(128)}
    assert len(addresses) <= 3


def test_rows_of_a_whole_cache_are_selected_in_every_layer():
    cache = create_cache(LlamaConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2))
    keys, values = states(5)
    for layer in range(2):
        cache.update(keys, values, layer)
    select_rows(cache, torch.tensor([1, 1]))
    for layer in cache.layers:
        assert torch.equal(layer.keys, keys[[1, 1]])
        assert torch.equal(layer.values, values[[1, 1]])


def test_only_layers_of_full_attention_grow_in_place():
    sizes = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2}
    assert is_full_attention(create_cache(LlamaConfig(**sizes)))
    assert not is_full_attention(create_cache(MistralConfig(sliding_window=4, **sizes)))
