"""A label for every token, or for the first piece of every word (Devlin et al. 2019, section 5.3)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from kiban.inputs.batch import IGNORE
from kiban.objectives.base import Batch, Loss


class Tagging:
    """-sum log p(label) of module(tokens, segments=segments, mask=mask), (B, T, C), over the tokens that have a label.

    A batch holds tokens (B, T), mask (B, T) bool and labels (B, T) int64, -100 where there is none: padding, special tokens
    and, as in the paper, all but the first piece of a word. It may hold segments (B, T) int64.
    """

    coupled = False

    def __init__(self, module: Any) -> None:
        self.module = module

    def count(self, batch: Batch) -> Tensor:
        """Tokens that have a label."""
        return (batch["labels"] != IGNORE).sum()

    def __call__(self, batch: Batch) -> Loss:
        wanted = batch["labels"] != IGNORE
        logits = self.module(batch["tokens"], segments=batch.get("segments"), mask=batch["mask"])  # (B, T, C)
        found, labels = logits[wanted].float(), batch["labels"][wanted]  # (N, C), (N,)
        total = F.cross_entropy(found, labels, reduction="sum")
        return Loss(total, {"accuracy": (found.detach().argmax(-1) == labels).sum()})
