"""How well a causal model predicts text: the likelihood of documents longer than its context, per character and byte.

Tokenizers cut text differently, so loss per token compares nothing across them; bits per character and per byte do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.errors import ConfigError
from kiban.inputs.batch import pad_batch

MAX_LOGITS = 2**22  # held at once where the head can be applied to some positions only


def bits_per_character(log_probs_sum: float, num_characters: int) -> float:
    """Bits that a character costs, from the sum of natural log-probabilities of a text and its number of characters."""
    assert num_characters > 0
    return -log_probs_sum / math.log(2) / num_characters


def bits_per_byte(log_probs_sum: float, num_bytes: int) -> float:
    """Bits that a byte (of UTF-8) costs: the measure of Gao et al. 2020, section 3.1."""
    return bits_per_character(log_probs_sum, num_bytes)


def windows(length: int, context: int, stride: int) -> list[tuple[int, int, int]]:
    """(begin, first, end) of windows over a document: tokens begin to end are read, those from first on are scored.

    Every token but the first is scored once, after at least context - stride others where there are so many. The last
    token of a window is only predicted, so a window has context + 1.
    """
    result, first = [], 1
    while first < length:
        end = min(length, first + (context if first == 1 else stride))
        result.append((max(0, end - context - 1), first, end))
        first = end
    return result


def score_documents(
    module: nn.Module,
    documents: Sequence[Sequence[int]],
    *,
    context: int,
    stride: int,
    batch_size: int,
    device: torch.device | str,
) -> NDArray[np.float64]:
    """Sum of natural log-probabilities of the tokens of each document but its first, (number of documents,).

    module(tokens (B, T), mask=(B, T) bool) gives logits (B, T, V); where it has hidden() and head, the head is applied to
    some positions at a time. context: tokens that it reads at most; stride: tokens by which the window moves, of 1 (every
    token sees all of its context, slowly) to context (fast). Raises ConfigError if stride is not.
    """
    if not 1 <= stride <= context:
        raise ConfigError("scoring", field="stride", why=f"{stride} is not of 1 to the context, {context}")
    rows = [(i, *window) for i, document in enumerate(documents) for window in windows(len(document), context, stride)]
    rows.sort(key=lambda row: row[3] - row[1])  # windows of like length together, so that little is padding
    sums = np.zeros(len(documents))
    training = module.training
    module.eval()
    try:
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            texts = [documents[i][begin:end] for i, begin, _, end in chosen]
            scored = [range(first - begin, end - begin) for _, begin, first, end in chosen]
            owner = np.repeat([row[0] for row in chosen], [len(places) for places in scored])
            np.add.at(sums, owner, _log_probs(module, texts, scored, device).double().cpu().numpy())
    finally:
        module.train(training)
    return sums


@torch.inference_mode()
def _log_probs(
    module: nn.Module, texts: Sequence[Sequence[int]], scored: Sequence[range], device: torch.device | str
) -> Tensor:
    """log p of the tokens at the places scored of each text, all in one row."""
    tokens, mask = (t.to(device) for t in pad_batch(texts, 0))
    wanted = torch.zeros_like(mask)
    for row, places in zip(wanted, scored, strict=True):
        row[places.start : places.stop] = True
    tokens, mask, wanted, targets = tokens[:, :-1], mask[:, :-1], wanted[:, 1:], tokens[wanted]
    if not (hasattr(module, "hidden") and hasattr(module, "head")):
        return _gains(module(tokens, mask=mask)[wanted], targets)
    hidden: Tensor = module.hidden(tokens, mask=mask)[wanted]  # type: ignore[operator]  # (N, D)
    head: Callable[[Tensor], Tensor] = module.head  # type: ignore[assignment]
    size = max(1, MAX_LOGITS // head(hidden[:1]).shape[-1])
    parts = zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
    return torch.cat([_gains(head(states), answers) for states, answers in parts])


def _gains(logits: Tensor, targets: Tensor) -> Tensor:
    """log p of targets (N,) under logits (N, V)."""
    return -F.cross_entropy(logits.float(), targets, reduction="none")
