"""LoRA (Hu et al. 2021) on every linear layer of a decoder, with a classification head on the last token.

The adapters are merged before saving, so the folder opens in `AutoModelForSequenceClassification`.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from kiban import zoo
from kiban.adapt.lora import add_lora, merge_lora
from kiban.adopt.strategies.base import Fitted, Job, Task
from kiban.adopt.strategies.classifier import BATCH_SIZE, ClassifierPredictor, refuse_unless_text, train_classifier

EPOCHS = 3
MAX_LEN = 128
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


class LoraDecoder:
    """Only the adapters and the head learn."""

    name = "lora_decoder"
    learns = True

    def refusal(self, task: Task, traits: Any) -> str | None:
        return refuse_unless_text(task, traits) or (None if traits.causal else "needs a decoder")

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
        add_lora(loaded.module, rank=16, alpha=32, targets=TARGETS, generator=generator)
        loaded.module.get_submodule("score").requires_grad_(True)
        outcome = train_classifier(job, loaded, max_len=MAX_LEN, lr=5e-4, max_validation=100)
        merge_lora(loaded.module)
        return Fitted(predictor=ClassifierPredictor(loaded, MAX_LEN, self.name), steps=outcome.steps)


STRATEGY = LoraDecoder()
PREDICTOR = ClassifierPredictor
