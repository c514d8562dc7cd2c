"""Pictures as the small recipes hold them: all in memory, of one size, moved a little each time one is shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiban.config import Progress, silent
from kiban.data.pairs import Pair
from kiban.inputs.image import cover, read_image


def squares(pairs: Sequence[Pair], size: int, progress: Progress = silent) -> NDArray[np.uint8]:
    """(N, size, size, 3): scaled to cover the square, the middle of it."""
    pictures = np.empty((len(pairs), size, size, 3), np.uint8)
    for i, pair in enumerate(pairs):
        pictures[i] = np.asarray(cover(read_image(pair.content(), name=pair.name), size, size))
        progress("pictures", i + 1, len(pairs))
    return pictures


def moved(picture: NDArray[np.uint8], seed: int, shift: int) -> NDArray[np.uint8]:
    """(S, S, 3), moved by up to shift pixels; the edge goes on where nothing was."""
    down, right = np.random.default_rng(seed).integers(0, 2 * shift + 1, 2)
    padded = np.pad(picture, ((shift, shift), (shift, shift), (0, 0)), mode="edge")
    size = len(picture)
    return padded[down : down + size, right : right + size]


def channels_first(pictures: NDArray[np.uint8]) -> Tensor:
    """(N, S, S, 3) to (N, 3, S, S) float32, still of 0 to 255."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
