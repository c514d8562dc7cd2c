"""Full fine-tuning of an encoder (Devlin et al. 2019, section 4.1), from a head that was fitted first.

The head stands on the mean of the last states, as in `linear_head`, and the folder is of the same kind.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from kiban.adapt.heads import SentenceClassifier
from kiban.adopt.strategies.base import Fitted, Job, Task
from kiban.adopt.strategies.classifier import BATCH_SIZE, tokenizer_of, train_classifier
from kiban.adopt.strategies.linear_head import LinearHeadPredictor, fit_head, refuse_unless_encoder

EPOCHS = 6
MAX_LEN = 128
MAX_VALIDATION = 200


class FinetuneEncoder:
    """Every weight learns."""

    name = "finetune_encoder"
    learns = True

    def refusal(self, task: Task, traits: Any) -> str | None:
        return refuse_unless_encoder(task, traits)

    def default_steps(self, train_rows: int) -> int:
        return EPOCHS * math.ceil(train_rows / BATCH_SIZE)

    def reads(self, train_rows: int, validation_rows: int) -> int:
        return train_rows + min(MAX_VALIDATION, validation_rows)

    def fit(self, job: Job) -> Fitted:
        loaded, head, max_len = fit_head(job, MAX_LEN)
        with torch.random.fork_rng(devices=[]):
            module = SentenceClassifier(loaded.module, head)
        # A small encoder that starts from a fitted head takes a larger step than the 2e-5 of BERT-base.
        tokenizer = tokenizer_of(loaded)
        outcome = train_classifier(job, module, tokenizer, max_len=max_len, lr=1e-4, max_validation=MAX_VALIDATION)
        predictor = LinearHeadPredictor(loaded, module.head(), job.task.labels, max_len, self.name)
        return Fitted(predictor=predictor, steps=outcome.steps)


STRATEGY = FinetuneEncoder()
PREDICTOR = LinearHeadPredictor
