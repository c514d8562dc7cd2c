"""The right one among the candidates of a query (Cao et al. 2007, top-one probability)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kiban.objectives.base import Batch, Loss


class Ranking:
    """-log p(relevant candidate), p the softmax over the scores of a query's candidates.

    module(tokens, segments=segments, mask=mask, prior=prior) gives scores (B * K,). A batch holds the K candidates of a
    query one after the other: tokens, segments (B * K, T) int64, mask (B * K, T) bool and prior (B * K,) float32, what is
    known of them beforehand (a search engine's scores); and relevant (B,) int64, which of the K it is.
    """

    coupled = False

    def __init__(self, module: Any) -> None:
        self.module = module

    def count(self, batch: Batch) -> Tensor:
        """Queries of the batch."""
        return torch.tensor(len(batch["relevant"]))

    def __call__(self, batch: Batch) -> Loss:
        scores = self.module(
            batch["tokens"], segments=batch["segments"], mask=batch["mask"], prior=batch["prior"]
        ).float()
        scores = scores.unflatten(0, (len(batch["relevant"]), -1))  # (B, K)
        total = F.cross_entropy(scores, batch["relevant"], reduction="sum")
        return Loss(total, {"first": (scores.detach().argmax(-1) == batch["relevant"]).sum()})
