"""What fine-tuning an encoder and LoRA on a decoder share: the training run, and outputs in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kiban import zoo
from kiban.adopt.strategies import training
from kiban.adopt.strategies.base import Job, Task
from kiban.config import Traits
from kiban.data.loader import Loader
from kiban.errors import ConfigError
from kiban.evaluate.metrics import macro_f1
from kiban.files import read_json
from kiban.inputs.tokenizer import Tokenizer, pad_batch
from kiban.objectives.classification import Classification
from kiban.train.precision import choose
from kiban.train.settings import TrainResult

BATCH_SIZE = 16
PREDICT_BATCH = 32


class ClassifierPredictor:
    """A body with a sequence-classification head. Texts are cut after max_len tokens, as in training."""

    def __init__(self, loaded: zoo.Loaded, max_len: int, strategy: str) -> None:
        self.loaded, self.max_len, self.strategy = loaded, max_len, strategy
        self.labels = loaded.labels
        loaded.module.eval()

    def predict(self, inputs: Sequence[Any]) -> NDArray[np.float64]:
        """Probabilities (N, C)."""
        if not inputs:
            return np.zeros((0, len(self.labels)))
        logits = outputs(self.loaded.module, tokenizer_of(self.loaded), inputs, self.max_len)
        return np.asarray(logits.double().softmax(-1).numpy(), dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write a folder that `AutoModelForSequenceClassification` opens."""
        zoo.save(self.loaded, folder, manifest={"strategy": self.strategy, "max_len": self.max_len})

    @classmethod
    def load(cls, folder: Path) -> ClassifierPredictor:
        manifest = read_json(folder / "kiban.json")
        return cls(zoo.load(folder, head="sequence_classification"), int(manifest["max_len"]), manifest["strategy"])


def tokenizer_of(loaded: zoo.Loaded) -> Tokenizer:
    """The model's tokenizer. Raises ConfigError if its files have none."""
    if loaded.tokenizer is None:
        raise ConfigError(loaded.source, why="has no tokenizer, which a text task needs")
    return loaded.tokenizer


@torch.inference_mode()
def outputs(
    function: Callable[..., Tensor], tokenizer: Tokenizer, inputs: Sequence[Any], max_len: int, *, fast: bool = False
) -> Tensor:
    """function(tokens, mask=mask) for all texts, one or more, (N, C) float32. fast: in bf16 where that pays."""
    rows = tokenizer.encode_batch(list(inputs), max_len=max_len)
    found: dict[int, Tensor] = {}
    # Rows of like length share a batch, so little is spent on padding.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), PREDICT_BATCH):
        chosen = order[start : start + PREDICT_BATCH]
        tokens, mask = pad_batch([rows[i] for i in chosen], tokenizer.pad_id or 0)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            found.update(zip(chosen, function(tokens, mask=mask).float(), strict=True))
    return torch.stack([found[i] for i in range(len(rows))])


def train_classifier(
    job: Job, module: nn.Module, tokenizer: Tokenizer, *, max_len: int, lr: float, max_validation: int
) -> TrainResult:
    """Train module, (tokens, mask) to logits, on job.train; the parameters of the best validation macro-F1 are kept."""
    encoded = tokenizer.encode_batch(list(job.train.inputs), max_len=max_len)

    def collate(rows: Sequence[tuple[list[int], int]]) -> dict[str, Tensor]:
        tokens, mask = pad_batch([ids for ids, _ in rows], tokenizer.pad_id or 0)
        return {"tokens": tokens, "mask": mask, "labels": torch.tensor([target for _, target in rows])}

    loader = Loader(
        list(zip(encoded, job.train.targets, strict=True)),
        collate,
        batch_size=BATCH_SIZE,
        seed=job.seed,
        length_of=lambda row: len(row[0]),
    )
    inputs = list(job.validation.inputs)[:max_validation]
    truth = np.asarray(job.validation.targets[:max_validation])

    fast = choose("auto", module) == "bf16"  # only which step was best hangs on it

    def score() -> float:
        predicted = outputs(module, tokenizer, inputs, max_len, fast=fast).argmax(-1).numpy()
        return macro_f1(truth, predicted, len(job.task.labels))

    return training.run(
        job,
        Classification(module),
        module,
        loader,
        score,
        batch_size=BATCH_SIZE,
        lr=lr,
        eval_every=max(1, min(job.max_steps, -(-len(job.train) // BATCH_SIZE))),
        patience=3,
    )


def refuse_unless_text(task: Task, traits: Traits | None) -> str | None:
    """The refusals that every text classifier shares."""
    if task.kind != "single_label":
        return f"not written for {task.kind} tasks"
    if traits is None or "text" not in traits.reads:
        return "needs a model that reads text"
    return None
