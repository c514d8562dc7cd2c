"""Blocks, one after the other."""

from __future__ import annotations

from torch import Tensor, nn

from kiban.nn.attention import Context


class Stack(nn.ModuleList):
    """Runs its blocks in order on x (B, T, D); all get the same context."""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        for block in self:
            x = block(x, context)
        return x
