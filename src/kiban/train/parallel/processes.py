"""What processes say to each other, and training where each of them holds the whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kiban.errors import KibanError
from kiban.train.parallel.base import Parallel, Part

T = TypeVar("T")
BUCKET_BYTES = 25 * 2**20  # gradients that travel together
PATIENCE = timedelta(hours=6)  # while one process evaluates or writes; the end of a process is noticed all the same


class Processes(Parallel):
    """One of several processes that torch.distributed knows.

    Numbers and small tensors go over gloo, also where gradients go over nccl, so that no device has to wait for them.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.place, self.places, self.device = self.rank, self.world, device
        self.group = dist.new_group(backend="gloo", timeout=PATIENCE)

    def share(self, ids: list[int], size: int) -> list[Part]:
        """Every places-th row. Who runs out of rows goes along with the first row of the batch, which then counts 0."""
        most = -(-len(ids) // self.places)  # rows of the fullest process
        mine = super().share(ids[self.place :: self.places], size)
        return mine + [(ids[:1], 0.0)] * (-(-most // size) - len(mine))

    def sum(self, values: list[float]) -> list[float]:
        """Sums over the places."""
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        return (sums * (self.places / self.world)).tolist()

    def any(self, value: bool) -> bool:
        """Whether it holds in any process."""
        found = torch.tensor(int(value))
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def first(self, value: int) -> int:
        """What the first process says, however long it takes to."""
        said = torch.tensor(value)
        dist.broadcast(said, 0, group=self.group)
        return int(said)

    def gather(self, row: Tensor) -> Tensor:
        """The rows (N,) of all processes, (world, N)."""
        rows = row.new_empty(self.world, len(row))
        dist.all_gather(list(rows.unbind()), row, group=self.group)
        return rows

    def _told(self, value: T) -> T:
        """What the first process has, however long it takes to."""
        values: list[Any] = [value]
        dist.broadcast_object_list(values, 0, group=self.group)
        return values[0]  # type: ignore[no-any-return]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raises KibanError inside the block if another process ends before this one."""
        try:
            yield
        except RuntimeError as error:
            # gloo knows no class of error of its own.
            if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
                why = f"lost the other processes: {str(error).splitlines()[0]}"
                hint = "start the run again, it goes on from its newest checkpoint"
                raise KibanError(f"process {self.rank} of {self.world}", why=why, hint=hint) from error
            raise

    def close(self) -> None:
        """Part from the other processes."""
        dist.destroy_process_group()


@torch.no_grad()
def copy_from_first(module: nn.Module) -> None:
    """Let all processes begin with the parameters and buffers of the first."""
    for tensor in [*module.parameters(), *module.buffers()]:
        dist.broadcast(tensor, 0)


class Replicated(Processes):
    """Every process holds the whole model; gradients are added up once a step (Li et al. 2020, "PyTorch Distributed").

    Deviation: they travel after the last backward pass, not during it.
    """

    def apply(self, module: nn.Module) -> None:
        """Let all processes begin with the parameters of the first."""
        copy_from_first(module)

    @torch.no_grad()
    def reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of all processes, and in every process the same way."""
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        # A parameter that no process used has no gradient, and is not decayed either.
        users = [p for p, flag in zip(parameters, used.tolist(), strict=True) if flag]
        for p in users:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        for bucket in _buckets([p.grad for p in users if p.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            start = 0
            for gradient in bucket:
                gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
                start += gradient.numel()

    def inside(self, module: nn.Module, function: Callable[[], T]) -> T:
        """The first process runs it, the others wait."""
        found: Any = function() if self.rank == 0 else None
        return self._told(found)  # type: ignore[no-any-return]

    def whole(self, module: nn.Module) -> dict[str, Tensor]:
        """The module's state, on the CPU."""
        return super().whole(module) if self.rank == 0 else {}


def _buckets(gradients: list[Tensor]) -> list[list[Tensor]]:
    """Gradients in order, cut where a bucket is full or the dtype changes."""
    buckets: list[list[Tensor]] = []
    room = 0
    for gradient in gradients:
        if gradient.nbytes > room or gradient.dtype != buckets[-1][-1].dtype:
            buckets.append([])
            room = BUCKET_BYTES
        buckets[-1].append(gradient)
        room -= gradient.nbytes
    return buckets
