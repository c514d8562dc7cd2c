"""Ask a CLIP which name of a class fits the picture best (Radford et al. 2021, section 3.1).

Every name stands in the prompts of its language. The names' embeddings are a linear layer on those of pictures.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kiban.adapt.heads import LinearHead
from kiban.adopt.strategies.base import Fitted, Job, Task
from kiban.adopt.strategies.image_embedding import ImageHeadPredictor, open_model, refuse_unless_image
from kiban.errors import ConfigError
from kiban.evaluate.zero_shot import weights_of_names
from kiban.families.clip import CLIP


class ImageZeroShot:
    """No training picture is used."""

    name = "image_zero_shot"
    learns = False

    def refusal(self, task: Task, traits: Any) -> str | None:
        return refuse_unless_image(task, traits) or (
            None if "text" in traits.reads else "needs a model that reads text"
        )

    def default_steps(self, train_rows: int) -> int:
        return 0

    def reads(self, train_rows: int, validation_rows: int) -> int:
        return 0

    def fit(self, job: Job) -> Fitted:
        loaded = open_model(job)
        model, tokenizer = loaded.module, loaded.tokenizer
        if tokenizer is None or not isinstance(model, CLIP):
            raise ConfigError(loaded.source, why="has no tokenizer, which names of classes need")
        names = [label.replace("_", " ").replace("-", " ") for label in job.task.labels]  # as folders are called
        weight = model.scale().item() * weights_of_names(model, tokenizer, names).double().numpy()
        head = LinearHead(weight, np.zeros(len(weight)), float("nan"))
        return Fitted(predictor=ImageHeadPredictor(loaded, head, job.task.labels, self.name), steps=0)


STRATEGY = ImageZeroShot()
PREDICTOR = ImageHeadPredictor
