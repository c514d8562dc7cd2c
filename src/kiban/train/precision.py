"""Which number format to train in: measured on this machine, since flags of the processor say little about speed."""

from __future__ import annotations

import time
from functools import cache
from typing import Literal

import torch
from torch import nn

Precision = Literal["auto", "fp32", "bf16"]
GAIN = 1.3  # bf16 loses digits; it must pay


def choose(precision: Precision, module: nn.Module) -> Literal["fp32", "bf16"]:
    """The format to use: as asked, or for "auto" bf16 where a product of the model's usual shape is clearly faster."""
    if precision != "auto":
        return precision
    if next(module.parameters()).device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    widths = [tuple(m.weight.shape) for m in module.modules() if isinstance(m, nn.Linear)]
    wide = max(widths, key=lambda shape: widths.count(shape) * shape[0] * shape[1], default=(512, 512))
    return "bf16" if speedup(*wide) >= GAIN else "fp32"


@cache
def matrix_rate(device: str, precision: Literal["fp32", "bf16"]) -> float:
    """Floating-point operations a second that a large matrix product reaches here, as the best of five."""
    size = 2048 if device == "cpu" else 8192
    x = torch.ones(size, size, dtype=torch.float32 if precision == "fp32" else torch.bfloat16, device=device)
    return 2 * size**3 / _best(x, x)


@cache
def speedup(out_features: int, in_features: int, rows: int = 1024) -> float:
    """How much faster bf16 is than fp32 for (rows, in) x (in, out), as a ratio of the best of five."""

    pairs = [
        (torch.ones(rows, in_features, dtype=dtype), torch.ones(out_features, in_features, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    slow, fast = (_best(x, w) for x, w in pairs)
    return slow / fast


def _best(x: torch.Tensor, w: torch.Tensor) -> float:
    """Seconds of x @ w.T, the best of five after one to warm up."""
    times = []
    for _ in range(6):
        start = time.perf_counter()
        x @ w.T
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
