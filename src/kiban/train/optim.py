"""Optimisers. A run may need two: Muon for the matrices of the blocks, AdamW for the rest."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from kiban.train.blocks import blocks_of

Name = Literal["adamw", "muon"]


def optimizers(
    name: Name, module: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]
) -> list[torch.optim.Optimizer]:
    """The optimisers of the parameters that learn; all follow the same schedule.

    adamw: Loshchilov & Hutter 2019; matrices decay, biases and norms do not. muon: Jordan et al. 2024 for the matrices
    of the blocks, with steps as long as AdamW's (Liu et al. 2025, section 2.2), so that one lr serves both.
    """
    learning = [p for p in module.parameters() if p.requires_grad]
    found: list[torch.optim.Optimizer] = []
    if name == "muon":
        hidden = {
            id(p): p for block in blocks_of(module) for p in block.parameters() if p.requires_grad and p.ndim == 2
        }
        learning = [p for p in learning if id(p) not in hidden]
        found.append(
            torch.optim.Muon(list(hidden.values()), lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    groups = [
        {"params": [p for p in learning if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    return [*found, torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8, fused=True)]
