"""LoRA (Hu et al. 2021) on every linear layer of a vision tower, from a linear head that was fitted first.

The changes are merged into the tower before saving, so that the folder is of the same kind as `image_head`'s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.adapt.heads import LinearHead, start_from
from kiban.adapt.lora import add_lora, merge_lora
from kiban.adopt.strategies.base import Fitted, Job, Task
from kiban.adopt.strategies.image_embedding import ImageHeadPredictor, open_model, refuse_unless_image
from kiban.adopt.strategies.image_head import fit_head
from kiban.adopt.strategies.image_training import Pixels, Preparation, epochs_to_steps, train_pictures
from kiban.families.clip import CLIP
from kiban.inputs.image import CLIP_MEAN, CLIP_STD, cover, read_image

EPOCHS = 6
MAX_VALIDATION = 200
TARGETS = ("q", "k", "v", "o", "up", "down")


class _Classifier(nn.Module):
    """pixels (B, 3, S, S) to logits (B, C), by the embedding of length 1 as the predictor takes it."""

    def __init__(self, tower: nn.Module, head: LinearHead) -> None:
        super().__init__()
        self.tower = tower
        self.dense = nn.Linear(head.weight.shape[1], head.weight.shape[0])
        start_from(self.dense, head)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.as_tensor(self.dense(F.normalize(self.tower(pixels), dim=-1)))

    def head(self) -> LinearHead:
        """The head as it is now."""
        weight, bias = (parameter.detach().double().numpy() for parameter in (self.dense.weight, self.dense.bias))
        return LinearHead(weight, bias, float("nan"))


class ImageLora:
    """Only the adapters and the head learn."""

    name = "image_lora"
    learns = True

    def refusal(self, task: Task, traits: Any) -> str | None:
        # Of what sees and does not read, ResNet, nothing is a linear layer.
        return refuse_unless_image(task, traits) or (None if "text" in traits.reads else "needs a CLIP")

    def default_steps(self, train_rows: int) -> int:
        return epochs_to_steps(EPOCHS, train_rows)

    def reads(self, train_rows: int, validation_rows: int) -> int:
        return train_rows + min(MAX_VALIDATION, validation_rows)

    def fit(self, job: Job) -> Fitted:
        loaded = open_model(job)
        model = loaded.module
        assert isinstance(model, CLIP)
        size = model.config.vision.image_size

        def read(path: Any) -> Pixels:
            return np.asarray(cover(read_image(path), size, size))

        head = fit_head(job, loaded)
        generator = torch.Generator().manual_seed(job.seed)
        add_lora(model.vision, rank=16, alpha=32, targets=TARGETS, generator=generator)
        with torch.random.fork_rng(devices=[]):
            module = _Classifier(model.vision, head)
        how = Preparation(read=read, size=size, mean=CLIP_MEAN, std=CLIP_STD)
        outcome = train_pictures(job, module, how, lr=5e-4, weight_decay=0.01, max_validation=MAX_VALIDATION)
        merge_lora(model.vision)
        predictor = ImageHeadPredictor(loaded, module.head(), job.task.labels, self.name)
        return Fitted(predictor=predictor, steps=outcome.steps)


STRATEGY = ImageLora()
PREDICTOR = ImageHeadPredictor
