"""How a strategy trains: in the job's folder, stopped early by the validation rows, resumable with the race."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from kiban.adopt.strategies.base import Job
from kiban.data.loader import Loader
from kiban.objectives.base import Objective
from kiban.train.settings import Hooks, TrainConfig, TrainResult
from kiban.train.trainer import Trainer


def run(
    job: Job,
    objective: Objective,
    module: nn.Module,
    loader: Loader[Any],
    macro_f1: Callable[[], float],
    *,
    batch_size: int,
    **settings: Any,
) -> TrainResult:
    """Train module; the parameters of the best macro_f1 are put back. settings: other fields of `TrainConfig`.

    Raises KeyboardInterrupt where it is told to stop: the race ends there, and can be resumed from the last checkpoint.
    """
    config = TrainConfig(
        steps=job.max_steps,
        batch_size=batch_size,
        micro_batch_size=batch_size,
        checkpoint_every=max(20, job.max_steps // 4),
        seed=job.seed,
        **settings,
    )
    hooks = Hooks(evaluate=lambda: {"macro_f1": macro_f1()}, best_metric="macro_f1")
    result = Trainer(objective, module, loader, config, folder=job.work, hooks=hooks, progress=job.progress).run()
    if result.stopped_by == "sigterm":
        raise KeyboardInterrupt
    return result
