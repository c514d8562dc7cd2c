"""Short measurements that choose between ways of computing the same thing. Processor flags don't tell what is fast:
bf16 matrix products are half as fast as float32's on one machine with AVX-512 and five times as fast on another."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache

import torch

REPEATS = 5


def measure(ways: Mapping[str, Callable[[], object]], *, repeats: int = REPEATS) -> dict[str, float]:
    """Median seconds of each way. The ways take turns, so what else the machine does hits them alike."""
    for work in ways.values():
        work()  # the first call allocates and packs
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - start)
    return {name: sorted(times)[len(times) // 2] for name, times in taken.items()}


@cache
def matrix_dtype() -> torch.dtype:
    """bfloat16 if large matrix products on the CPU are clearly faster with it, else float32."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 1024, generator=generator) for _ in range(2))
    a2, b2 = a.bfloat16(), b.bfloat16()
    seconds = measure({"fp32": lambda: a @ b.mT, "bf16": lambda: a2 @ b2.mT})
    return torch.bfloat16 if seconds["bf16"] < 0.7 * seconds["fp32"] else torch.float32


def crossover(few: Callable[[int], object], many: Callable[[int], object], sizes: tuple[int, ...]) -> int:
    """The largest of the rising sizes up to which few(size) is at least as fast as many(size); 0 if none is."""
    best = 0
    for size in sizes:
        seconds = measure({"few": lambda size=size: few(size), "many": lambda size=size: many(size)})  # type: ignore[misc]
        if seconds["few"] > seconds["many"]:
            break
        best = size
    return best
