"""The candidates that nothing beats in both quality and cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def front(points: Sequence[tuple[T, float, float]]) -> list[T]:
    """Names of the points (name, quality, cost) that no other dominates, cheapest first.

    One point dominates another if it is at least as good and as cheap, and better in one of both.
    """
    kept = [
        (name, quality, cost)
        for name, quality, cost in points
        if not any(q >= quality and c <= cost and (q > quality or c < cost) for _, q, c in points)
    ]
    return [name for name, _, _ in sorted(kept, key=lambda point: (point[2], -point[1]))]
