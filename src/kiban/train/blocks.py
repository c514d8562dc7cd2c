"""What is done to a model's blocks from outside: less memory by computing twice, more speed by compiling."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from kiban.nn.stack import Stack


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Every block of every stack."""
    return [block for part in module.modules() if isinstance(part, Stack) for block in part]


def recompute(module: nn.Module) -> None:
    """Keep the input of each block alone and compute the rest again in the backward pass (Chen et al. 2016)."""
    for block in blocks_of(module):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(module: nn.Module) -> None:
    """Compile each block in place; the blocks of a model are alike, so the first step compiles one and the rest reuse it."""
    for block in blocks_of(module):
        block.compile()
