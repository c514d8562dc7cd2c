"""Learning-rate schedules: pure functions of the step, giving a factor from 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Callable

from kiban.config import did_you_mean
from kiban.errors import ConfigError

Schedule = Callable[[float], float]  # progress after warm-up, 0..1, to a factor


def linear(progress: float) -> float:
    """Straight down to 0."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """Half a cosine, down to a tenth (Brown et al. 2020, appendix B)."""
    return 0.1 + 0.45 * (1.0 + math.cos(math.pi * progress))


def constant(progress: float) -> float:
    """Always 1."""
    return 1.0


SCHEDULES: dict[str, Schedule] = {"linear": linear, "cosine": cosine, "constant": constant}


def factor(name: str, step: int, *, steps: int, warmup: float) -> float:
    """Factor for a step counted from 0. warmup is the share of steps over which the rate rises in a straight line.

    Raises ConfigError if the schedule is unknown.
    """
    if name not in SCHEDULES:
        raise ConfigError("schedule", field=name, why="unknown", hint=did_you_mean(name, SCHEDULES))
    rising = max(1, round(warmup * steps))
    if warmup and step < rising:
        return (step + 1) / rising
    return SCHEDULES[name]((step - rising) / max(1, steps - rising) if warmup else step / max(1, steps))
