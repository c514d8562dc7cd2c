"""What the trainer asks of the processes beside it; this is the case of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kiban.errors import ConfigError
from kiban.objectives.base import Batch, Coupled, Loss, Objective

T = TypeVar("T")
Part = tuple[list[int], float]  # rows, and 1; or 0 where a process has no row left and computes one for company


class Parallel:
    """With one process there is nothing to share or to add up.

    rank of world processes. place of places: processes of one place hold the same rows (tensor parallel), so places is
    the number of parts that a batch is cut into. sharded: a process holds only its part of the parameters.
    """

    rank, world, place, places, sharded = 0, 1, 0, 1, False
    device = torch.device("cpu")
    group: Any = None  # of torch.distributed, for what may take long

    def accept(self, coupled: Coupled, num_rows: int, batch_size: int) -> None:
        """Raises ConfigError if processes would share batches whose rows have to be together."""
        if not coupled or self.world == 1:
            return
        if coupled != "gathered" or self.places != self.world:
            why = "examples interact, so that processes cannot share a batch"
            raise ConfigError("parallel", why=why, hint="train it in one process")
        # A process without a row would compute one for company, which all others would take for a wrong answer.
        least = num_rows % batch_size or batch_size
        if least < self.places:
            why = f"leaves a batch of {least} rows for {self.places} processes"
            raise ConfigError("batch_size", why=why, hint="choose one that leaves each process a row")

    def apply(self, module: nn.Module) -> None:
        """Prepare the module, before the optimiser is made; its parameters become those of the first process."""

    def share(self, ids: list[int], size: int) -> list[Part]:
        """The rows of a batch that this process takes, in parts of at most size; every process has as many parts."""
        return [(ids[i : i + size], 1.0) for i in range(0, len(ids), size)]

    def loss(self, module: nn.Module, objective: Objective, batch: Batch, *, last: bool) -> Loss:
        """The objective's loss of a part. last: the backward pass that follows is the last one of the step."""
        return objective(batch)

    def reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of all processes."""

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> float:
        """Scale gradients down to a norm, that of all parameters together; returns the norm before."""
        return float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))

    def inside(self, module: nn.Module, function: Callable[[], T]) -> T:
        """What a function finds that uses the module outside of a step, as the first process has it."""
        return function()

    def sum(self, values: list[float]) -> list[float]:
        """Sums over the places."""
        return values

    def any(self, value: bool) -> bool:
        """Whether it holds in any process."""
        return value

    def first(self, value: int) -> int:
        """What the first process says, however long it takes to."""
        return value

    def gather(self, row: Tensor) -> Tensor:
        """The rows (N,) of all processes, (world, N)."""
        return row[None]

    def whole(self, module: nn.Module) -> dict[str, Tensor]:
        """The module's state, every tensor in full, on the CPU of the first process; elsewhere it may be empty."""
        return {name: tensor.cpu() for name, tensor in module.state_dict().items()}

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raises KibanError inside the block if another process ends before this one."""
        yield

    def close(self) -> None:
        """Part from the other processes."""
