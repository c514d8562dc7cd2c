"""Pictures as the small recipes hold them: all in memory, of one size, moved a little each time one is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

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


def moved(picture: Any, seed: int, shift: int) -> Tensor:
    """(S, S, 3) uint8 to (3, S, S) float32 of 0 to 255, moved by up to shift pixels; the edge goes on where nothing was."""
    down, right = np.random.default_rng(seed).integers(0, 2 * shift + 1, 2)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    padded = F.pad(pixels, (shift, shift, shift, shift), mode="replicate")[0]
    size = picture.shape[0]
    return padded[:, down : down + size, right : right + size]
