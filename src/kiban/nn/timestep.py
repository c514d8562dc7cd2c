"""Numbers such as a timestep or an image size, as vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoids(values: Tensor, dim: int, *, max_period: float = 10_000.0) -> Tensor:
    """cos, then sin, of values times dim/2 frequencies from 1 down to 1/max_period (Vaswani et al. 2017, section 3.5).

    values: (...) int64 or float; out: (..., dim) float32, dim even. The paper puts sin first; latent diffusion cos.
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values[..., None].float() * torch.exp(-math.log(max_period) * exponent)  # (..., dim/2)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class Embedder(nn.Module):
    """Two layers with SiLU between them, (B, Din) to (B, D): what turns sinusoids into a condition."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.up, self.out = nn.Linear(in_dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.out(F.silu(self.up(x))))
