"""Images and texts of one pair drawn together, all others of the batch pushed apart (Radford et al. 2021, figure 3).

The rows of a batch are each other's wrong answers, so that a larger batch is another task and not only a faster one.
Two ways to a batch that one process cannot hold: rows of all processes (`gather`), and embeddings computed in parts whose
inner states are computed once more when their gradient is known (Gao et al. 2021, "Scaling deep contrastive learning batch
size under memory limited setup", section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from kiban.errors import ConfigError
from kiban.objectives.base import Batch, Coupled, Loss


class Contrastive:
    """sum over rows of the mean of two cross-entropies: which text belongs to this image, which image to this text.

    Logits are exp(s) u . v of module.encode_image(images) and module.encode_text(tokens), (B, E) of length 1, and
    module.scale() = exp(s). A batch holds images (B, 3, S, S) and tokens (B, T) int64, row by row one pair.
    part_size: rows whose inner states are in memory at once; all if None. The gradient is the same to rounding, since
    random numbers such as dropout's are drawn again as they were; the price is a second forward pass.

    Where torch.distributed is up and gradients are on, each process holds its own rows, one or more, and those of all
    processes are candidates. Summed over processes, loss and gradient are those of one process with all rows.

    Raises ConfigError if part_size is below 1, and for parts while batch normalisation learns: it mixes rows.
    """

    coupled: Coupled = "gathered"

    def __init__(self, module: Any, *, part_size: int | None = None) -> None:
        if part_size is not None and part_size < 1:
            raise ConfigError("part_size", why=f"{part_size} is below 1", hint="leave it out to have one part")
        self.module, self.part_size = module, part_size

    def count(self, batch: Batch) -> Tensor:
        """Pairs of this process."""
        return torch.tensor(len(batch["tokens"]))

    def __call__(self, batch: Batch) -> Loss:
        images = self._encode(self.module.encode_image, batch["images"])
        texts = self._encode(self.module.encode_text, batch["tokens"])
        with torch.autocast(images.device.type, enabled=False):  # a scale of 100 magnifies rounding
            return symmetric(images.float(), texts.float(), self.module.scale().float())

    def _encode(self, encode: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        size = self.part_size or len(rows)
        if size >= len(rows) or not torch.is_grad_enabled():
            return torch.cat([encode(part) for part in torch.split(rows, size)])
        if any(isinstance(m, _BatchNorm) and m.training for m in self.module.modules()):
            hint = "set its layers to eval() or train without part_size"
            raise ConfigError("part_size", why="batch normalisation mixes the rows of a part", hint=hint)
        # What stays of a part is its embedding; the backward pass runs through one part after the other.
        return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in torch.split(rows, size)])


def symmetric(images: Tensor, texts: Tensor, scale: Tensor) -> Loss:
    """The loss of embeddings (B, E) of length 1, with the rows of other processes as further candidates.

    metrics: rows whose own text, and own image, comes first among all candidates.
    """
    first = 0
    all_images, all_texts = images, texts
    if dist.is_available() and dist.is_initialized() and torch.is_grad_enabled():
        sizes = _sizes(len(images), images.device)
        first = sum(sizes[: dist.get_rank()])
        all_images, all_texts = (gather(rows, sizes) for rows in (images, texts))
    own = torch.arange(first, first + len(images), device=images.device)
    of_images, of_texts = scale * images @ all_texts.mT, scale * texts @ all_images.mT  # (B, rows of all)
    total = sum(F.cross_entropy(logits, own, reduction="sum") for logits in (of_images, of_texts)) / 2
    found = [(logits.detach().argmax(-1) == own).sum() for logits in (of_images, of_texts)]
    return Loss(torch.as_tensor(total), {"text_found": found[0], "image_found": found[1]})


def _sizes(rows: int, device: torch.device) -> list[int]:
    """How many rows each process has."""
    mine = torch.tensor([rows], device=device)
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(found, mine)
    return [int(size) for size in found]


def gather(rows: Tensor, sizes: list[int]) -> Tensor:
    """The rows (B, E) of all processes, one after the other; each is given what all of them find its gradient to be."""
    return torch.as_tensor(_Gather.apply(rows, sizes))  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        # Processes may hold unequal numbers of rows, and collectives want equal ones.
        padded = F.pad(rows, (0, 0, 0, max(sizes) - len(rows))).contiguous()
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded)
        return torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        first = sum(ctx.sizes[: dist.get_rank()])
        return total[first : first + ctx.sizes[dist.get_rank()]], None
