"""Cross-entropy over classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.objectives.base import Batch, Loss


class Classification:
    """-log p(label) of module(tokens, mask=mask). A batch holds tokens (B, T), mask (B, T) bool and labels (B,) int64."""

    coupled = False

    def __init__(self, module: nn.Module, *, label_smoothing: float = 0.0) -> None:
        self.module, self.label_smoothing = module, label_smoothing

    def count(self, batch: Batch) -> Tensor:
        """Rows of the batch."""
        return torch.tensor(len(batch["labels"]))

    def __call__(self, batch: Batch) -> Loss:
        logits = self.module(batch["tokens"], mask=batch["mask"]).float()  # (B, C)
        total = F.cross_entropy(logits, batch["labels"], reduction="sum", label_smoothing=self.label_smoothing)
        correct = (logits.detach().argmax(-1) == batch["labels"]).sum()
        return Loss(total, {"accuracy": correct})
