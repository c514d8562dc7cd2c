"""Transformer blocks: where the norm stands is the whole difference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kiban.nn.attention import Attention, Context


class PreNormBlock(nn.Module):
    """x + attn(norm1(x)), then x + ffn(norm2(x)). x: (B, T, D), same shape out."""

    def __init__(self, *, attn: Attention, ffn: nn.Module, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.ffn = norm(), attn, norm(), ffn

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = x + self.attn(self.norm1(x), context)
        return x + torch.as_tensor(self.ffn(self.norm2(x)))


class PostNormBlock(nn.Module):
    """norm1(x + attn(x)), then norm2(x + ffn(x)), as in the first Transformer. x: (B, T, D), same shape out."""

    def __init__(self, *, attn: Attention, ffn: nn.Module, norm: Callable[[], nn.Module], dropout: float = 0.0) -> None:
        super().__init__()
        self.attn, self.norm1, self.ffn, self.norm2 = attn, norm(), ffn, norm()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = self.norm1(x + self.dropout(self.attn(x, context)))
        return torch.as_tensor(self.norm2(x + self.dropout(self.ffn(x))))
