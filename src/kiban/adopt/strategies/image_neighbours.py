"""The labels of the most similar training pictures, by the embeddings of a frozen model.

Votes weigh exp(cosine / 0.07) (Wu et al. 2018, "Unsupervised feature learning via non-parametric instance discrimination",
section 3.4); how many vote is what serves the training pictures best, each left out in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kiban import zoo
from kiban.adopt.strategies.base import Fitted, Job, Task
from kiban.adopt.strategies.image_embedding import HEAD, embed, open_model, refuse_unless_image, save_with
from kiban.evaluate.metrics import macro_f1
from kiban.files import read_json
from kiban.weights.safetensors import read_safetensors

TEMPERATURE = 0.07
VOTERS = (1, 3, 5, 10, 20)
CHUNK = 1024  # pictures that are compared with all others at once


class NeighboursPredictor:
    """Weighted votes of the nearest."""

    def __init__(
        self,
        loaded: zoo.Loaded,
        known: NDArray[np.float64],
        targets: NDArray[np.int64],
        labels: Sequence[str],
        voters: int,
    ) -> None:
        """known: (N, D) embeddings of length 1; targets: (N,)."""
        self.loaded, self.targets, self.labels, self.voters = loaded, targets, tuple(labels), voters
        self.known = known.astype(np.float32).astype(np.float64)  # as they are saved
        loaded.module.eval()

    def predict(self, inputs: Sequence[Any]) -> NDArray[np.float64]:
        """Probabilities (N, C). Raises DatasetError that names a picture that cannot be read."""
        likeness = embed(self.loaded, inputs) @ self.known.T
        return votes(likeness, self.targets, self.voters, len(self.labels))

    def save(self, folder: Path) -> None:
        """Write a folder that `AutoModel` of transformers opens; the training pictures' embeddings lie in head/."""
        tensors = {"known": torch.from_numpy(self.known).float(), "targets": torch.from_numpy(self.targets)}
        save_with(self.loaded, folder, tensors, self.labels, "image_neighbours", voters=self.voters)

    @classmethod
    def load(cls, folder: Path) -> NeighboursPredictor:
        loaded, manifest = zoo.load(folder), read_json(folder / "kiban.json")
        head = read_safetensors(folder / HEAD)
        known, targets = head["known"].double().numpy(), head["targets"].numpy()
        return cls(loaded, known, targets, manifest["labels"], int(manifest["voters"]))


def votes(
    likeness: NDArray[np.float64], targets: NDArray[np.int64], voters: int, num_labels: int
) -> NDArray[np.float64]:
    """Probabilities (N, C) from cosines (N, M) with pictures of classes targets (M,)."""
    near = np.argsort(-likeness, axis=1, kind="stable")[:, :voters]
    cosines = np.take_along_axis(likeness, near, 1)
    weight = np.exp((cosines - cosines[:, :1]) / TEMPERATURE)
    found = np.zeros((len(likeness), num_labels))
    np.add.at(found, (np.arange(len(likeness))[:, None], targets[near]), weight)
    return np.asarray(found / found.sum(1, keepdims=True))


class ImageNeighbours:
    """Nothing is learned but how many vote."""

    name = "image_neighbours"
    learns = True

    def refusal(self, task: Task, traits: Any) -> str | None:
        return refuse_unless_image(task, traits)

    def default_steps(self, train_rows: int) -> int:
        return 0

    def reads(self, train_rows: int, validation_rows: int) -> int:
        return train_rows

    def fit(self, job: Job) -> Fitted:
        loaded = open_model(job)
        known, targets = embed(loaded, job.train.inputs, progress=job.progress), np.asarray(job.train.targets)
        voters = _best(known, targets, len(job.task.labels))
        return Fitted(predictor=NeighboursPredictor(loaded, known, targets, job.task.labels, voters), steps=0)


def _best(known: NDArray[np.float64], targets: NDArray[np.int64], num_labels: int) -> int:
    """The number of voters with the best macro-F1 where each picture asks the others; the larger of equals."""
    answers = np.zeros((len(VOTERS), len(known)), dtype=np.int64)
    for start in range(0, len(known), CHUNK):
        likeness = known[start : start + CHUNK] @ known.T
        own = np.arange(len(likeness))
        likeness[own, start + own] = -np.inf
        for i, voters in enumerate(VOTERS):
            chosen = min(voters, len(known) - 1)
            answers[i, start : start + CHUNK] = votes(likeness, targets, chosen, num_labels).argmax(1)
    scores = [macro_f1(targets, found, num_labels) for found in answers]
    return max(zip(scores, VOTERS, strict=True))[1]


STRATEGY = ImageNeighbours()
PREDICTOR = NeighboursPredictor
