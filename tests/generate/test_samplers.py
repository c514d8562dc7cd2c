"""Samplers against diffusers' schedulers on a small network, and against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kiban.errors import ConfigError
from kiban.generate.denoiser import Denoiser, denoiser, keep
from kiban.generate.samplers import Sampler, Step, ancestral, dpm_2m, euler, heun, invert, plms, sampler
from kiban.generate.schedules import HABITS, Steps, karras_sigmas, plan
from kiban.nn.noise import NoiseSchedule, Prediction, cosine, scaled_linear

diffusers = pytest.importorskip("diffusers")

SHAPE = (2, 4, 8, 8)
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


class Small(nn.Module):
    """A network of x and t, not linear in either, with outputs of about unit size."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.w = torch.randn(16, 6, 3, 3, generator=generator) / 54**0.5 * 1.5
        self.out = torch.randn(4, 16, 3, 3, generator=generator) / 144**0.5 * 1.5

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        angle = timesteps.float()[:, None, None, None] / 1000 * torch.ones_like(x[:, :1])
        x = torch.cat((x, torch.sin(9 * angle), torch.cos(7 * angle)), dim=1)
        hidden = torch.tanh(nn.functional.conv2d(x, self.w, padding=1))
        return nn.functional.conv2d(hidden, self.out, padding=1)


def noises(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator) for _ in range(count)]


def end(states: Iterator[Step]) -> Tensor:
    *_, last = states
    return last.x


def ours(name: str, prediction: Prediction, num_steps: int, *, eta: float = 0.0, **how: Any) -> Tensor:
    start, *rest = noises(num_steps + 1)
    steps = plan(scaled_linear(), name, num_steps, **how)
    run = sampler(name, partial(next, iter(rest)), eta=eta, prediction=prediction)
    x = end(run(denoiser(Small(), prediction), steps.scale * start, steps))
    return x / (1 + steps.sigmas[-1] ** 2) ** 0.5


def theirs(
    scheduler: Any, num_steps: int, monkeypatch: pytest.MonkeyPatch, start: Tensor | None = None, **how: Any
) -> Tensor:
    """The loop of diffusers' pipelines, with the same noise at the same steps."""
    first, *rest = noises(num_steps + 1)
    draws = iter([*rest, torch.zeros(SHAPE)])
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(draws))
    scheduler.set_timesteps(num_steps)
    x, net = first * scheduler.init_noise_sigma if start is None else start, Small()
    for t in scheduler.timesteps:
        output = net(scheduler.scale_model_input(x, t), t.repeat(len(x)))
        x = scheduler.step(output, t, x, **how).prev_sample
    return x


PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
CASES: list[tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("ddpm", "DDPMScheduler", {"clip_sample": False}, {}, {}),
    ("ddim", "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}, {}, {}),
    ("ddim", "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}, {}, {"eta": 0.7}),
    ("plms", "PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}, {}, {}),
    ("euler", "EulerDiscreteScheduler", {}, {}, {}),
    ("euler", "EulerDiscreteScheduler", {"use_karras_sigmas": True}, {"karras": True}, {}),
    ("euler", "EulerDiscreteScheduler", {"timestep_spacing": "leading"}, {"spacing": "leading"}, {}),
    ("euler", "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, {"spacing": "trailing"}, {}),
    ("euler-a", "EulerAncestralDiscreteScheduler", {}, {}, {}),
    ("heun", "HeunDiscreteScheduler", {}, {}, {}),
    ("heun", "HeunDiscreteScheduler", {"use_karras_sigmas": True}, {"karras": True}, {}),
    ("dpm++2m", "DPMSolverMultistepScheduler", {}, {}, {}),
    ("dpm++2m", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, {"karras": True}, {}),
    ("dpm++2m", "DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}, {"spacing": "leading"}, {}),
    ("dpm++2m", "DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}, {"spacing": "trailing"}, {}),
    ("ddim", "DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing", "set_alpha_to_one": False},
     {"spacing": "trailing"}, {}),
]


@pytest.mark.parametrize("num_steps", [20, 7])
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize(("name", "theirs_name", "settings", "how", "step"), CASES)
def test_agrees_with_diffusers(
    name: str, theirs_name: str, settings: dict[str, Any], how: dict[str, Any], step: dict[str, Any],
    prediction: Prediction, num_steps: int, monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {**STABLE_DIFFUSION, **settings, "prediction_type": PREDICTIONS[prediction]}
    scheduler = getattr(diffusers, theirs_name)(**settings)
    expected = theirs(scheduler, num_steps, monkeypatch, **step)
    got = ours(name, prediction, num_steps, **how, **step)
    d = (got-expected).abs().max().item()
    print("DIFF", name, settings.get("timestep_spacing"), settings.get("use_karras_sigmas"), prediction, num_steps, f"{d:.1e}", f"{expected.abs().max():.2f}")
    assert d < 1e-4
