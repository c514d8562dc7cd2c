"""Samplers against diffusers' schedulers on a small network, and against closed forms."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kiban.errors import ConfigError
from kiban.generate.denoiser import Denoiser, denoiser, keep
from kiban.generate.samplers import Step, ancestral, dpm_2m, euler, heun, invert, plms, sampler
from kiban.generate.schedules import HABITS, Steps, karras_sigmas, plan
from kiban.nn.noise import Prediction, scaled_linear, zero_terminal_snr

SHAPE = (2, 4, 8, 8)
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
DDIM = {"clip_sample": False, "set_alpha_to_one": False}
NAMES: dict[Prediction, str] = {"eps": "epsilon", "v": "v_prediction"}


class Small(nn.Module):
    """Convolutions of x and t with a tanh between them; told to predict noise, it mostly takes x for it."""

    def __init__(self, prediction: Prediction) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.inner = torch.randn(16, 6, 3, 3, generator=generator) * (1.5 / 54**0.5)
        self.outer = torch.randn(4, 16, 3, 3, generator=generator) / 144**0.5
        self.skip = 0.9 if prediction == "eps" else 0.0

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        time = timesteps.float()[:, None, None, None] / 1000 * torch.ones_like(x[:, :1])
        hidden = torch.cat((x, torch.sin(9 * time), torch.cos(7 * time)), dim=1)
        hidden = torch.tanh(nn.functional.conv2d(hidden, self.inner, padding=1))
        return self.skip * x + nn.functional.conv2d(hidden, self.outer, padding=1)


def noise(seed: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(SHAPE, generator=generator)


def end(states: Iterator[Step]) -> Tensor:
    *_, last = states
    return last.x


def ours(name: str, prediction: Prediction, num_steps: int, eta: float = 0.0, **how: Any) -> Tensor:
    steps = plan(scaled_linear(), name, num_steps, **how)
    run = sampler(name, noise(1), eta=eta, prediction=prediction)
    x = end(run(denoiser(Small(prediction), prediction), steps.scale * noise(0)(), steps))
    return x / (1 + steps.sigmas[-1] ** 2) ** 0.5


def theirs(scheduler: Any, prediction: Prediction, num_steps: int, eta: float = 0.0) -> Tensor:
    """The loop of diffusers' pipelines, with the same noise at the start and at each step."""
    wanted = {"generator": torch.Generator().manual_seed(1), "eta": eta}
    known = {name: wanted[name] for name in inspect.signature(scheduler.step).parameters if name in wanted}
    scheduler.set_timesteps(num_steps)
    x, network = noise(0)() * scheduler.init_noise_sigma, Small(prediction)
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), t.repeat(len(x)))
        x = scheduler.step(output, t, x, **known).prev_sample
    return x


