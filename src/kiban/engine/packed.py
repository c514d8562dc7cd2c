"""Linear layers with weights in fewer bits, through the kernels that torch has for CPUs.

The kernels are fast for few rows, where memory is the limit, and slow for many. So a packed layer may keep a bf16 copy
of the same values, with which prompts are read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from kiban.engine.probe import crossover, measure, remembered
from kiban.engine.reordered import Reordered

GROUP = 32
PIECE = 256  # rows that are quantised at once, so that intermediate results stay near the processor
SIZES = (1, 2, 4, 8, 16, 32, 64)
LIKELY = 8  # rows for the kernel where it is faster for all of these and there is to be a copy nevertheless
PAYING, CLEARLY = (1, 8, 128), 1.2  # rows that are tried, and how many times as fast bf16 must be on their average


class Dense:
    """x (..., K) to (..., N) by weight (N, K) as it is."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    @property
    def tensors(self) -> list[Tensor]:
        """All that a product needs; `Dense(*tensors)` is the same layer."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    @property
    def num_bytes(self) -> int:
        """Memory of the weights."""
        return self.weight.numel() * self.weight.element_size()


class Packed:
    """x (..., K) to (..., N), both bf16. Up to few_rows rows go through the kernel, more through the copy in bf16.

    few_rows None: there is no copy, and all go through the kernel.
    """

    FIELDS: tuple[str, ...] = ()  # what the kernel reads

    def __init__(self, bias: Tensor | None, values: Callable[[], Tensor], few_rows: int | None) -> None:
        """values: the weight that the codes stand for; made only if there is to be a copy."""
        self.bias = None if bias is None else bias.to(torch.bfloat16)
        self.few_rows = few_rows
        self.wide: Reordered | None = None if few_rows is None else Reordered(values().to(torch.bfloat16), self.bias)

    @property
    def tensors(self) -> list[Tensor]:
        """All that the kernel needs and the bias, for `of`."""
        found = [getattr(self, name) for name in self.FIELDS]
        return found if self.bias is None else [*found, self.bias]

    @classmethod
    def of(cls, *tensors: Tensor) -> Packed:
        """A layer without a copy, from the tensors of another."""
        made = cls.__new__(cls)
        made.bias = made.few_rows = made.wide = None
        for name, tensor in zip((*cls.FIELDS, "bias"), tensors, strict=False):
            setattr(made, name, tensor)
        return made

    def kernel(self, x: Tensor) -> Tensor:
        """x (M, K) to (M, N), without bias."""
        raise AssertionError("a kind of Packed brings its kernel")

    def __call__(self, x: Tensor) -> Tensor:
        flat = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
        if self.wide is not None and self.few_rows is not None and flat.shape[0] > self.few_rows:
            return self.wide(x)
        result = self.kernel(flat)
        result = result if self.bias is None else result + self.bias
        return result if x.ndim == 2 else result.view(*x.shape[:-1], -1)

    @property
    def kernel_bytes(self) -> int:
        """Memory of what the kernel reads."""
        raise AssertionError("a kind of Packed knows its size")

    @property
    def num_bytes(self) -> int:
        """Memory of the weights, the copy included."""
        return self.kernel_bytes + (0 if self.wide is None else self.wide.num_bytes)


class Int8(Packed):
    """Signed bytes with one scale for each row."""

    FIELDS = ("codes", "scale")

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, few_rows: int | None = None) -> None:
        self.scale = (weight.abs().amax(-1).clamp(min=1e-12) / 127).to(torch.bfloat16)
        scale = self.scale.float()[:, None]
        self.codes = (weight / scale).round().clamp(-127, 127).to(torch.int8)
        super().__init__(bias, lambda: self.codes.float() * scale, few_rows)

    def kernel(self, x: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(x, self.codes, self.scale)

    @property
    def kernel_bytes(self) -> int:
        return self.codes.numel() + 2 * self.scale.numel()


class Int4(Packed):
    """4 bits, in groups of 32 along K that have a scale and a zero each. N must be divisible by 16, K by 32."""

    FIELDS = ("packed", "pairs")

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, few_rows: int | None = None) -> None:
        assert fits_int4(weight)
        codes, scale, minimum = quantise4(weight)
        # The kernel computes (code - 8) * scale + zero, and wants both in bf16, (K / 32, N, 2).
        pairs = torch.stack((scale, minimum + 8 * scale), dim=-1).to(torch.bfloat16)
        self.pairs = pairs.transpose(0, 1).contiguous()
        self.packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        super().__init__(bias, lambda: _values4(codes, pairs), few_rows)

    def kernel(self, x: Tensor) -> Tensor:
        return torch._weight_int4pack_mm_for_cpu(x, self.packed, GROUP, self.pairs)

    @property
    def kernel_bytes(self) -> int:
        return self.packed.numel() * self.packed.element_size() + 2 * self.pairs.numel()


def _values4(codes: Tensor, pairs: Tensor) -> Tensor:
    """codes (N, K) and the kernel's scale and zero (N, K / 32, 2) to values (N, K)."""
    scale, zero = pairs.float()[..., None].unbind(2)  # (N, K / 32, 1)
    return ((codes.view(len(codes), -1, GROUP).float() - 8) * scale + zero).flatten(1)


