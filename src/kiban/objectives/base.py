"""What a trainer asks of an objective. The objective owns its loss; the trainer knows neither text nor images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Loss:
    """total is the SUM over the items of a batch, a scalar; metrics are sums too, and are divided by the same count."""

    total: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """A loss over batches."""

    coupled: bool  # True if the examples of a batch interact (contrastive), so that it must not be cut into parts

    def count(self, batch: Batch) -> Tensor:
        """Items that the loss averages over, a scalar."""
        ...

    def __call__(self, batch: Batch) -> Loss: ...
