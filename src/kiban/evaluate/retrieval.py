"""How often the right text is among the nearest ones."""

from __future__ import annotations

import torch
from torch import Tensor

PART = 1024


@torch.inference_mode()
def found_at(queries: Tensor, answers: Tensor) -> Tensor:
    """The rank of each query's own answer, (N,) int64 from 1: how many answers are at least as near.

    queries, answers: (N, D), of length 1; row i of one belongs to row i of the other. Ties count against the model.
    """
    parts = []
    for start in range(0, len(queries), PART):
        scores = queries[start : start + PART] @ answers.mT
        own = scores[torch.arange(len(scores)), torch.arange(start, start + len(scores))]
        parts.append((scores >= own[:, None]).sum(1))
    return torch.cat(parts)


def recall(queries: Tensor, answers: Tensor, k: int) -> float:
    """Share of queries whose own answer is among the k nearest."""
    return float((found_at(queries, answers) <= k).float().mean())
