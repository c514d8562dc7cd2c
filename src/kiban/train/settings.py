"""What a training run is told, and what it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from kiban.errors import ConfigError
from kiban.train import optim
from kiban.train.precision import Precision


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run. Batches are counted in rows; micro_batch_size bounds memory and changes nothing else.

    seconds: a time budget; with schedule "wsd" the rate begins to fall when the end comes near, and steps is what was
    expected; most_steps: where it ends in any case, 0 for nowhere. warmup: share of the steps. ema: decay of the averaged
    parameters, which then are the ones evaluated and kept, 0 for none. recompute: save memory by computing the blocks twice.
    eval_every, sample_every, checkpoint_every: steps, 0 for never. patience: evaluations without a better best_metric before
    it stops, 0 for no early stop.
    """

    steps: int
    batch_size: int
    micro_batch_size: int
    lr: float
    seconds: float = 0.0
    most_steps: int = 0
    optimizer: optim.Name = "adamw"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = 0.1
    schedule: str = "linear"
    clip_norm: float = 1.0
    ema: float = 0.0
    precision: Precision = "auto"
    recompute: bool = False
    compile: bool = False
    eval_every: int = 0
    sample_every: int = 0
    patience: int = 0
    checkpoint_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError("training", field=name, why="must be at least 1")
        if not self.lr > 0 or not self.clip_norm > 0:
            raise ConfigError("training", field="lr", why="lr and clip_norm must be above 0")
        if not 0 <= self.ema < 1:
            raise ConfigError("training", field="ema", why="must be at least 0 and below 1")
        if self.seconds and self.schedule != "wsd":
            why = f"{self.schedule!r} must know its steps beforehand"
            raise ConfigError("training", field="schedule", why=why, hint='a time budget needs schedule "wsd"')


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How training ended. best_step and best_metrics are of the parameters that the module now holds."""

    steps: int
    tokens: int
    best_step: int
    best_metrics: dict[str, float]
    seconds: float
    stopped_by: Literal["steps", "patience", "sigterm"]


@dataclass
class State:
    """What a checkpoint holds besides tensors. steps: where the run will end, as planned so far."""

    steps: int
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    first_seconds: float = 0.0
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    bad_steps: int = 0
    waited: int = 0


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a run calls besides training.

    evaluate gives metrics; with best_metric (larger is better) the best parameters are put back at the end. sample gives a
    text that shows what the model does by now.
    """

    evaluate: Callable[[], dict[str, float]] | None = None
    best_metric: str | None = None
    sample: Callable[[], str] | None = None
