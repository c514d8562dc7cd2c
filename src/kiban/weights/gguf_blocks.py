"""GGUF block formats to floating point, as ggml defines them.

Every function maps (N, bytes of a block) uint8 to (N, elements of a block) float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
CHUNK_BLOCKS = 2**17  # bounds the memory that is used beside the result


def _half(blocks: Bytes, at: int) -> Floats:
    """A float16 at a byte of each block, (N, 1)."""
    return blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32)


def _nibbles(data: Bytes) -> NDArray[np.uint8]:
    """Low halves, then high halves: (N, k) to (N, 2k)."""
    return np.concatenate((data & 0x0F, data >> 4), axis=-1)


def _fifth_bits(data: Bytes) -> NDArray[np.uint8]:
    """32 bits of each block, lowest first, as values 0 or 16."""
    return np.left_shift(np.unpackbits(data, axis=-1, bitorder="little"), 4, dtype=np.uint8)


def q4_0(b: Bytes) -> Floats:
    return _half(b, 0) * (_nibbles(b[:, 2:18]).astype(np.float32) - 8)


def q4_1(b: Bytes) -> Floats:
    return _half(b, 0) * _nibbles(b[:, 4:20]).astype(np.float32) + _half(b, 2)


def q5_0(b: Bytes) -> Floats:
    return _half(b, 0) * ((_nibbles(b[:, 6:22]) | _fifth_bits(b[:, 2:6])).astype(np.float32) - 16)


def q5_1(b: Bytes) -> Floats:
    return _half(b, 0) * (_nibbles(b[:, 8:24]) | _fifth_bits(b[:, 4:8])).astype(np.float32) + _half(b, 2)


def q8_0(b: Bytes) -> Floats:
    return _half(b, 0) * b[:, 2:34].view(np.int8).astype(np.float32)


def _k_scales(b: Bytes) -> tuple[Floats, Floats]:
    """The eight 6-bit scales and minima of a K block, packed into 12 bytes, each (N, 8)."""
    first, second, third = b[:, 0:4], b[:, 4:8], b[:, 8:12]
    scales = np.concatenate((first & 63, (third & 15) | (first >> 6 << 4)), axis=-1)
    minima = np.concatenate((second & 63, (third >> 4) | (second >> 6 << 4)), axis=-1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _k_block(b: Bytes, codes: Floats, packed_scales: Bytes) -> Floats:
    """d * scale * code - dmin * minimum, for codes (N, 8, 32)."""
    scales, minima = _k_scales(packed_scales)
    scales, minima = _half(b, 0) * scales, _half(b, 2) * minima
    return np.asarray(scales[:, :, None] * codes - minima[:, :, None], dtype=np.float32).reshape(len(b), 256)


def q4_k(b: Bytes) -> Floats:
    data = b[:, 16:144].reshape(-1, 4, 32)
    codes = np.stack((data & 15, data >> 4), axis=2).reshape(-1, 8, 32)
    return _k_block(b, codes.astype(np.float32), b[:, 4:16])


def q5_k(b: Bytes) -> Floats:
    data = b[:, 48:176].reshape(-1, 4, 32)
    low = np.stack((data & 15, data >> 4), axis=2).reshape(-1, 8, 32)
    shifts = np.arange(8, dtype=np.uint8)[None, :, None]
    high = ((b[:, 16:48][:, None, :] >> shifts) & 1) << 4
    return _k_block(b, (low | high).astype(np.float32), b[:, 4:16])


def q6_k(b: Bytes) -> Floats:
    low = _nibbles(b[:, 0:128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[None, None, :, None]
    high = (b[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
    codes = (low | (high << 4)).astype(np.float32).reshape(-1, 16, 16) - 32
    scales = _half(b, 208) * b[:, 192:208].view(np.int8).astype(np.float32)  # (N, 16)
    return np.asarray(scales[:, :, None] * codes, dtype=np.float32).reshape(len(b), 256)


def f32(b: Bytes) -> Floats:
    return b.copy().view(np.float32)


def f16(b: Bytes) -> Floats:
    return b.copy().view(np.float16).astype(np.float32)


def bf16(b: Bytes) -> Floats:
    return (b.copy().view(np.uint16).astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True)
class Kind:
    """A tensor type: its name, elements and bytes of a block, and how a block is read."""

    name: str
    elements: int
    bytes: int
    read: Callable[[Bytes], Floats]


KINDS = {
    0: Kind("F32", 1, 4, f32),
    1: Kind("F16", 1, 2, f16),
    2: Kind("Q4_0", 32, 18, q4_0),
    3: Kind("Q4_1", 32, 20, q4_1),
    6: Kind("Q5_0", 32, 22, q5_0),
    7: Kind("Q5_1", 32, 24, q5_1),
    8: Kind("Q8_0", 32, 34, q8_0),
    12: Kind("Q4_K", 256, 144, q4_k),
    13: Kind("Q5_K", 256, 176, q5_k),
    14: Kind("Q6_K", 256, 210, q6_k),
    30: Kind("BF16", 1, 2, bf16),
}


def dequantise(data: Bytes, kind: Kind, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor of a flat run of blocks, in chunks."""
    blocks = data.reshape(-1, kind.bytes)
    result = torch.empty(len(blocks) * kind.elements, dtype=dtype)
    step = CHUNK_BLOCKS if kind.elements > 1 else CHUNK_BLOCKS * 32
    for start in range(0, len(blocks), step):
        values = torch.from_numpy(np.ascontiguousarray(kind.read(blocks[start : start + step]))).flatten()
        result[start * kind.elements : start * kind.elements + len(values)] = values.to(dtype)
    return result.view(shape)
