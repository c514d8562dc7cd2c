"""What fine-tuning an encoder and LoRA on a decoder share: the training run, and the predictor of its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiban import zoo
from kiban.adopt.strategies.base import Job, Task
from kiban.config import Traits
from kiban.data.loader import Loader
from kiban.evaluate.metrics import macro_f1
from kiban.inputs.tokenizer import pad_batch
from kiban.objectives.classification import Classification
from kiban.train.trainer import TrainConfig, Trainer, TrainResult
from kiban.weights.folder import read_json, verify_folder

BATCH_SIZE = 16
PREDICT_BATCH = 32


class ClassifierPredictor:
    """A body with a sequence-classification head. Texts are cut after max_len tokens, as in training."""

    def __init__(self, loaded: zoo.Loaded, max_len: int, strategy: str) -> None:
        self.loaded, self.max_len, self.strategy = loaded, max_len, strategy
        self.labels = loaded.labels
        loaded.module.eval()

    @torch.inference_mode()
    def predict(self, inputs: Sequence[Any]) -> NDArray[np.float64]:
        """Probabilities (N, C)."""
        assert self.loaded.tokenizer is not None
        rows = self.loaded.tokenizer.encode_batch(list(inputs), max_len=self.max_len)
        logits = torch.zeros(len(rows), len(self.loaded.labels), dtype=torch.float64)
        # Rows of like length share a batch, so little is spent on padding.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(order), PREDICT_BATCH):
            chosen = order[start : start + PREDICT_BATCH]
            tokens, mask = pad_batch([rows[i] for i in chosen], pad_id(self.loaded))
            logits[chosen] = self.loaded.module(tokens, mask=mask).double()
        return np.asarray(logits.softmax(-1).numpy(), dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write a folder that `AutoModelForSequenceClassification` opens."""
        zoo.save(self.loaded, folder, manifest={"strategy": self.strategy, "max_len": self.max_len})

    @classmethod
    def load(cls, folder: Path) -> ClassifierPredictor:
        verify_folder(folder)
        manifest = read_json(folder / "kiban.json")
        return cls(zoo.load(folder, head="sequence_classification"), int(manifest["max_len"]), manifest["strategy"])


def pad_id(loaded: zoo.Loaded) -> int:
    """The id that fills short rows; masked out, so any id serves where the tokenizer has none."""
    return loaded.tokenizer.pad_id or 0 if loaded.tokenizer else 0


def collate(loaded: zoo.Loaded, rows: Sequence[tuple[list[int], int]]) -> dict[str, Tensor]:
    """Token ids and targets to a batch: tokens (B, T), mask (B, T), labels (B,)."""
    tokens, mask = pad_batch([ids for ids, _ in rows], pad_id(loaded))
    return {"tokens": tokens, "mask": mask, "labels": torch.tensor([target for _, target in rows])}


def train_classifier(job: Job, loaded: zoo.Loaded, *, max_len: int, lr: float, max_validation: int) -> TrainResult:
    """Train loaded.module on job.train; the parameters of the best validation macro-F1 are kept."""
    assert loaded.tokenizer is not None
    encoded = loaded.tokenizer.encode_batch(list(job.train.inputs), max_len=max_len)
    loader = Loader(
        list(zip(encoded, job.train.targets, strict=True)),
        lambda rows: collate(loaded, rows),
        batch_size=BATCH_SIZE,
        seed=job.seed,
        length_of=lambda row: len(row[0]),
    )
    held = ClassifierPredictor(loaded, max_len, job.candidate.strategy)
    inputs = list(job.validation.inputs)[:max_validation]
    truth = np.asarray(job.validation.targets[:max_validation])

    def evaluate() -> dict[str, float]:
        predicted = held.predict(inputs).argmax(-1)
        return {"macro_f1": macro_f1(truth, predicted, len(job.task.labels))}

    config = TrainConfig(
        steps=job.max_steps,
        batch_size=BATCH_SIZE,
        micro_batch_size=BATCH_SIZE,
        lr=lr,
        eval_every=max(1, min(job.max_steps, -(-len(job.train) // BATCH_SIZE))),
        patience=3,
        checkpoint_every=max(20, job.max_steps // 4),
        seed=job.seed,
    )
    objective = Classification(loaded.module)
    trainer = Trainer(
        objective,
        loaded.module,
        loader,
        config,
        folder=job.work,
        evaluate=evaluate,
        best_metric="macro_f1",
        progress=job.progress,
    )
    result = trainer.run()
    if result.stopped_by == "sigterm":
        raise KeyboardInterrupt  # a checkpoint is saved; the race ends here and can be resumed
    return result


def refuse_unless_text(task: Task, traits: Traits | None) -> str | None:
    """The refusals that every text classifier shares."""
    if task.kind != "single_label":
        return f"not written for {task.kind} tasks"
    if traits is None or "text" not in traits.reads:
        return "needs a model that reads text"
    return None