def fits_int4(weight: Tensor) -> bool:
    """Whether the kernel takes this shape (N, K)."""
    return weight.shape[0] % 16 == 0 and weight.shape[1] % GROUP == 0


def quantise4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes 0..15 (N, K) uint8, scale and minimum (N, K / 32): weight is about code * scale + minimum.

    Each group takes the better of two grids: 15 steps from its minimum to its maximum, or the one on which the value of
    the largest magnitude has the code 0 and zero the code 8. ggml makes Q4_1 and Q4_0 so; the codes of a model that was
    stored in one of them are therefore found again exactly.
    """
    if len(weight) > PIECE:
        pieces = [quantise4(piece) for piece in torch.split(weight, PIECE)]
        codes, scale, start = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        return codes, scale, start
    groups = weight.float().reshape(len(weight), -1, GROUP)  # (N, K / 32, 32)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    found = []
    for scale, start in (((high - low) / 15, low), (largest / -8, largest)):
        step = torch.where(scale == 0, torch.ones_like(scale), scale)
        codes = ((groups - start) / step).round().clamp(0, 15)
        found.append((codes, step, start, ((codes * step + start - groups) ** 2).sum(-1, keepdim=True)))
    better = found[1][3] <= found[0][3]  # if both are exact, the second: eight steps fit half precision, seven may not
    codes, scale, start = (torch.where(better, b, a) for a, b in zip(found[0][:3], found[1][:3], strict=True))
    return codes.to(torch.uint8).flatten(1), scale[..., 0], start[..., 0]


def settled(kind: type[Int4 | Int8], weight: Tensor, *, copy: bool | None = None) -> Packed:
    """A layer with a bf16 copy where that pays on this machine; copy: whether there is one, if that is settled already."""
    layer = kind(weight, few_rows=None if copy is False else 1)
    if copy is not False:
        layer.few_rows = rows_for_kernel(layer) or (LIKELY if copy else None)
    if layer.few_rows is None:
        layer.wide = None
    return layer


def rows_for_kernel(layer: Packed) -> int | None:
    """The few_rows that is fastest on this machine, measured once on a layer that has a copy.

    None if the copy would win nothing worth its memory.
    """
    wide = layer.wide
    assert wide is not None
    inputs = {size: _random(size, wide.num_in).to(torch.bfloat16) for size in SIZES}

    def find() -> int | None:
        rows = crossover(lambda size: layer.kernel(inputs[size]), lambda size: wide(inputs[size]), SIZES)
        return None if rows == SIZES[-1] else max(rows, 1)

    found: int | None = remembered(f"rows for {type(layer).__name__} {wide.num_out}x{wide.num_in}", find)
    return found


def bf16_pays(weight: Tensor) -> bool:
    """Whether products with this weight (N, K), for one token and for many, are clearly faster in bf16 on this machine."""

    def find() -> bool:
        ways: dict[str, Dense | Reordered] = {
            "fp32": Dense(weight.float()),
            "bf16": Reordered(weight.to(torch.bfloat16)),
        }
        gain = 1.0
        for size in PAYING:
            x = _random(size, weight.shape[1])
            inputs = {"fp32": x, "bf16": x.to(torch.bfloat16)}
            seconds = measure({name: partial(way, inputs[name]) for name, way in ways.items()})
            gain *= seconds["fp32"] / seconds["bf16"]
        return gain > CLEARLY ** len(PAYING)

    return bool(remembered(f"bf16 pays {weight.shape[0]}x{weight.shape[1]}", find))


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
