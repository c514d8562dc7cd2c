"""Feed-forward layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class FeedForward(nn.Module):
    """down(activation(up(x))). x: (..., D), same shape out (Vaswani et al. 2017, section 3.3)."""

    def __init__(self, dim: int, ffn_dim: int, *, activation: Callable[[Tensor], Tensor], bias: bool = True) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, ffn_dim, bias=bias), nn.Linear(ffn_dim, dim, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.down(self.activation(self.up(x))))


class GatedFeedForward(nn.Module):
    """down(activation(gate(x)) * up(x)). x: (..., D), same shape out (Shazeer 2020, "GLU variants", eq. 6)."""

    def __init__(self, dim: int, ffn_dim: int, *, activation: Callable[[Tensor], Tensor], bias: bool = False) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(dim, ffn_dim, bias=bias), nn.Linear(dim, ffn_dim, bias=bias)
        self.down = nn.Linear(ffn_dim, dim, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.down(self.activation(self.gate(x)) * self.up(x)))
