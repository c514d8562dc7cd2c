"""The face of every way to adopt a model. A strategy never writes outside the folder it is given and never prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kiban.config import Progress, silent

TaskKind = Literal["single_label", "multi_label", "tagging", "pair", "text_to_text", "image"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be predicted. labels are in a fixed order; a target is an index into them for single_label and image.

    language: of the texts, or of the labels of pictures.
    """

    kind: TaskKind
    labels: tuple[str, ...]
    language: Literal["ja", "en", "mixed", "other"]
    length_p95: int  # characters of an input or pixels of its shorter side, 95th percentile


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Inputs and targets side by side. For text tasks an input is a str; for "pair" a tuple of two; for "image" a path.

    targets: int (single_label, image), tuple of ints (multi_label), list of tags (tagging), float (pair), str
    (text_to_text).
    """

    inputs: Sequence[Any]
    targets: Sequence[Any]

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One strategy applied to one model of the catalogue (or a folder); model is None for what needs none."""

    strategy: str
    model: str | None
    path: Path | None = None  # where the weights lie
    licence: str = "unknown"
    commercial_use: bool | None = None

    @property
    def id(self) -> str:
        return f"{self.strategy}:{Path(self.model).name}" if self.model else self.strategy


@dataclass(frozen=True, kw_only=True)
class Job:
    """One fit. max_steps bounds optimiser steps; an interrupted fit resumes from checkpoints in the folder work."""

    task: Task
    candidate: Candidate
    train: Rows
    validation: Rows
    max_steps: int
    seed: int
    work: Path
    progress: Progress = silent
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A predictor and what fitting it took."""

    predictor: Predictor
    steps: int


class Predictor(Protocol):
    """A model that answers. It can be saved to a folder that opens in the tools of its kind and be loaded back."""

    labels: tuple[str, ...]

    def predict(self, inputs: Sequence[Any]) -> NDArray[np.float64]:
        """Probabilities, (N, number of labels), rows sum to 1 (single_label, image). Deterministic."""
        ...

    def save(self, folder: Path) -> None:
        """Write the folder; it must not exist. Raises KibanError if it does."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Predictor:
        """Open what save wrote, with identical predictions."""
        ...


class Strategy(Protocol):
    """One way to adopt."""

    name: str
    learns: bool  # False if the training rows do not matter (zero-shot)

    def refusal(self, task: Task, traits: Any) -> str | None:
        """Why this strategy cannot serve the task with a model of these Traits (None: no model); None if it can."""
        ...

    def default_steps(self, train_rows: int) -> int:
        """Optimiser steps of a full fit on this many rows; 0 if it has none."""
        ...

    def reads(self, train_rows: int, validation_rows: int) -> int:
        """Rows that a fit passes through the model beside its steps: to embed them, or to evaluate once."""
        ...

    def fit(self, job: Job) -> Fitted:
        """Fit on job.train alone; job.validation may steer early stopping; the test rows are never seen."""
        ...
