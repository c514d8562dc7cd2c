"""Weights for parity tests: a fresh model has zeros and small numbers where a mistake would not show."""

from __future__ import annotations

import torch
from torch import nn


def fill(module: nn.Module, seed: int = 1) -> None:
    """Weights that keep states near 1, norms near 1, biases that show."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
            parameter.normal_(0, scale, generator=source)
        for part in module.modules():
            if isinstance(part, nn.GroupNorm | nn.LayerNorm):
                part.weight.add_(1)
