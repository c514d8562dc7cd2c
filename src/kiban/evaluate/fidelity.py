"""What a model loses in a cheaper format: how far its next-token probabilities are from those of the exact weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kiban.errors import DatasetError
from kiban.evaluate.statistics import mean_interval

BLOCK = 32  # neighbouring tokens, which depend on each other, so an interval draws them whole

Logits = Callable[[Tensor], Tensor]
"""tokens (1, T) to logits (1, T, V)."""
Interval = tuple[float, float, float]
"""A mean, and the ends of its 95% interval."""


@dataclass(frozen=True)
class Fidelity:
    """Over the predicted tokens of some text. kl: nats per token; top1: share of equal first choices, 0 to 1."""

    tokens: int
    kl: Interval
    top1: Interval
    perplexity: Interval  # of the format itself


@torch.inference_mode()
def fidelity(model: Logits, exact: Logits, rows: Sequence[Sequence[int]]) -> Fidelity:
    """KL(exact || model), equal first choices, and the model's perplexity. rows: token ids, each a text by itself.

    Raises DatasetError if no row has two tokens.
    """
    found, blocks = [], []
    for number, row in enumerate(row for row in rows if len(row) > 1):
        tokens = torch.tensor([row])
        p, q = (way(tokens)[0, :-1].float().log_softmax(-1) for way in (exact, model))  # (T - 1, V)
        losses = -q.gather(1, tokens[0, 1:, None])[:, 0]
        found.append(torch.stack([(p.exp() * (p - q)).sum(-1), (p.argmax(-1) == q.argmax(-1)).float(), losses]))
        blocks += [(number, place // BLOCK) for place in range(len(row) - 1)]
    if not found:
        raise DatasetError("text", why="has no two tokens in a row", hint="give a longer text")
    values = torch.cat(found, dim=1).double().numpy()
    _, groups = np.unique(np.array(blocks), axis=0, return_inverse=True)
    kl, top1, loss = (mean_interval(row, groups.ravel().tolist()) for row in values)
    low, middle, high = (math.exp(x) for x in (loss[1], loss[0], loss[2]))
    return Fidelity(tokens=values.shape[1], kl=kl, top1=top1, perplexity=(middle, low, high))
