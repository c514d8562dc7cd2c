"""A small classifier with dropout on made-up rows, and runs of it in processes of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kiban.data.loader import Loader
from kiban.objectives.classification import Classification
from kiban.train.settings import Hooks, TrainConfig
from kiban.train.trainer import Trainer

Row = tuple[list[int], int]


class Small(nn.Module):
    """Mean of embeddings, dropout, a layer: (B, T) to (B, 3)."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embed, self.dropout, self.out = nn.Embedding(20, 8), nn.Dropout(dropout), nn.Linear(8, 3)

    def forward(self, tokens: Tensor, *, mask: Tensor) -> Tensor:
        weights = mask[..., None].float()
        mean = (self.embed(tokens) * weights).sum(1) / weights.sum(1)
        return torch.as_tensor(self.out(self.dropout(mean)))


def rows(count: int = 30) -> list[Row]:
    """Token ids of unequal length; the class is that of the first token."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    texts = [torch.randint(1, 20, (length,), generator=generator).tolist() for length in lengths]
    return [(text, text[0] % 3) for text in texts]


def collate(some: list[Row]) -> dict[str, Tensor]:
    from kiban.inputs.batch import pad_batch

    tokens, mask = pad_batch([text for text, _ in some], 0)
    return {"tokens": tokens, "mask": mask, "labels": torch.tensor([label for _, label in some])}


def make(folder: Path | None = None, *, module: nn.Module | None = None, **changes: Any) -> Trainer:
    """A trainer of 23 steps: with 30 rows in batches of 8, resumes fall in the middle of epochs."""
    module = module or Small()
    values = {
        "steps": 23,
        "batch_size": 8,
        "micro_batch_size": 3,
        "lr": 0.05,
        "precision": "fp32",
        "checkpoint_every": 4,
    }
    extras = {name: changes.pop(name) for name in ("progress", "parallel") if name in changes}
    hooks = Hooks(**{name: changes.pop(name) for name in ("evaluate", "best_metric", "sample") if name in changes})
    loader = Loader(rows(), collate, batch_size=8, seed=1)
    config = TrainConfig(**{**values, **changes})
    return Trainer(Classification(module), module, loader, config, folder=folder, hooks=hooks, **extras)


@pytest.fixture
def trainer_of() -> Callable[..., Trainer]:
    return make
