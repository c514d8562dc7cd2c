"""From noise to an image, step by step, given a denoiser: plain functions that yield after each step.

All of them follow dx/dsigma = (x - D(x, sigma)) / sigma in x = x0 + sigma * noise (Karras et al. 2022, eq. 3). So DDIM is
Euler's method and DDPM its ancestral form: only the noise levels differ, see `schedules`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from kiban.generate.denoiser import Denoiser
from kiban.generate.schedules import Steps, check
from kiban.nn.noise import Prediction, from_x0, to_x0

Draw = Callable[[], Tensor]
"""Standard noise of the shape of x, new at each call."""

# Weights of the newest prediction and those before it (Liu et al. 2022, eq. 12; Adams-Bashforth).
PLMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


class Step(NamedTuple):
    """The state after a step, x0 + sigma * noise, and the clean image that the denoiser saw in it."""

    x: Tensor
    x0: Tensor


Sampler = Callable[[Denoiser, Tensor, Steps], Iterator[Step]]


def euler(denoise: Denoiser, x: Tensor, steps: Steps) -> Iterator[Step]:
    """Euler's method (Karras et al. 2022, algorithm 1 without its second-order part), first order."""
    for i, timestep in enumerate(steps.timesteps):
        sigma, following = steps.sigmas[i : i + 2]
        x0 = denoise(x, sigma, timestep)
        x = _toward(x0, x, sigma, following)
        yield Step(x, x0)


def ancestral(denoise: Denoiser, x: Tensor, steps: Steps, draw: Draw, eta: float = 1.0) -> Iterator[Step]:
    """Steps that go too far and add noise: eta 1 is DDPM (Ho et al. 2020, eq. 7), 0 Euler (Song et al. 2021, eq. 16).

    Nothing is drawn for a step that adds nothing.
    """
    for i, timestep in enumerate(steps.timesteps):
        sigma, following = steps.sigmas[i : i + 2]
        x0 = denoise(x, sigma, timestep)
        up = eta * following * max(0.0, 1 - (following / sigma) ** 2) ** 0.5
        x = _toward(x0, x, sigma, (following**2 - up**2) ** 0.5)
        if up:
            x = x + up * draw()
        yield Step(x, x0)


def heun(denoise: Denoiser, x: Tensor, steps: Steps) -> Iterator[Step]:
    """Heun's method (Karras et al. 2022, algorithm 1), second order; asks twice a step, once in the last."""
    for i, timestep in enumerate(steps.timesteps):
        sigma, following = steps.sigmas[i : i + 2]
        x0 = denoise(x, sigma, timestep)
        there = _toward(x0, x, sigma, following)
        if i + 1 < len(steps):
            slope = (x - x0) / sigma
            x0 = denoise(there, following, steps.timesteps[i + 1])
            there = x + (following - sigma) * (slope + (there - x0) / following) / 2
        x = there
        yield Step(x, x0)


def dpm_2m(denoise: Denoiser, x: Tensor, steps: Steps) -> Iterator[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), second order; a step that ends at 0 goes straight there."""
    before: tuple[float, Tensor] | None = None  # of the step before: its sigma and x0
    for i, timestep in enumerate(steps.timesteps):
        sigma, following = steps.sigmas[i : i + 2]
        x0 = ahead = denoise(x, sigma, timestep)
        if before is not None and following:
            # x0 half a step ahead, on the straight line in log sigma through the last two.
            ratio = math.log(sigma / following) / math.log(before[0] / sigma)
            ahead = x0 + ratio / 2 * (x0 - before[1])
        x, before = _toward(ahead, x, sigma, following), (sigma, x0)
        yield Step(x, x0)


def plms(denoise: Denoiser, x: Tensor, steps: Steps, prediction: Prediction = "eps") -> Iterator[Step]:
    """Pseudo linear multistep (Liu et al. 2022, eq. 12), started by one step of Heun; for evenly spread timesteps.

    What the network predicts is combined, as diffusers does it. With "v" the method is then only of first order: v of an
    earlier step belongs to another mixture of image and noise.
    """
    old: list[Tensor] = []  # newest first
    for i, timestep in enumerate(steps.timesteps):
        sigma, following = steps.sigmas[i : i + 2]
        x0 = denoise(x, sigma, timestep)
        old = [_predicted(x0, x, sigma, prediction), *old[:3]]
        if i == 0 and len(steps) > 1:
            there = _toward(x0, x, sigma, following)
            x0 = denoise(there, following, steps.timesteps[1])
            mixed = (old[0] + _predicted(x0, there, following, prediction)) / 2
        else:
            weights = PLMS[len(old) - 1]
            mixed = sum((weight * output for weight, output in zip(weights, old)), start=torch.zeros_like(x))
        alpha_bar = 1 / (1 + sigma**2)
        x = _toward(to_x0(mixed, x * alpha_bar**0.5, alpha_bar, prediction), x, sigma, following)
        yield Step(x, x0)


def invert(denoise: Denoiser, x: Tensor, steps: Steps) -> Iterator[Step]:
    """From an image back to the noise of which DDIM makes it (Dhariwal & Nichol 2021, appendix F). steps: those of DDIM.

    x has the little noise that steps end with. Each step asks what DDIM will ask on its way back, but of where it is.
    """
    for i in reversed(range(len(steps))):
        following, sigma = steps.sigmas[i : i + 2]
        x0 = denoise(x, sigma, steps.timesteps[i])
        x = _toward(x0, x, sigma, following)
        yield Step(x, x0)


def sampler(name: str, draw: Draw, *, eta: float = 0.0, prediction: Prediction = "eps") -> Sampler:
    """The sampler that a user calls so. draw: where it takes noise from; eta: of DDIM; prediction: of the network.

    Raises ConfigError if it is unknown.
    """
    check(name, 1)
    samplers: dict[str, Sampler] = {
        "ddpm": partial(ancestral, draw=draw),
        "ddim": partial(ancestral, draw=draw, eta=eta),
        "plms": partial(plms, prediction=prediction),
        "euler": euler,
        "euler-a": partial(ancestral, draw=draw),
        "heun": heun,
        "dpm++2m": dpm_2m,
    }
    return samplers[name]


def _toward(x0: Tensor, x: Tensor, sigma: float, following: float) -> Tensor:
    """x at another noise level, with the same x0 and the same noise."""
    return x0 + (following / sigma) * (x - x0)


def _predicted(x0: Tensor, x: Tensor, sigma: float, prediction: Prediction) -> Tensor:
    """What a network must have said for the denoiser to give x0."""
    alpha_bar = 1 / (1 + sigma**2)
    return from_x0(x0, x * alpha_bar**0.5, alpha_bar, prediction)
