"""Pictures to sequences: a linear layer on each square piece."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PatchEmbedding(nn.Module):
    """pixels (B, 3, H, W) to patches (B, N, D), row by row (Dosovitskiy et al. 2021, equation 1). No bias, as CLIP has it.

    N = H/P * W/P, P the patch size.
    """

    def __init__(self, dim: int, patch_size: int, *, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, dim, patch_size, stride=patch_size, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.as_tensor(self.conv(pixels)).flatten(2).mT  # (B, N, D)
