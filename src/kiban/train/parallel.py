"""Several processes that train one model; this is the case of one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Parallel:
    """What the trainer asks of the processes beside it. With one process there is nothing to share or to add up."""

    rank, world = 0, 1

    def apply(self, module: nn.Module) -> None:
        """Prepare the module, before the optimiser is made."""

    def share(self, ids: list[int]) -> list[int]:
        """The rows of a batch that this process takes."""
        return ids

    def last_part(self, module: nn.Module, last: bool) -> None:
        """Called before each backward pass of a step: gradients need to be exchanged after the last only."""

    def reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of all processes."""

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> float:
        """Scale gradients down to a norm, that of all parameters together; returns the norm before."""
        return float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))

    def sum(self, values: list[float]) -> list[float]:
        """Sums over all processes."""
        return values

    def any(self, value: bool) -> bool:
        """Whether it holds in any process."""
        return value

    def first(self, value: int) -> int:
        """What the first process says."""
        return value
