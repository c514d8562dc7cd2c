"""Learning curves: what more labels would bring, and how many test rows separate two models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DECAYS = np.linspace(0.1, 1.0, 19)


@dataclass(frozen=True)
class LearningCurve:
    """score = top - gap * rows^-decay, one (top, gap, decay) for each perturbed fit; the first is of the data themselves."""

    fits: NDArray[np.float64]  # (N, 3)
    noise: float

    def predict(self, rows: int) -> tuple[float, float, float]:
        """The expected score and its 95% interval, within 0..1."""
        scores = self.fits[:, 0] - self.fits[:, 1] * float(rows) ** -self.fits[:, 2]
        low, high = np.percentile(scores, (2.5, 97.5))
        value = float(np.clip(scores[0], 0, 1))
        return value, float(np.clip(min(low, value), 0, 1)), float(np.clip(max(high, value), 0, 1))


def fit_learning_curve(
    rows: Sequence[int], scores: Sequence[float], *, noise: float = 0.02, num_samples: int = 200, seed: int = 0
) -> LearningCurve:
    """A power law through three or more points (Hestness et al. 2017); scores never fall and never pass 1.

    noise: standard deviation of a measured score. The interval comes from fits to scores with such noise added.
    """
    x, y = np.asarray(rows, dtype=float), np.asarray(scores, dtype=float)
    draws = y + np.random.default_rng(seed).normal(0, noise, (num_samples, len(y)))
    return LearningCurve(np.asarray([_fit(x, draw) for draw in np.vstack((y[None], draws))]), noise)


def _fit(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float, float]:
    """Least squares in (top, gap) for each decay, the best decay; gap >= 0 and top <= 1."""
    best = (float("inf"), (float(y.mean()), 0.0, 1.0))
    for decay in DECAYS:
        basis = x**-decay
        slope, top = np.polyfit(basis, y, 1)
        gap = max(0.0, -float(slope))
        top = min(1.0, float(np.mean(y + gap * basis)))
        error = float(np.square(top - gap * basis - y).sum())
        if error < best[0] - 1e-12:
            best = (error, (top, gap, float(decay)))
    return best[1]


def rows_needed(only_a: int, only_b: int, rows: int, *, power: float = 0.8) -> int | None:
    """Test rows at which McNemar's test would tell two models apart, if they keep differing as they do now.

    only_a, only_b: rows that only one of them got right. Normal approximation with 5% two-sided level (Connor 1987).
    None if they differ in no row or equally often.
    """
    a, b = only_a / rows, only_b / rows
    if a == b:
        return None
    z_level, z_power = 1.959964, {0.8: 0.841621, 0.9: 1.281552}[power]
    discordant, difference = a + b, abs(a - b)
    root = z_level * math.sqrt(discordant) + z_power * math.sqrt(max(discordant - difference**2, 0.0))
    return math.ceil((root / difference) ** 2)
