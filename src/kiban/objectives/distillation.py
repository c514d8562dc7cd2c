"""A student sentence encoder pulled to where its teacher puts the same sentence, or its translation.

Reimers & Gurevych 2020, "Making monolingual sentence embeddings multilingual using knowledge distillation", equation 1,
with both embeddings of length 1, and beside it a contrastive term (van den Oord et al. 2018, equation 4): the squared
error alone is content with a student that puts all sentences near the middle of the space.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kiban.families.bert import mean_pool
from kiban.objectives.base import Batch, Loss

SAME = 0.95  # cosine of two teacher embeddings from which on they count as one sentence


class EmbeddingDistillation:
    """sum over rows of |s - t|^2 + contrast * -log softmax(s . t / temperature)[own t].

    s is the normalised mean of module's last states, t the teacher's embedding. A batch holds tokens (B, T), mask (B, T)
    bool and targets (B, D) of length 1. Rows whose targets are nearly the same are no negatives of each other.
    contrast 0 leaves the contrastive term out; otherwise the rows of a batch interact.
    """

    def __init__(self, module: Any, *, contrast: float = 1.0, temperature: float = 0.05) -> None:
        self.module, self.contrast, self.temperature = module, contrast, temperature
        self.coupled = contrast > 0

    def count(self, batch: Batch) -> Tensor:
        """Rows."""
        return torch.tensor(len(batch["tokens"]))

    def __call__(self, batch: Batch) -> Loss:
        mask, targets = batch["mask"], batch["targets"].float()
        found = mean_pool(self.module(batch["tokens"], mask=mask).float(), mask)  # (B, D)
        cosines = (found * targets).sum(-1)
        total = (found - targets).square().sum()
        metrics = {"cosine": cosines.detach().sum()}
        if self.coupled:
            with torch.autocast(found.device.type, enabled=False):  # a temperature of 0.05 magnifies rounding
                scores = found @ targets.mT / self.temperature  # (B, B)
                same = targets @ targets.mT > SAME
            own = torch.eye(len(found), dtype=torch.bool, device=found.device)
            scores = scores.masked_fill(same & ~own, -torch.inf)
            answers = torch.arange(len(found), device=found.device)
            total = total + self.contrast * F.cross_entropy(scores, answers, reduction="sum")
            metrics["found"] = (scores.detach().argmax(-1) == answers).sum()
        return Loss(total, metrics)
