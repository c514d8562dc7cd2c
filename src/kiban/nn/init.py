"""Initial weights, drawn from a generator so that a seed repeats them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def normal(weight: Tensor, std: float, generator: torch.Generator | None) -> None:
    """Fill weight with N(0, std^2)."""
    with torch.no_grad():
        weight.normal_(0.0, std, generator=generator)


def truncated_normal(weight: Tensor, std: float, generator: torch.Generator | None) -> None:
    """Fill weight with N(0, std^2) cut at two standard deviations, as BERT does."""
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)


def constants(module: nn.Module) -> None:
    """Biases to 0 and norm scales to 1, everywhere below module."""
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 1:
            nn.init.ones_(parameter)
