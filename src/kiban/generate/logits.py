"""Pure functions on logits (B, V) that shape what is sampled. Same shape out; -inf means never."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FEW = 1024  # tokens among which most of the mass is nearly always


def temperature(logits: Tensor, value: float) -> Tensor:
    """Divide by value > 0: below 1 sharper, above 1 flatter."""
    return logits / value


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k likeliest tokens (Fan et al. 2018)."""
    if k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest tokens whose probabilities reach p (Holtzman et al. 2020, section 3.1), one at least."""
    total, size = logits.logsumexp(-1, keepdim=True), logits.shape[-1]
    for most in (min(FEW, size), size):  # those few nearly always suffice, and to sort all is ten times the work
        ordered, places = logits.topk(most, dim=-1)
        shares = (ordered - total).exp()
        before = shares.cumsum(-1) - shares  # mass of the likelier ones
        keep = before < p
        keep[..., 0] = True
        if most == size or not bool(keep[..., -1].any()):
            break
    dropped = torch.ones_like(logits, dtype=torch.bool).scatter(-1, places, ~keep)
    return logits.masked_fill(dropped, -torch.inf)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens at least p times as likely as the likeliest (Nguyen et al. 2024)."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -torch.inf)


def repetition_penalty(logits: Tensor, seen: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Make tokens that a row has seen less likely: positive logits / penalty, negative * penalty (Keskar et al. 2019)."""
    result = logits.clone()
    for row, ids in enumerate(seen):
        places = torch.tensor(sorted(set(ids)), dtype=torch.int64, device=logits.device)
        values = result[row, places]
        result[row, places] = torch.where(values > 0, values / penalty, values * penalty)
    return result
