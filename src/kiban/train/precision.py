"""Which number format to train in: measured on this machine, since flags of the processor say little about speed."""

from __future__ import annotations

import time
from functools import cache
from typing import Literal

import torch
from torch import nn

Precision = Literal["auto", "fp32", "bf16"]
GAIN = 1.3  # bf16 loses digits; it must pay


def usual_device() -> Literal["cuda", "cpu"]:
    """Where one process trains: on a GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


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
    # Random numbers, of a generator of its own: on a GPU equal ones draw less power and run up to a tenth faster.
    x = torch.rand(size, size, generator=torch.Generator(device).manual_seed(0), device=device)
    x = x.to(torch.float32 if precision == "fp32" else torch.bfloat16)
    return 2 * size**3 / _best([(x, x)])[0]


@cache
def speedup(out_features: int, in_features: int, rows: int = 1024) -> float:
    """How much faster bf16 is than fp32 for (rows, in) x (in, out), as a ratio of the best of five."""
    shapes, types = ((rows, in_features), (out_features, in_features)), (torch.float32, torch.bfloat16)
    slow, fast = _best([(torch.ones(shapes[0], dtype=t), torch.ones(shapes[1], dtype=t)) for t in types])
    return slow / fast


def _best(products: list[tuple[torch.Tensor, torch.Tensor]]) -> list[float]:
    """Seconds of each x @ w.T, the best of five after one to warm up; they take turns, so a busy moment hits all alike."""
    times: list[list[float]] = [[] for _ in products]
    for _ in range(6):
        for (x, w), taken in zip(products, times, strict=True):
            start = time.perf_counter()
            x @ w.T
            if x.is_cuda:
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
    return [min(taken[1:]) for taken in times]
