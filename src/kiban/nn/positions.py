"""Rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kiban.errors import ConfigError


class Rotary(nn.Module):
    """Rotary position embedding (Su et al. 2021, eq. 34), half-split layout: dimension i is paired with i + Dh/2.

    Raises ConfigError if head_dim is odd.
    """

    def __init__(self, head_dim: int, *, base: float = 10_000.0) -> None:
        super().__init__()
        if head_dim % 2:
            raise ConfigError(f"head_dim={head_dim} must be even for rotary positions")
        self.head_dim, self.base = head_dim, base

    def table(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, each (..., Dh), float32, for positions (...) int64 in tokens."""
        # Computed on the spot: a buffer would be lost when a model built on the meta device gets its weights.
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=positions.device) / self.head_dim
        frequency = 1.0 / self.base**exponent
        angle = positions[..., None].float() * frequency  # (..., Dh/2)
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (B, H, T, Dh) by the table's cos and sin, broadcastable to (B, 1, T, Dh). Same shape and dtype out."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return (x * cos + turned * sin).to(x.dtype)
