"""Learning-rate schedules: pure functions of the progress, giving a factor from 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Callable

from kiban.config import did_you_mean
from kiban.errors import ConfigError

# Progress after warm-up (0..1) and the share of the run that was warm-up, to a factor.
Schedule = Callable[[float, float], float]
DECAY = 0.4  # share of a WSD run in which the rate falls


def linear(progress: float, warmup: float) -> float:
    """Straight down to 0."""
    return 1.0 - progress


def cosine(progress: float, warmup: float) -> float:
    """Half a cosine, down to a tenth (Brown et al. 2020, appendix B)."""
    return 0.1 + 0.45 * (1.0 + math.cos(math.pi * progress))


def constant(progress: float, warmup: float) -> float:
    """Always 1."""
    return 1.0


def rsqrt(progress: float, warmup: float) -> float:
    """1 / sqrt(step), beginning at 1 where warm-up ends (Raffel et al. 2020, section 3.1.2)."""
    return math.sqrt(warmup / (warmup + progress * (1.0 - warmup))) if warmup else 1.0


def wsd(progress: float, warmup: float) -> float:
    """Warm-up, stable, decay: flat, then straight down to 0 in the last part (Hu et al. 2024, MiniCPM, section 4).

    Where a run ends may be decided late: nothing before the decay depends on it.
    """
    done = warmup + progress * (1.0 - warmup)
    return min(1.0, max(0.0, (1.0 - done) / DECAY))


SCHEDULES: dict[str, Schedule] = {f.__name__: f for f in (linear, cosine, constant, rsqrt, wsd)}


def factor(name: str, step: int, *, steps: int, warmup: float) -> float:
    """Factor for a step counted from 0. warmup is the share of steps over which the rate rises in a straight line.

    Raises ConfigError if the schedule is unknown.
    """
    if name not in SCHEDULES:
        raise ConfigError("schedule", field=name, why="unknown", hint=did_you_mean(name, SCHEDULES))
    rising = max(1, round(warmup * steps)) if warmup else 0
    if step < rising:
        return (step + 1) / rising
    return SCHEDULES[name]((step - rising) / max(1, steps - rising), rising / steps)
