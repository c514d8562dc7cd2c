"""Who judges drawn pictures of `tour.shapes`: a small convolutional network that names shape, colour and place.

It learns from real pictures of all 144 combinations, held out ones too, so that none has a better name than another. Its
seed is its own and never that of a model it judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.config import Progress
from kiban.data.loader import Loader
from kiban.nn.residual import initialise_layers
from kiban.objectives.base import Batch, Loss
from kiban.tour import shapes
from kiban.tour.running import fit
from kiban.train.settings import TrainConfig

SEED = 1_000_003
COUNTS = (len(shapes.SHAPES), len(shapes.COLOURS), len(shapes.PLACES))
ATTRIBUTES = ("shape", "colour", "place")
BATCH = 96


class Judge(nn.Module):
    """(B, 3, S, S) in [-1, 1] to logits of shapes, colours and places side by side, (B, 6 + 6 + 4). S: a multiple of 4."""

    def __init__(self, image_size: int, dim: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, dim, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * dim, 2 * dim, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * dim * (image_size // 4) ** 2, sum(COUNTS)),
        )

    def forward(self, images: Tensor) -> Tensor:
        return torch.as_tensor(self.layers(images))

    def initialise(self, generator: torch.Generator | None) -> None:
        """torch's default."""
        initialise_layers(self, generator)


class Naming:
    """Cross-entropy of the three names of each picture. A batch holds images (B, 3, S, S) and names (B, 3) int64."""

    coupled = False

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def count(self, batch: Batch) -> Tensor:
        """Pictures of the batch."""
        return torch.tensor(len(batch["images"]))

    def __call__(self, batch: Batch) -> Loss:
        parts = self.module(batch["images"]).split(COUNTS, dim=1)
        names = batch["names"].unbind(1)
        losses = [F.cross_entropy(part, name, reduction="sum") for part, name in zip(parts, names, strict=True)]
        return Loss(torch.stack(losses).sum())


def train(image_size: int, steps: int, folder: Path, progress: Progress) -> Judge:
    """The judge: the same for the same arguments. Every batch is of new pictures."""
    judge = Judge(image_size)
    judge.initialise(torch.Generator().manual_seed(SEED))

    def collate(rows: list[int]) -> dict[str, Tensor]:
        rng = np.random.default_rng([SEED, rows[0]])
        some = [shapes.ALL[i] for i in rng.integers(len(shapes.ALL), size=len(rows))]
        return {"images": shapes.pixels(some, rng, image_size), "names": torch.tensor(some)}

    loader = Loader(range(steps * BATCH), collate, batch_size=BATCH, seed=SEED)
    config = TrainConfig(
        steps=steps,
        batch_size=BATCH,
        micro_batch_size=BATCH,
        lr=2e-3,
        precision="fp32",
        checkpoint_every=100,
        seed=SEED,
    )
    fit(Naming(judge), judge, loader, config, folder, progress)
    return judge.eval()


@torch.no_grad()
def right(judge: Judge, images: Tensor, meant: Sequence[shapes.Combination]) -> Tensor:
    """(B, 4) bool: whether a picture shows the shape, the colour, the place, and all three, that were meant."""
    parts = judge(images).split(COUNTS, dim=1)
    found = torch.stack([part.argmax(-1) for part in parts], dim=1) == torch.tensor(meant)
    return torch.cat((found, found.all(dim=1, keepdim=True)), dim=1)


def diversity(images: Tensor, each: int) -> float:
    """How different pictures of one caption are: the root mean square of their differences, on average over pairs.

    images: (N * each, 3, S, S) in [-1, 1], those of one caption side by side. In percent of the whole range of values.
    """
    groups = images.clamp(-1, 1).reshape(-1, each, images[0].numel())  # (N, each, P)
    distances = torch.cdist(groups, groups) / groups.shape[-1] ** 0.5  # (N, each, each)
    return 50 * float(distances.sum() / (len(groups) * each * (each - 1)))
