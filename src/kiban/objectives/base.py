"""What a trainer asks of an objective. The objective owns its loss; the trainer knows neither text nor images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

Batch = Mapping[str, Tensor]
Coupled = bool | Literal["gathered"]
"""False: every example stands for itself. "gathered": the objective itself brings those of all processes together."""


@dataclass(frozen=True)
class Loss:
    """total is the SUM over the items of a batch, a scalar; metrics are sums too, and are divided by the same count."""

    total: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """A loss over batches."""

    @property
    def coupled(self) -> Coupled:
        """Whether the examples of a batch interact, so that the trainer must not cut it."""
        ...

    def count(self, batch: Batch) -> Tensor:
        """Items that the loss averages over, a scalar."""
        ...

    def __call__(self, batch: Batch) -> Loss: ...
