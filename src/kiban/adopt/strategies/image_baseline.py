"""Colours and edges with logistic regression: what a picture's classifier was before networks, and the thing to beat.

Edges are histograms of oriented gradients (Dalal & Triggs 2005, section 6): cells of 8 x 8 pixels, nine directions without
sign, blocks of 2 x 2 cells with their norm clipped. It needs no foundation model, so it is always in the race.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kiban.adopt.strategies.base import Fitted, Job, Task
from kiban.adopt.strategies.skops_file import load_classifier, probabilities, save_classifier
from kiban.config import Progress, silent
from kiban.inputs.image import read_image

SIZE, CELL, DIRECTIONS = 64, 8, 9
SHADES = 4  # of red, green and blue each, in the histogram
CLIP = 0.2
STRENGTHS = (1.0, 10.0, 100.0)
TRUSTED = ["sklearn.linear_model._logistic.LogisticRegression"]  # skops opens only types that are named


def features(paths: Sequence[Any], *, progress: Progress = silent) -> NDArray[np.float32]:
    """(N, 1828): of each picture the roots of its colours' shares, and its edges, both of about length 1.

    Raises DatasetError that names a picture that cannot be read.
    """
    rows = []
    for done, path in enumerate(paths):
        # Squeezed rather than cut: nothing is lost, and edges keep their places.
        image = read_image(path).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        pixels: NDArray[np.float32] = np.asarray(image, dtype=np.float32) / np.float32(255)  # (S, S, 3)
        rows.append(np.concatenate((_colours(pixels), _edges(pixels))))
        progress("features", done + 1, len(paths))
    return np.stack(rows)


def _colours(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    shade = np.minimum((pixels * SHADES).astype(np.int64), SHADES - 1)
    code = shade @ np.asarray([SHADES**2, SHADES, 1])
    shares = np.bincount(code.ravel(), minlength=SHADES**3) / code.size
    return np.asarray(np.sqrt(shares), dtype=np.float32)


def _edges(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    down, right = np.zeros_like(pixels), np.zeros_like(pixels)
    down[1:-1], right[:, 1:-1] = pixels[2:] - pixels[:-2], pixels[:, 2:] - pixels[:, :-2]
    steep = np.hypot(down, right)
    best = steep.argmax(-1, keepdims=True)  # the colour that changes most
    steep, down, right = (np.take_along_axis(part, best, -1)[..., 0] for part in (steep, down, right))
    place = np.arctan2(down, right) % np.pi * (DIRECTIONS / np.pi)
    low = np.floor(place).astype(np.int64) % DIRECTIONS
    above = place - np.floor(place)
    num_cells = SIZE // CELL
    cells = np.zeros((num_cells, num_cells, DIRECTIONS), dtype=np.float32)
    for direction in range(DIRECTIONS):
        share = (low == direction) * (1 - above) + ((low + 1) % DIRECTIONS == direction) * above
        cells[..., direction] = (steep * share).reshape(num_cells, CELL, num_cells, CELL).sum((1, 3))
    end = num_cells - 1
    blocks = np.concatenate([cells[i : end + i, j : end + j] for i in (0, 1) for j in (0, 1)], axis=-1)
    for limit in (CLIP, 1.0):
        blocks = np.minimum(blocks / np.sqrt((blocks**2).sum(-1, keepdims=True) + 1e-3), limit)
    return np.asarray(blocks.ravel() / end, dtype=np.float32)


class ImageBaselinePredictor:
    """Logistic regression on features."""

    def __init__(self, classifier: Any, labels: Sequence[str]) -> None:
        self.classifier, self.labels = classifier, tuple(labels)

    def predict(self, inputs: Sequence[Any]) -> NDArray[np.float64]:
        """Probabilities (N, C); a class that the training rows lacked gets 0."""
        if not len(inputs):
            return np.zeros((0, len(self.labels)))
        return probabilities(self.classifier, features(inputs), len(self.labels))

    def save(self, folder: Path) -> None:
        """Write `model.skops` and the manifest."""
        save_classifier(self.classifier, folder, strategy="image_baseline", labels=self.labels)

    @classmethod
    def load(cls, folder: Path) -> ImageBaselinePredictor:
        """Open what save wrote. Raises FormatError if the file asks for types that are not a baseline's."""
        model, labels = load_classifier(folder, TRUSTED)
        return cls(model, labels)


class ImageBaseline:
    """See the module's first lines."""

    name = "image_baseline"
    learns = True

    def refusal(self, task: Task, traits: Any) -> str | None:
        return None if task.kind == "image" else f"not written for {task.kind} tasks"

    def default_steps(self, train_rows: int) -> int:
        return 0

    def reads(self, train_rows: int, validation_rows: int) -> int:
        return train_rows + validation_rows

    def fit(self, job: Job) -> Fitted:
        from sklearn.linear_model import LogisticRegression

        train, validation = (features(rows.inputs, progress=job.progress) for rows in (job.train, job.validation))
        truth = np.asarray(job.validation.targets)
        best: tuple[float, Any] | None = None
        for strength in STRENGTHS:
            classifier = LogisticRegression(C=strength, max_iter=300, random_state=job.seed)
            classifier.fit(train, np.asarray(job.train.targets))
            score = float((classifier.predict(validation) == truth).mean())
            if best is None or score > best[0]:
                best = (score, classifier)
        assert best is not None
        return Fitted(predictor=ImageBaselinePredictor(best[1], job.task.labels), steps=0)


STRATEGY = ImageBaseline()
PREDICTOR = ImageBaselinePredictor
