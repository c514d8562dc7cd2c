"""What a small network from scratch and LoRA on a vision tower share: the training run on pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kiban.adopt.strategies import training
from kiban.adopt.strategies.base import Job
from kiban.config import Progress
from kiban.data.loader import Loader
from kiban.evaluate.metrics import macro_f1
from kiban.objectives.classification import PictureClassification
from kiban.objectives.diffusion import SeededRows
from kiban.recipes.squares import moved
from kiban.train.settings import TrainResult

BATCH_SIZE = 32
SHIFT = 16  # pictures move by up to this part of their side
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How a picture becomes pixels: read(path) gives (size, size, 3) uint8; mean and std of the three colours in 0..1."""

    read: Callable[[Any], Pixels]
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def pixels(self, pictures: Pixels) -> Tensor:
        """(N, S, S, 3) uint8 to what the model reads, (N, 3, S, S) float32."""
        values = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (self.mean, self.std))
        return (values - mean) / std


def epochs_to_steps(epochs: int, train_rows: int) -> int:
    """Optimiser steps in which every row is seen so often."""
    return epochs * math.ceil(train_rows / BATCH_SIZE)


def train_pictures(
    job: Job, module: nn.Module, how: Preparation, *, lr: float, weight_decay: float, max_validation: int
) -> TrainResult:
    """Train module, pixels to logits, on pictures moved at random; the parameters of the best macro-F1 are kept."""
    job.work.mkdir(parents=True, exist_ok=True)
    # On disk, so that many large pictures take no memory.
    shape = (len(job.train), how.size, how.size, 3)
    pictures = np.memmap(job.work / "pictures.u8", dtype=np.uint8, mode="w+", shape=shape)
    _read(job.train.inputs, how, pictures, job.progress)
    inputs = job.validation.inputs[:max_validation]
    held_out = np.empty((len(inputs), *shape[1:]), dtype=np.uint8)
    _read(inputs, how, held_out, job.progress)
    truth = np.asarray(job.validation.targets[:max_validation])

    def collate(rows: list[tuple[int, int]]) -> dict[str, Tensor]:
        shown = np.stack([moved(pictures[i], seed, max(1, how.size // SHIFT)) for i, seed in rows])
        return {"pixels": how.pixels(shown), "labels": torch.tensor([job.train.targets[i] for i, _ in rows])}

    def score() -> float:
        return macro_f1(truth, classify(module, how, held_out).argmax(1), len(job.task.labels))

    each = epochs_to_steps(1, len(job.train))
    rows: Any = SeededRows(range(len(job.train)), num_epochs=-(-job.max_steps // each), seed=job.seed)
    return training.run(
        job,
        PictureClassification(module),
        module,
        Loader(rows, collate, batch_size=BATCH_SIZE, seed=job.seed),
        score,
        batch_size=BATCH_SIZE,
        lr=lr,
        weight_decay=weight_decay,
        # A network from scratch stands still for a while, and on few rows an epoch is a few steps.
        eval_every=max(1, min(job.max_steps, max(each, job.max_steps // 20))),
        patience=6,
    )


def _read(paths: Sequence[Any], how: Preparation, into: Pixels, progress: Progress) -> None:
    for i, path in enumerate(paths):
        into[i] = how.read(path)
        progress("pictures", i + 1, len(paths))


@torch.inference_mode()
def classify(module: nn.Module, how: Preparation, pictures: Pixels) -> NDArray[np.float64]:
    """Probabilities (N, C) of pictures (N, S, S, 3), one or more."""
    module.eval()
    parts = [
        module(how.pixels(pictures[start : start + BATCH_SIZE])).double().softmax(-1)
        for start in range(0, len(pictures), BATCH_SIZE)
    ]
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float64)
