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
        return _loss(self.module(batch["tokens"], mask=batch["mask"]), batch["labels"], self.label_smoothing)


class PictureClassification:
    """-log p(label) of module(pixels). A batch holds pixels (B, 3, S, S) and labels (B,) int64."""

    coupled = False

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def count(self, batch: Batch) -> Tensor:
        """Pictures of the batch."""
        return torch.tensor(len(batch["labels"]))

    def __call__(self, batch: Batch) -> Loss:
        return _loss(self.module(batch["pixels"]), batch["labels"], 0.0)


def _loss(logits: Tensor, labels: Tensor, label_smoothing: float) -> Loss:
    """logits: (B, C)."""
    logits = logits.float()
    total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
    return Loss(total, {"accuracy": (logits.detach().argmax(-1) == labels).sum()})
