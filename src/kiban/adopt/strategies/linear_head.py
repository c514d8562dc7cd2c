"""A frozen sentence encoder and a linear head: minutes become seconds, and the encoder can be shared by many tasks.

The folder is a sentence-transformers pipeline (encoder, mean pooling, normalisation, a dense layer to the logits).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kiban import zoo
from kiban.adapt.heads import LinearHead, fit_linear_head
from kiban.adopt.strategies.base import Fitted, Job, Task
from kiban.adopt.strategies.classifier import refuse_unless_text
from kiban.engine.encoder import EncoderPlan
from kiban.files import read_json
from kiban.weights.safetensors import read_safetensors, tensor_bytes

MAX_LEN = 256


class LinearHeadPredictor:
    """softmax(W e(text) + b), e being the normalised mean of the encoder's last states."""

    def __init__(
        self, loaded: zoo.Loaded, head: LinearHead, labels: Sequence[str], max_len: int, strategy: str = "linear_head"
    ) -> None:
        self.loaded, self.head, self.labels, self.max_len = loaded, head, tuple(labels), max_len
        self.strategy = strategy
        self.plan = EncoderPlan(loaded, max_len=max_len)

    def predict(self, inputs: Sequence[Any]) -> NDArray[np.float64]:
        """Probabilities (N, C)."""
        features = np.asarray(self.plan.embed(list(inputs), normalise=True), dtype=np.float64)
        logits = torch.from_numpy(features @ self.head.weight.T + self.head.bias)
        return np.asarray(logits.softmax(-1).numpy(), dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write a folder that `SentenceTransformer` opens; its encode() gives the logits."""
        dim = self.head.weight.shape[1]
        dense = {
            "linear.weight": torch.from_numpy(self.head.weight).float(),
            "linear.bias": torch.from_numpy(self.head.bias).float(),
        }
        files: dict[str, str | bytes] = {
            "modules.json": _json([_module(i, name) for i, name in enumerate(MODULES)]),
            "sentence_bert_config.json": _json({"max_seq_length": self.max_len, "do_lower_case": False}),
            "1_Pooling/config.json": _json({"word_embedding_dimension": dim, "pooling_mode_mean_tokens": True}),
            "3_Dense/config.json": _json(
                {
                    "in_features": dim,
                    "out_features": len(self.labels),
                    "bias": True,
                    "activation_function": "torch.nn.modules.linear.Identity",
                }
            ),
            "3_Dense/model.safetensors": tensor_bytes(dense),
        }
        manifest = {"strategy": self.strategy, "labels": list(self.labels), "max_len": self.max_len}
        zoo.save(self.loaded, folder, files=files, manifest=manifest)

    @classmethod
    def load(cls, folder: Path) -> LinearHeadPredictor:
        loaded, manifest = zoo.load(folder), read_json(folder / "kiban.json")
        dense = read_safetensors(folder / "3_Dense" / "model.safetensors")
        weight, bias = (dense[f"linear.{name}"].double().numpy() for name in ("weight", "bias"))
        head = LinearHead(weight=weight, bias=bias, strength=float("nan"))
        return cls(loaded, head, manifest["labels"], int(manifest["max_len"]), manifest["strategy"])


MODULES = ("Transformer", "Pooling", "Normalize", "Dense")


def _module(index: int, name: str) -> dict[str, Any]:
    path = "" if index == 0 else f"{index}_{name}"
    return {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def refuse_unless_encoder(task: Task, traits: Any) -> str | None:
    """The refusals of what stands on embeddings of texts. Those of a model of pictures and texts are of their names."""
    if refused := refuse_unless_text(task, traits):
        return refused
    fits = "embedding" in traits.writes and not traits.causal and "image" not in traits.reads
    return None if fits else "needs an encoder of texts"


class LinearHeadStrategy:
    """See the module's first lines."""

    name = "linear_head"
    learns = True

    def refusal(self, task: Task, traits: Any) -> str | None:
        return refuse_unless_encoder(task, traits)

    def default_steps(self, train_rows: int) -> int:
        return 0

    def reads(self, train_rows: int, validation_rows: int) -> int:
        return train_rows

    def fit(self, job: Job) -> Fitted:
        loaded, head, max_len = fit_head(job, MAX_LEN)
        return Fitted(predictor=LinearHeadPredictor(loaded, head, job.task.labels, max_len), steps=0)


def fit_head(job: Job, max_len: int) -> tuple[zoo.Loaded, LinearHead, int]:
    """The candidate's encoder, a head fitted on its embeddings of the training rows, and max_len or what it can read."""
    loaded = zoo.load(job.candidate.path or str(job.candidate.model))
    max_len = min(max_len, loaded.config.max_seq_len)
    plan = EncoderPlan(loaded, max_len=max_len)
    features = []
    for start in range(0, len(job.train), 128):
        features.append(np.asarray(plan.embed(list(job.train.inputs[start : start + 128]), normalise=True)))
        job.progress("embedding", min(start + 128, len(job.train)), len(job.train))
    head = fit_linear_head(
        np.concatenate(features).astype(np.float64),
        np.asarray(job.train.targets),
        num_labels=len(job.task.labels),
        seed=job.seed,
    )
    # Saved as float32, so the predictor in hand uses the same rounded numbers as the one that is loaded later.
    weight, bias = (part.astype(np.float32).astype(np.float64) for part in (head.weight, head.bias))
    return loaded, LinearHead(weight=weight, bias=bias, strength=head.strength), max_len


STRATEGY = LinearHeadStrategy()
PREDICTOR = LinearHeadPredictor
