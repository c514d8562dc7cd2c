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
def speedup(out_features: int, in_features: int, rows: int = 1024) -> float:
    """How much faster bf16 is than fp32 for (rows, in) x (in, out), as a ratio of the best of five."""

    def best(dtype: torch.dtype) -> float:
        x, w = torch.ones(rows, in_features, dtype=dtype), torch.ones(out_features, in_features, dtype=dtype)
        times = []
        for _ in range(6):  # the first one warms up
            start = time.perf_counter()
            x @ w.T
            times.append(time.perf_counter() - start)
        return min(times[1:])

    return best(torch.float32) / best(torch.bfloat16)
