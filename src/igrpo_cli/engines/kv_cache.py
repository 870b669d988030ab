"""The key-value cache of a batch that decodes in step.

Legend: B rows, H key-value heads, T tokens cached, C room for tokens (C >= T), D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

_GROWTH = 64
"""Tokens of room added at a time: a copy of the cache every 64 steps, where `DynamicLayer` makes one each step."""


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One full-attention layer's keys and values, written in place into buffers [B, H, C, D] with room to spare."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._key_buffer = self._value_buffer = torch.empty(0)
        self._length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append states [B, H, new, D]; return all of them, [B, H, T, D] each."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._length, self._length + key_states.shape[-2]
        if start == 0 or end > self._key_buffer.shape[-2]:
            self._key_buffer = _with_room(key_states, self.keys if start else None, end)
            self._value_buffer = _with_room(value_states, self.values if start else None, end)
        self._key_buffer[:, :, start:end] = key_states
        self._value_buffer[:, :, start:end] = value_states
        return self._show(end)

    def get_seq_length(self) -> int:
        return self._length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Make the rows numbered by `beam_idx` the batch, buffers with their room included."""
        self._key_buffer = self._key_buffer.index_select(0, beam_idx)
        self._value_buffer = self._value_buffer.index_select(0, beam_idx)
        self._show(self._length)

    def _show(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        self._length = length
        self.keys = keys = self._key_buffer[:, :, :length]
        self.values = values = self._value_buffer[:, :, :length]
        return keys, values


def _with_room(like: torch.Tensor, filled: torch.Tensor | None, needed: int) -> torch.Tensor:
    """A buffer for `needed` tokens and up to `_GROWTH` more, beginning with `filled`."""
    batch, heads, _, size = like.shape
    buffer = like.new_empty(batch, heads, (needed // _GROWTH + 1) * _GROWTH, size)
    if filled is not None:
        buffer[:, :, : filled.shape[-2]] = filled
    return buffer


def create_cache(config: Any) -> Cache:
    """An empty cache for a model of this config: layers of full attention grow in place, others are the library's."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def is_full_attention(cache: Cache) -> bool:
    """Whether every layer attends to all tokens before it, so that one mask serves all of them."""
    return bool(cache.layers) and all(isinstance(layer, GrowingLayer) for layer in cache.layers)


def select_rows(cache: Cache, rows: torch.Tensor) -> None:
    """Make `rows` (int64, any of the batch, repeated or left out) the batch of the cache.

    Through `reorder_cache`, which every kind of layer has, recurrent states included.
    """
    layers: list[Any] = cache.layers
    for layer in layers:
        layer.reorder_cache(rows)
