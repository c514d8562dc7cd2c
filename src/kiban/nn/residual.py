"""Convolutional parts that the U-Net and the autoencoder share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.nn import init


class ResBlock(nn.Module):
    """skip(x) + conv2(norm2(conv1(norm1(x)) + time(emb))), SiLU behind each norm (He et al. 2016, pre-activation).

    x: (B, Cin, H, W) to (B, Cout, H, W). emb: (B, E), what the time layer reads; without that layer it is not looked at.
    norm(channels) makes a norm. Dropout is left out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: Callable[[int], nn.Module],
        time: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(in_channels), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = time
        self.norm2, self.conv2 = norm(out_channels), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.skip: nn.Module = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x)))
        if self.time is not None:
            inner = inner + self.time(emb)[:, :, None, None]
        return torch.as_tensor(self.skip(x) + self.conv2(F.silu(self.norm2(inner))))


class Upsample(nn.Module):
    """Nearest neighbour to a size, then a convolution. x: (B, C, h, w); size: (H, W) in pixels; out: (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return torch.as_tensor(self.conv(F.interpolate(x, size=size, mode="nearest")))


def initialise_layers(module: nn.Module, generator: torch.Generator | None) -> None:
    """Linear layers and convolutions uniform within 1/sqrt(inputs of a unit), biases too; norms 1 and 0.

    torch's own default, which the latent diffusion code keeps, drawn from generator.
    """
    init.constants(module)
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            bound = part.weight[0].numel() ** -0.5
            for parameter in part.parameters(recurse=False):
                nn.init.uniform_(parameter, -bound, bound, generator=generator)


def zero(layer: nn.Module) -> None:
    """Weights and bias to 0, so that a branch adds nothing at first."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
