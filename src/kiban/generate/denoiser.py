"""From a network that predicts noise to a denoiser, which says what the clean image may be.

Samplers see nothing but a denoiser. To change what all of them do, wrap it: `keep` does so for inpainting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kiban.nn.noise import NoiseSchedule, Prediction, check_prediction, to_x0

Network = Callable[..., Tensor]
"""network(x, timesteps, **condition): (B, C, H, W) of unit variance, (B,) float32 of 0 .. T-1, to (B, C', H, W)."""

Predictor = Callable[[Tensor, Tensor], Tensor]
"""A network whose condition is settled: (x, timesteps) to its prediction."""

Prepare = Callable[..., Predictor]
"""prepare(**condition): a network with its condition settled, of which x may have fewer rows, see `DiffusionModel.told`."""

Denoiser = Callable[[Tensor, float, float], Tensor]
"""denoiser(x, sigma, timestep): x = x0 + sigma * noise, (B, C, H, W), to what x0 is on average. The same shape out."""


@dataclass(frozen=True)
class DiffusionModel:
    """A network, the noise that it was trained with, what it predicts, and the dtype in which it takes x.

    prepare: makes what is asked in place of the network, for those that do once what the condition alone decides.
    """

    network: Network
    schedule: NoiseSchedule
    prediction: Prediction = "eps"
    dtype: torch.dtype = torch.float32
    prepare: Prepare | None = None

    def __post_init__(self) -> None:
        check_prediction(self.prediction)

    def told(self, condition: Mapping[str, Tensor], times: int) -> Predictor:
        """The network with its condition settled, which has times as many rows as x (B) and timesteps.

        The first B rows of the condition are asked of x, the next B of x again, and so on; all are answered in this order.
        """
        if self.prepare is not None:
            return self.prepare(**condition)
        return lambda x, timesteps: self.network(x.repeat(times, 1, 1, 1), timesteps.repeat(times), **condition)


def denoiser(predict: Predictor, prediction: Prediction) -> Denoiser:
    """The denoiser of a network that predicts prediction."""

    def denoise(x: Tensor, sigma: float, timestep: float) -> Tensor:
        alpha_bar = 1 / (1 + sigma**2)
        unit = x * alpha_bar**0.5
        timesteps = torch.full((len(x),), timestep, dtype=torch.float32, device=x.device)
        return to_x0(predict(unit, timesteps).to(x.dtype), unit, alpha_bar, prediction)

    return denoise


def keep(denoise: Denoiser, known: Tensor, mask: Tensor) -> Denoiser:
    """A denoiser that is sure of known where mask is False. known: (B, C, H, W), mask: (B, 1, H, W) bool.

    If x starts as known + sigma * noise there, a sampler takes it along the same noise at ever smaller sigma: what the
    rest sees of it is at every step as noisy as the rest is itself (Lugmayr et al. 2022, section 4.1, without resampling).
    """
    return lambda x, sigma, timestep: torch.where(mask, denoise(x, sigma, timestep), known)