@pytest.mark.parametrize("num_steps", [20, 7])
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize(
    ("name", "scheduler", "settings", "how"),
    [
        ("ddpm", "DDPMScheduler", {"clip_sample": False}, {}),
        ("ddim", "DDIMScheduler", DDIM, {}),
        ("ddim", "DDIMScheduler", DDIM, {"eta": 0.7}),
        ("plms", "PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}, {}),
        ("euler", "EulerDiscreteScheduler", {}, {}),
        ("euler", "EulerDiscreteScheduler", {"use_karras_sigmas": True}, {"karras": True}),
        ("euler", "EulerDiscreteScheduler", {"timestep_spacing": "leading"}, {"spacing": "leading"}),
        ("euler", "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, {"spacing": "trailing"}),
        ("euler-a", "EulerAncestralDiscreteScheduler", {}, {}),
        ("heun", "HeunDiscreteScheduler", {}, {}),
        ("heun", "HeunDiscreteScheduler", {"use_karras_sigmas": True}, {"karras": True}),
        ("dpm++2m", "DPMSolverMultistepScheduler", {}, {}),
        ("dpm++2m", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, {"karras": True}),
        ("dpm++2m", "DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}, {"spacing": "leading"}),
        ("dpm++2m", "DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}, {"spacing": "trailing"}),
    ],
)
def test_agrees_with_diffusers(
    name: str, scheduler: str, settings: dict[str, Any], how: dict[str, Any], prediction: Prediction, num_steps: int
) -> None:
    reference = getattr(diffusers, scheduler)(**{**STABLE_DIFFUSION, **settings, "prediction_type": NAMES[prediction]})
    expected = theirs(reference, prediction, num_steps, how.get("eta", 0.0))
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(name, prediction, num_steps, **how), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "scheduler", "settings"),
    [
        ("ddim", "DDIMScheduler", DDIM),
        ("plms", "PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
        ("dpm++2m", "DPMSolverMultistepScheduler", {}),
    ],
)
def test_a_single_step_agrees_with_diffusers(name: str, scheduler: str, settings: dict[str, Any]) -> None:
    """Where theirs are spread over both ends they would take the single timestep to be 0, and remove hardly any noise."""
    reference = getattr(diffusers, scheduler)(**{**STABLE_DIFFUSION, **settings})
    torch.testing.assert_close(ours(name, "eps", 1), theirs(reference, "eps", 1), atol=1e-4, rtol=0)
    assert [plan(scaled_linear(), other, 1).timesteps for other in ("euler", "euler-a", "heun")] == [(999.0,)] * 3


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_inversion_agrees_with_diffusers(prediction: Prediction) -> None:
    reference = diffusers.DDIMInverseScheduler(**{**STABLE_DIFFUSION, **DDIM, "prediction_type": NAMES[prediction]})
    reference.set_timesteps(20)
    x, network, steps = noise(2)(), Small(prediction), plan(scaled_linear(), "ddim", 20)
    start = x * (1 + steps.sigmas[-1] ** 2) ** 0.5
    for t in reference.timesteps:
        x = reference.step(network(x, t.repeat(len(x))), t, x).prev_sample
    got = end(invert(denoiser(network, prediction), start, steps)) / steps.scale
    torch.testing.assert_close(got, x, atol=1e-4, rtol=0)


def test_zero_terminal_snr_agrees_with_diffusers() -> None:
    steps = plan(zero_terminal_snr(scaled_linear()), "ddim", 20, spacing="trailing")
    reference = diffusers.DDIMScheduler(
        **{**STABLE_DIFFUSION, **DDIM, "prediction_type": "v_prediction"},
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    assert steps.timesteps[0] == 999 and steps.sigmas[0] == pytest.approx(4096, rel=1e-6)
    x = end(euler(denoiser(Small("v"), "v"), steps.scale * noise(0)(), steps)) / (1 + steps.sigmas[-1] ** 2) ** 0.5
    # The last step starts from nothing but noise, which theirs has at exactly 0 and ours at a signal of 2^-12.
    torch.testing.assert_close(x, theirs(reference, "v", 20), atol=2e-3, rtol=0)


# Closed forms: for data N(0, s^2) the ideal denoiser is x s^2 / (s^2 + sigma^2). ------------------------------------

S = 0.7


def gaussian(x: Tensor, sigma: float, timestep: float) -> Tensor:
    return x * (S**2 / (S**2 + sigma**2))


def error(run: Callable[[Denoiser, Tensor, Steps], Iterator[Step]], sigmas: list[float]) -> float:
    """Distance from the exact solution of the ODE, x sqrt((s^2 + last^2) / (s^2 + first^2))."""
    x = torch.tensor([1.0], dtype=torch.float64)
    steps = Steps(tuple(sigmas), tuple(range(len(sigmas) - 1)), 1.0)
    exact = x * ((S**2 + sigmas[-1] ** 2) / (S**2 + sigmas[0] ** 2)) ** 0.5
    return float((end(run(gaussian, x, steps)) - exact).abs())


def order(run: Callable[[Denoiser, Tensor, Steps], Iterator[Step]], spread: Callable[[int], Any]) -> float:
    few, many = (error(run, spread(n + 1).tolist()) for n in (128, 256))
    return math.log2(few / many)


@pytest.mark.parametrize(("run", "expected"), [(euler, 1), (heun, 2), (dpm_2m, 2)])
def test_order_of_convergence(run: Callable[..., Iterator[Step]], expected: int) -> None:
    assert order(run, lambda n: karras_sigmas(10.0, 0.05, n)) == pytest.approx(expected, abs=0.1)


def test_plms_is_of_high_order_where_steps_are_even_and_noise_is_predicted() -> None:
    """Its weights are of fourth order, its first steps leave an error of third. v does not add up over steps."""
    assert order(plms, lambda n: np.linspace(3.0, 0.5, n)) > 2.9
    assert order(partial(plms, prediction="v"), lambda n: np.linspace(3.0, 0.5, n)) == pytest.approx(1, abs=0.2)


def test_all_samplers_reach_the_data_distribution() -> None:
    generator = torch.Generator().manual_seed(5)
    for name in HABITS:
        steps = plan(scaled_linear(), name, 100)
        draw = lambda: torch.randn(40_000, generator=generator, dtype=torch.float64)  # noqa: E731
        x = end(sampler(name, draw)(gaussian, steps.scale * draw(), steps))
        # 100 steps of first order leave an error of their own; 40,000 samples one of 0.4%.
        assert float(x.std()) == pytest.approx(S, rel=0.05), name
        assert abs(float(x.mean())) < 0.02, name


def test_the_noise_of_ancestral_steps_grows_with_eta() -> None:
    steps = plan(scaled_linear(), "ddim", 20)
    x, used = steps.scale * noise(0)(), []
    for eta in (0.0, 0.5, 1.0):
        draws: list[Tensor] = []
        draw = lambda draws=draws: draws.append(noise(7)()) or draws[-1]  # noqa: E731
        used.append(end(ancestral(gaussian, x, steps, draw, eta)))
        assert len(draws) == (20 if eta else 0)
    torch.testing.assert_close(used[0], end(euler(gaussian, x, steps)), atol=1e-6, rtol=1e-6)
    assert (used[2] - used[0]).std() > (used[1] - used[0]).std() > 0.01


def test_inversion_and_back_gets_closer_with_more_steps() -> None:
    x, errors, denoise = 0.5 * noise(2)(), [], denoiser(Small("v"), "v")
    for num_steps in (25, 100, 400):
        steps = plan(scaled_linear(), "ddim", num_steps)
        back = end(euler(denoise, end(invert(denoise, x, steps)), steps))
        errors.append(float((back - x).abs().mean()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.02


def test_what_is_kept_follows_its_own_noise() -> None:
    """keep is the same as putting known + sigma * noise back after each step."""
    known, drawn, steps = noise(4)(), noise(0)(), plan(scaled_linear(), "euler", 10)
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 2:6, 3:] = True
    denoise, x = denoiser(Small("eps"), "eps"), known + steps.sigmas[0] * drawn
    kept = list(euler(keep(denoise, known, mask), x, steps))
    for i, state in enumerate(kept):
        (x, _), *_ = euler(denoise, x, Steps(steps.sigmas[i : i + 2], steps.timesteps[i : i + 1], 1.0))
        x = torch.where(mask, x, known + steps.sigmas[i + 1] * drawn)
        torch.testing.assert_close(state.x, x, atol=1e-4, rtol=0)
    assert torch.equal(kept[-1].x.masked_select(~mask), known.masked_select(~mask))


# Schedules. ---------------------------------------------------------------------------------------------------------


def test_noise_levels_of_stable_diffusion() -> None:
    schedule = scaled_linear()
    assert schedule.alpha_bars[[0, 500, 999]] == pytest.approx([0.99915, 0.2763327, 0.0046601], rel=1e-5)
    assert schedule.sigmas[[0, 999]] == pytest.approx([0.0291672, 14.6146], rel=1e-5)
    middle = schedule.timesteps_at(schedule.sigmas[[0, 17, 999]])
    assert middle == pytest.approx([0, 17, 999])
    assert schedule.sigmas_at(np.array([16.5])) == pytest.approx(schedule.sigmas[16:18].mean())


def test_usual_timesteps() -> None:
    schedule = scaled_linear()
    steps = plan(schedule, "ddim", 50)
    assert steps.timesteps[:2] == (981, 961) and steps.timesteps[-1] == 1 and steps.sigmas[-1] == schedule.sigmas[0]
    steps = plan(schedule, "dpm++2m", 20)
    assert (steps.timesteps[0], steps.timesteps[-1], steps.sigmas[-1]) == (999, 50, 0)
    assert plan(schedule, "ddpm", 1000).timesteps == tuple(range(999, -1, -1))
    tail = steps.last(5)
    assert len(tail) == 5 and tail.timesteps == steps.timesteps[15:] and tail.sigmas == steps.sigmas[15:]


@pytest.mark.parametrize(
    ("arguments", "how", "words"),
    [
        (("eular", 20), {}, "did you mean 'euler'"),
        (("euler", 0), {}, "num_steps"),
        (("ddim", 1001), {}, "1001 are more than the 1000"),
        (("dpm++2m", 1000), {}, "999"),
        (("plms", 20), {"karras": True}, "samplers: euler"),
        (("euler", 20), {"spacing": "lead"}, "did you mean 'leading'"),
    ],
)
def test_errors_tell_what_to_do(arguments: tuple[str, int], how: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(scaled_linear(), *arguments, **how)
