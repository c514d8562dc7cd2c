"""How much noise a diffusion model sees at each timestep, and what its network may predict.

x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps, t = 0 .. T-1 (Ho et al. 2020, eq. 4). Divided by sqrt(alpha_bar_t)
that is x0 + sigma_t eps with sigma_t = sqrt(1 / alpha_bar_t - 1), the form in which images are sampled here.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kiban.config import did_you_mean
from kiban.errors import ConfigError

Prediction = Literal["eps", "v", "x0"]
Floats = NDArray[np.float64]

LEAST_ALPHA_BAR = 2.0**-24  # the smallest positive number in half precision; sigma is then 4096
MOST_BETA = 0.999  # of the cosine schedule


class NoiseSchedule:
    """alpha_bars, sigmas, snr (signal-to-noise ratios): (T,) float64, by timestep.

    Raises ConfigError if alpha_bars do not fall from below 1 to above 0.
    """

    def __init__(self, alpha_bars: Floats) -> None:
        if not len(alpha_bars) or not (alpha_bars[-1] > 0 and alpha_bars[0] < 1 and (np.diff(alpha_bars) < 0).all()):
            raise ConfigError("noise schedule", why="alpha_bars must fall from below 1 to above 0")
        self.alpha_bars = alpha_bars
        self.snr = alpha_bars / (1 - alpha_bars)
        self.sigmas = self.snr**-0.5

    @classmethod
    def of_betas(cls, betas: Floats) -> NoiseSchedule:
        """alpha_bar_t = product of 1 - beta up to t. Raises ConfigError if a beta is not between 0 and 1."""
        return cls(np.cumprod(1 - betas, dtype=np.float64))

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.alpha_bars)

    def sigmas_at(self, timesteps: Floats) -> Floats:
        """Of timesteps that may lie between two; straight lines connect them."""
        return np.interp(timesteps, np.arange(self.num_timesteps), self.sigmas)

    def timesteps_at(self, sigmas: Floats) -> Floats:
        """Of sigmas that may lie between two; straight lines in log sigma connect them, ends stay ends."""
        return np.interp(np.log(sigmas), np.log(self.sigmas), np.arange(self.num_timesteps, dtype=np.float64))


def linear(num_timesteps: int = 1000, *, first: float = 1e-4, last: float = 0.02) -> NoiseSchedule:
    """Betas in a straight line (Ho et al. 2020, section 4)."""
    return NoiseSchedule.of_betas(np.linspace(first, last, num_timesteps))


def scaled_linear(num_timesteps: int = 1000, *, first: float = 0.00085, last: float = 0.012) -> NoiseSchedule:
    """Square roots of betas in a straight line; the defaults are those of Stable Diffusion."""
    return NoiseSchedule.of_betas(np.linspace(first**0.5, last**0.5, num_timesteps) ** 2)


def cosine(num_timesteps: int = 1000) -> NoiseSchedule:
    """alpha_bar falls like a squared cosine (Nichol & Dhariwal 2021, eq. 17), no beta above 0.999."""
    angles = (np.arange(num_timesteps + 1) / num_timesteps + 0.008) / 1.008 * (math.pi / 2)
    alpha_bars = np.cos(angles) ** 2
    return NoiseSchedule.of_betas(np.minimum(1 - alpha_bars[1:] / alpha_bars[:-1], MOST_BETA))


def zero_terminal_snr(schedule: NoiseSchedule) -> NoiseSchedule:
    """The schedule stretched so that the last timestep is noise alone (Lin et al. 2023, algorithm 1).

    Deviation: alpha_bar ends at 2^-24 instead of 0, so that sigma stays finite; the network has to predict v or x0.
    """
    roots = schedule.alpha_bars**0.5
    roots = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))
    return NoiseSchedule(np.maximum(roots**2, LEAST_ALPHA_BAR))


def check_prediction(prediction: str) -> None:
    """Raises ConfigError if a network cannot predict this."""
    if prediction not in get_args(Prediction):
        hint = did_you_mean(prediction, get_args(Prediction))
        raise ConfigError("diffusion", field="prediction", why=f"{prediction!r} is unknown", hint=hint)


def target(x0: Tensor, eps: Tensor, alpha_bar: Tensor | float, prediction: Prediction) -> Tensor:
    """What the network should say: the noise, v (Salimans & Ho 2022, appendix D) or the clean data.

    alpha_bar: broadcasts to x0.
    """
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return x0
    return alpha_bar**0.5 * eps - (1 - alpha_bar) ** 0.5 * x0


def to_x0(output: Tensor, x: Tensor, alpha_bar: Tensor | float, prediction: Prediction) -> Tensor:
    """The clean data that a prediction stands for. x: the noisy data, of unit variance where x0 is."""
    if prediction == "x0":
        return output
    if prediction == "eps":
        return (x - (1 - alpha_bar) ** 0.5 * output) / alpha_bar**0.5
    return alpha_bar**0.5 * x - (1 - alpha_bar) ** 0.5 * output


def from_x0(x0: Tensor, x: Tensor, alpha_bar: Tensor | float, prediction: Prediction) -> Tensor:
    """The prediction that stands for this clean data: the inverse of `to_x0`."""
    if prediction == "x0":
        return x0
    if prediction == "eps":
        return (x - alpha_bar**0.5 * x0) / (1 - alpha_bar) ** 0.5
    return (alpha_bar**0.5 * x - x0) / (1 - alpha_bar) ** 0.5
