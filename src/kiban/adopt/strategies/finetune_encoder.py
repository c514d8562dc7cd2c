"""Full fine-tuning of a BERT with a pooled classification head (Devlin et al. 2019, section 4.1)."""

from __future__ import annotations

import math
from typing import Any

import torch

from kiban import zoo
from kiban.adopt.strategies.base import Fitted, Job, Task
from kiban.adopt.strategies.classifier import BATCH_SIZE, ClassifierPredictor, refuse_unless_text, train_classifier

EPOCHS = 6
MAX_LEN = 128


class FinetuneEncoder:
    """Every weight learns."""

    name = "finetune_encoder"
    learns = True

    def refusal(self, task: Task, traits: Any) -> str | None:
        return refuse_unless_text(task, traits) or ("needs an encoder" if traits.causal else None)

    def default_steps(self, train_rows: int) -> int:
        return EPOCHS * math.ceil(train_rows / BATCH_SIZE)

    def fit(self, job: Job) -> Fitted:
        generator = torch.Generator().manual_seed(job.seed)
        loaded = zoo.load(
            job.candidate.path or str(job.candidate.model),
            head="sequence_classification",
            labels=job.task.labels,
            generator=generator,
        )
        # Small encoders on few rows want a larger step than the 2e-5 of BERT-base.
        outcome = train_classifier(job, loaded, max_len=MAX_LEN, lr=2e-4, max_validation=200)
        return Fitted(predictor=ClassifierPredictor(loaded, MAX_LEN, self.name), steps=outcome.steps)


STRATEGY = FinetuneEncoder()
PREDICTOR = ClassifierPredictor
