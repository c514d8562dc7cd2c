"""What strategies on pictures share: embeddings of a pretrained model, and a linear layer on them that is saved with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kiban import zoo
from kiban.adapt.heads import LinearHead
from kiban.adopt.strategies.base import Job, Task
from kiban.config import Progress, Traits, silent
from kiban.evaluate.pictures import embed_images, seeing
from kiban.files import read_json
from kiban.weights.safetensors import read_safetensors, tensor_bytes

BATCH_SIZE = 16  # a large model takes seconds for so many, and may be asked to stop between batches
HEAD = "head/model.safetensors"  # beside the model's own, in which its tools would not expect it


def open_model(job: Job) -> zoo.Loaded:
    """The candidate's model without classes of its own. Raises ConfigError if it has no embeddings of pictures."""
    loaded = zoo.load(job.candidate.path or str(job.candidate.model))
    return replace(loaded, module=seeing(loaded.module, name=loaded.source), head=None, labels=())


def embed(loaded: zoo.Loaded, paths: Sequence[Any], *, progress: Progress = silent) -> NDArray[np.float64]:
    """(N, D) of length 1. Raises DatasetError that names a picture that cannot be read."""
    model = seeing(loaded.module, name=loaded.source)
    found = embed_images(model, list(paths), batch_size=BATCH_SIZE, progress=progress)
    return np.asarray(found, dtype=np.float64)


def refuse_unless_image(task: Task, traits: Traits | None) -> str | None:
    """The refusals that every strategy on embeddings of pictures shares."""
    if task.kind != "image":
        return f"not written for {task.kind} tasks"
    if traits is None or "image" not in traits.reads or "embedding" not in traits.writes:
        return "needs a model that embeds pictures"
    return None


class ImageHeadPredictor:
    """softmax(W e(picture) + b), e being an embedding of length 1."""

    def __init__(self, loaded: zoo.Loaded, head: LinearHead, labels: Sequence[str], strategy: str) -> None:
        self.loaded, self.labels, self.strategy = loaded, tuple(labels), strategy
        # Saved as float32, so the predictor in hand uses the same rounded numbers as the one that is loaded later.
        self.weight, self.bias = (part.astype(np.float32).astype(np.float64) for part in (head.weight, head.bias))
        loaded.module.eval()

    def predict(self, inputs: Sequence[Any]) -> NDArray[np.float64]:
        """Probabilities (N, C). Raises DatasetError that names a picture that cannot be read."""
        logits = torch.from_numpy(embed(self.loaded, inputs) @ self.weight.T + self.bias)
        return np.asarray(logits.softmax(-1).numpy(), dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write a folder that `AutoModel` of transformers opens; the layer lies in head/."""
        tensors = {"weight": torch.from_numpy(self.weight).float(), "bias": torch.from_numpy(self.bias).float()}
        save_with(self.loaded, folder, tensors, self.labels, self.strategy)

    @classmethod
    def load(cls, folder: Path) -> ImageHeadPredictor:
        loaded, manifest = zoo.load(folder), read_json(folder / "kiban.json")
        head = read_safetensors(folder / HEAD)
        weight, bias = (head[name].double().numpy() for name in ("weight", "bias"))
        return cls(loaded, LinearHead(weight, bias, float("nan")), manifest["labels"], manifest["strategy"])


def save_with(
    loaded: zoo.Loaded,
    folder: Path,
    tensors: dict[str, torch.Tensor],
    labels: Sequence[str],
    strategy: str,
    **facts: Any,
) -> None:
    """Write a model with what was learned on its embeddings."""
    files = {HEAD: tensor_bytes(tensors)}
    zoo.save(loaded, folder, files=files, manifest={"strategy": strategy, "labels": list(labels), **facts})
