"""LoRA (Hu et al. 2021) on every linear layer of a decoder, with a classification head on the last token.

The head starts from a linear probe of the frozen decoder. The adapters are merged before saving, so the folder opens in
`AutoModelForSequenceClassification`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from kiban import zoo
from kiban.adapt.heads import LinearHead, fit_linear_head, start_from
from kiban.adapt.lora import add_lora, merge_lora
from kiban.adopt.strategies.base import Fitted, Job, Task
from kiban.adopt.strategies.classifier import (
    BATCH_SIZE,
    ClassifierPredictor,
    outputs,
    refuse_unless_text,
    tokenizer_of,
    train_classifier,
)
from kiban.families.llama import LlamaClassifier
from kiban.train.precision import choose

EPOCHS = 3
MAX_LEN = 128
MAX_VALIDATION = 100
PROBE_ROWS = 512  # a start needs no more
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


class LoraDecoder:
    """Only the adapters and the head learn."""

    name = "lora_decoder"
    learns = True

    def refusal(self, task: Task, traits: Any) -> str | None:
        return refuse_unless_text(task, traits) or (None if traits.causal else "needs a decoder")

    def default_steps(self, train_rows: int) -> int:
        return EPOCHS * math.ceil(train_rows / BATCH_SIZE)

    def reads(self, train_rows: int, validation_rows: int) -> int:
        return min(PROBE_ROWS, train_rows) + min(MAX_VALIDATION, validation_rows)

    def fit(self, job: Job) -> Fitted:
        generator = torch.Generator().manual_seed(job.seed)
        loaded = zoo.load(
            job.candidate.path or str(job.candidate.model),
            head="sequence_classification",
            labels=job.task.labels,
            generator=generator,
        )
        module, tokenizer = loaded.module, tokenizer_of(loaded)
        assert isinstance(module, LlamaClassifier)
        max_len = min(MAX_LEN, loaded.config.max_seq_len)
        start_from(module.score, _probe(module, loaded, job, max_len))
        add_lora(module, rank=16, alpha=32, targets=TARGETS, generator=generator)
        module.score.requires_grad_(True)
        outcome = train_classifier(job, module, tokenizer, max_len=max_len, lr=5e-4, max_validation=MAX_VALIDATION)
        merge_lora(module)
        return Fitted(predictor=ClassifierPredictor(loaded, max_len, self.name), steps=outcome.steps)


def _probe(module: LlamaClassifier, loaded: zoo.Loaded, job: Job, max_len: int) -> LinearHead:
    """A head (C, D) without bias, fitted on the states of the last tokens."""
    fast, parts = choose("auto", module) == "bf16", []
    inputs, targets = list(job.train.inputs[:PROBE_ROWS]), np.asarray(job.train.targets[:PROBE_ROWS])
    for start in range(0, len(inputs), 2 * BATCH_SIZE):
        some = inputs[start : start + 2 * BATCH_SIZE]
        parts.append(outputs(module.features, tokenizer_of(loaded), some, max_len, fast=fast).double().numpy())
        job.progress("probe", start + len(some), len(inputs))
    features = np.concatenate(parts)
    size = float(np.linalg.norm(features, axis=-1).mean())  # logistic regression wants features of length about 1
    head = fit_linear_head(features / size, targets, num_labels=len(job.task.labels), seed=job.seed, bias=False)
    return LinearHead(head.weight / size, head.bias, head.strength)


STRATEGY = LoraDecoder()
PREDICTOR = ClassifierPredictor
