"""Attention from image positions to each other and to a text, on (B, C, H, W)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from kiban.errors import ConfigError
from kiban.nn.attention import Attention, Context, attend


class CrossAttention(nn.Module):
    """Queries from x (B, T, D), keys and values from context (B, S, Dc); out (B, T, D). Only the output has a bias.

    Raises ConfigError if num_heads does not divide dim.
    """

    def __init__(self, dim: int, num_heads: int, *, context_dim: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"dim={dim} is not divisible by num_heads={num_heads}")
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.k, self.v = nn.Linear(context_dim, dim, bias=False), nn.Linear(context_dim, dim, bias=False)
        self.o = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, T, Dh)
        k = self.k(context).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, S, Dh)
        v = self.v(context).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return torch.as_tensor(self.o(attend(q, k, v).transpose(1, 2).flatten(2)))  # (B, T, D)


class CrossBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each added to x behind its own norm. x: (B, T, D), same out."""

    def __init__(
        self, *, attn: Attention, cross: CrossAttention, ffn: nn.Module, norm: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.norm1, self.attn = norm(), attn
        self.norm2, self.cross = norm(), cross
        self.norm3, self.ffn = norm(), ffn

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), Context())
        x = x + self.cross(self.norm2(x), context)
        return x + torch.as_tensor(self.ffn(self.norm3(x)))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of x (B, C, H, W), added to it (Rombach et al. 2022, appendix E.2.1).

    context: (B, S, Dc). The layers in and out are linear; a 1x1 convolution, as SD 1 stores them, is the same map.
    """

    def __init__(self, channels: int, *, norm: nn.Module, blocks: Iterable[CrossBlock]) -> None:
        super().__init__()
        self.norm, self.proj_in = norm, nn.Linear(channels, channels)
        self.blocks = nn.ModuleList(blocks)
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        inner = self.proj_in(self.norm(x).flatten(2).mT)  # (B, H*W, C)
        for block in self.blocks:
            inner = block(inner, context)
        return x + torch.as_tensor(self.proj_out(inner)).mT.reshape(x.shape)  # (B, C, H, W)
