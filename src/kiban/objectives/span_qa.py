"""Where in a text the answer begins and ends (Devlin et al. 2019, section 4.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kiban.errors import ConfigError
from kiban.objectives.base import Batch, Loss


class SpanQA:
    """-log p(start) - log p(end), halved; p is over the tokens where an answer may stand.

    module(tokens, segments=segments, mask=mask) gives (B, T, 2). A batch holds tokens (B, T), segments (B, T) int64, mask
    (B, T) bool, allowed (B, T) bool, True for the tokens of the text that is asked about, and start and end (B,) int64, the
    first and the last token of the answer. Halved as in the released code, so that a row's loss is a mean of two.
    """

    coupled = False

    def __init__(self, module: Any) -> None:
        self.module = module

    def count(self, batch: Batch) -> Tensor:
        """Rows of the batch."""
        return torch.tensor(len(batch["start"]))

    def __call__(self, batch: Batch) -> Loss:
        logits = self.logits(batch)
        answers = torch.stack((batch["start"], batch["end"]), dim=-1)  # (B, 2)
        total = F.cross_entropy(logits, answers, reduction="sum") / 2  # the places are the classes
        exact = (best_spans(logits.detach()) == answers).all(-1).sum()
        return Loss(total, {"exact": exact})

    def logits(self, batch: Batch) -> Tensor:
        """(B, T, 2) float32, -inf where no answer may stand."""
        found = self.module(batch["tokens"], segments=batch["segments"], mask=batch["mask"])
        return torch.as_tensor(found.float().masked_fill(~batch["allowed"][..., None], -torch.inf))


def best_spans(logits: Tensor, *, max_len: int = 30) -> Tensor:
    """The most probable spans of at most max_len tokens that do not end before they begin: (B, T, 2) to (B, 2) int64.

    The score of a span is start logit + end logit. Raises ConfigError if max_len is below 1.
    """
    if max_len < 1:
        raise ConfigError("answer span", field="max_len", why="must be at least 1")
    length = logits.shape[1]
    scores = logits[:, :, None, 0] + logits[:, None, :, 1]  # (B, T of start, T of end)
    band = torch.ones(length, length, dtype=torch.bool, device=logits.device).triu().tril(max_len - 1)
    place = scores.masked_fill(~band, -torch.inf).flatten(1).argmax(-1)
    return torch.stack((place // length, place % length), dim=-1)
