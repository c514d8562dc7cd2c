"""The cache of keys and values: what goes in comes out, and nothing goes in that does not fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kiban.errors import LimitError
from kiban.nn.cache import KVCache


def numbers(batch: int, tokens: int, first: int) -> Tensor:
    """(B, 2, T, 3), every value another one."""
    return torch.arange(batch * 2 * tokens * 3, dtype=torch.float32).view(batch, 2, tokens, 3) + first


def filled(max_len: int = 8) -> tuple[KVCache, list[tuple[Tensor, Tensor]]]:
    """Two layers, three rows, five tokens in chunks of 3 and 2; and what every layer should return."""
    cache, parts = KVCache(2, 3, 2, 3, max_len), []
    for size in (3, 2):
        parts.append(
            [(numbers(3, size, 1000 * layer + 100 * size), numbers(3, size, -5000 * layer)) for layer in (0, 1)]
        )
        for layer, (keys, values) in enumerate(parts[-1]):
            cache.append(layer, keys, values)
        cache.advance(size)
    whole = [tuple(torch.cat([chunk[layer][i] for chunk in parts], dim=2) for i in (0, 1)) for layer in (0, 1)]
    return cache, whole  # type: ignore[return-value]


def test_all_so_far_comes_back_layer_by_layer() -> None:
    cache, whole = filled()
    assert cache.length == 5
    for layer, expected in enumerate(whole):
        keys, values = numbers(3, 3, 7), numbers(3, 3, 9)
        found = cache.append(layer, keys, values)
        assert torch.equal(found[0], torch.cat((expected[0], keys), dim=2))
        assert torch.equal(found[1], torch.cat((expected[1], values), dim=2))
    assert cache.length == 5  # it grows in advance alone


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    cache, _ = filled()
    before = cache.keys.clone(), cache.values.clone()
    cache.reserve(3)
    for tokens in (4, 100):
        with pytest.raises(LimitError, match=rf"5 \+ {tokens} tokens do not fit into 8"):
            cache.reserve(tokens)
        with pytest.raises(LimitError):
            cache.append(0, numbers(3, tokens, 0), numbers(3, tokens, 0))
    assert torch.equal(cache.keys, before[0]) and torch.equal(cache.values, before[1]) and cache.length == 5


def test_a_full_cache_takes_no_further_token() -> None:
    cache, _ = filled(max_len=5)
    with pytest.raises(LimitError):  # a single one would broadcast into the empty rest without a word
        cache.append(0, numbers(3, 1, 0), numbers(3, 1, 0))


def test_type_and_device_are_as_asked() -> None:
    cache = KVCache(1, 1, 1, 2, 4, dtype=torch.bfloat16, device="meta")
    assert cache.keys.dtype == cache.values.dtype == torch.bfloat16
    assert cache.keys.device.type == cache.values.device.type == "meta"
