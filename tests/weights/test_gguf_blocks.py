"""Every block format against the PyPI package, on random bytes: all scales, infinities and NaN included."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from kiban.weights import gguf_blocks
from kiban.weights.gguf_blocks import KINDS, dequantise

BY_NAME = {kind.name: kind for kind in KINDS.values()}


@pytest.mark.parametrize("number", KINDS, ids=lambda number: KINDS[number].name)
def test_the_table_is_the_packages(number: int) -> None:
    theirs = gguf.GGMLQuantizationType(number)
    assert (KINDS[number].name, KINDS[number].elements, KINDS[number].bytes) == (
        theirs.name,
        *gguf.GGML_QUANT_SIZES[theirs],
    )


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("name", BY_NAME)
def test_random_blocks_equal_the_packages_exactly(name: str) -> None:
    kind = BY_NAME[name]
    blocks = np.random.default_rng(0).integers(0, 256, (2000, kind.bytes), dtype=np.uint8)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
    found = dequantise(blocks.reshape(-1), kind, (2000, kind.elements), torch.float32).numpy()
    assert np.array_equal(found, expected.reshape(2000, -1), equal_nan=True)
    assert np.isfinite(found).mean() > 0.8


@pytest.mark.parametrize("name", ["Q4_1", "Q6_K", "F16"])
def test_the_size_of_the_chunks_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = BY_NAME[name]
    blocks = np.random.default_rng(1).integers(0, 60, 1001 * kind.bytes, dtype=np.uint8)
    shape = (7, 143 * kind.elements)
    whole = dequantise(blocks, kind, shape, torch.float32)
    monkeypatch.setattr(gguf_blocks, "CHUNK_BLOCKS", 10)
    assert torch.equal(dequantise(blocks, kind, shape, torch.float32), whole)


def test_other_types_are_rounded_from_float32() -> None:
    kind = BY_NAME["Q8_0"]
    blocks = np.random.default_rng(2).integers(0, 60, 64 * kind.bytes, dtype=np.uint8)
    exact = dequantise(blocks, kind, (64, 32), torch.float32)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(dequantise(blocks, kind, (64, 32), dtype), exact.to(dtype))


def test_the_blocks_are_left_as_they_are() -> None:
    for kind in KINDS.values():
        blocks = np.full(4 * kind.bytes, 17, dtype=np.uint8)
        blocks.setflags(write=False)  # as a mapped file is
        result = dequantise(blocks, kind, (4 * kind.elements,), torch.float32)
        result.zero_()
        assert (blocks == 17).all()
