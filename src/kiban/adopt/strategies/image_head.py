"""A linear probe (Radford et al. 2021, section 3.2): logistic regression on the embeddings of a frozen model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from kiban import zoo
from kiban.adapt.heads import LinearHead, fit_linear_head
from kiban.adopt.strategies.base import Fitted, Job, Task
from kiban.adopt.strategies.image_embedding import ImageHeadPredictor, embed, open_model, refuse_unless_image


class ImageHead:
    """No weight of the model changes."""

    name = "image_head"
    learns = True

    def refusal(self, task: Task, traits: Any) -> str | None:
        return refuse_unless_image(task, traits)

    def default_steps(self, train_rows: int) -> int:
        return 0

    def reads(self, train_rows: int, validation_rows: int) -> int:
        return train_rows

    def fit(self, job: Job) -> Fitted:
        loaded = open_model(job)
        head = fit_head(job, loaded)
        return Fitted(predictor=ImageHeadPredictor(loaded, head, job.task.labels, self.name), steps=0)


def fit_head(job: Job, loaded: zoo.Loaded) -> LinearHead:
    """A head fitted on the embeddings of the training pictures."""
    features, targets = embed(loaded, job.train.inputs, progress=job.progress), np.asarray(job.train.targets)
    # The weights lie in the span of the rows, which has fewer axes than a wide embedding: the same head, sooner.
    axes = np.linalg.qr(features.T)[0] if features.shape[1] > len(features) else np.eye(features.shape[1])  # (D, A)
    head = fit_linear_head(features @ axes, targets, num_labels=len(job.task.labels), seed=job.seed)
    return replace(head, weight=head.weight @ axes.T)


STRATEGY = ImageHead()
PREDICTOR = ImageHeadPredictor
