"""At which noise levels an image is computed: which timesteps, which sigmas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from kiban.config import did_you_mean
from kiban.errors import ConfigError
from kiban.nn.noise import Floats, NoiseSchedule

Spacing = Literal["leading", "trailing", "linspace"]
"""How timesteps are spread (Lin et al. 2023, table 2): evenly from 1 on, evenly down from the last, or over both ends."""

RHO = 7.0  # Karras et al. 2022, table 1


@dataclass(frozen=True)
class Steps:
    """Noise levels from much to little: sigmas has one entry more than timesteps, the level that is left at the end.

    The network is told timesteps[i] at sigmas[i]. Sampling starts from scale times standard noise.
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    scale: float

    def __len__(self) -> int:
        return len(self.timesteps)

    def last(self, num_steps: int) -> Steps:
        """The end of it, for what starts from an image with noise."""
        return replace(self, sigmas=self.sigmas[-num_steps - 1 :], timesteps=self.timesteps[-num_steps:])


@dataclass(frozen=True, kw_only=True)
class Habit:
    """How a sampler is used with Stable Diffusion, as diffusers does it.

    whole: timesteps are integers. clean: the last step ends without noise, else at the noise of timestep 0.
    karras: sigmas may be spaced so. extra: timesteps are spread as for one step more, and the last is left out.
    unit: sampling starts from data of unit variance; else from sigma times noise, unless timesteps are leading.
    """

    spacing: Spacing
    whole: bool = True
    clean: bool = True
    karras: bool = False
    extra: bool = False
    unit: bool = True


_EULER = Habit(spacing="linspace", whole=False, karras=True, unit=False)
HABITS: Mapping[str, Habit] = {
    "ddpm": Habit(spacing="leading"),
    "ddim": Habit(spacing="leading", clean=False),
    "plms": Habit(spacing="leading", clean=False),
    "euler": _EULER,
    "euler-a": _EULER,
    "heun": _EULER,
    "dpm++2m": Habit(spacing="linspace", karras=True, extra=True),
}


def check(sampler: str, num_steps: int, *, spacing: str | None = None, karras: bool = False) -> None:
    """Raises ConfigError for an unknown sampler or spacing, less than one step, and Karras sigmas where they don't fit."""
    if sampler not in HABITS:
        raise ConfigError("images", field="sampler", why=f"{sampler!r} is unknown", hint=did_you_mean(sampler, HABITS))
    if num_steps < 1:
        raise ConfigError("images", field="num_steps", why=f"{num_steps} is less than 1", hint="20 to 50 are usual")
    if spacing is not None and spacing not in get_args(Spacing):
        hint = did_you_mean(spacing, get_args(Spacing))
        raise ConfigError("images", field="spacing", why=f"{spacing!r} is unknown", hint=hint)
    if karras and not HABITS[sampler].karras:
        usable = ", ".join(name for name, habit in HABITS.items() if habit.karras)
        raise ConfigError("images", field="karras", why=f"{sampler!r} cannot use it", hint=f"samplers: {usable}")


def plan(
    schedule: NoiseSchedule, sampler: str, num_steps: int, *, spacing: Spacing | None = None, karras: bool = False
) -> Steps:
    """The steps of a sampler; spacing None is the usual one. Raises ConfigError as `check` does, and for too many steps."""
    check(sampler, num_steps, spacing=spacing, karras=karras)
    habit = HABITS[sampler]
    spacing = spacing or habit.spacing
    extra = int(habit.extra and spacing != "trailing")
    if num_steps + extra > schedule.num_timesteps:
        why = f"{num_steps} are more than the {schedule.num_timesteps - extra} that this model and sampler allow"
        raise ConfigError("images", field="num_steps", why=why, hint="20 to 50 are usual")
    timesteps = spread(spacing, schedule.num_timesteps, num_steps + extra)[:num_steps]
    timesteps = timesteps.round() if habit.whole else timesteps
    sigmas = schedule.sigmas_at(timesteps)
    if karras:
        # DPM++ uses the whole range; it and no other rounds the timesteps (diffusers, as k-diffusion's quantize=True).
        ends = (schedule.sigmas[-1], schedule.sigmas[0]) if habit.whole else (sigmas[0], sigmas[-1])
        sigmas = karras_sigmas(*ends, num_steps)
        timesteps = schedule.timesteps_at(sigmas)
        timesteps = timesteps.round() if habit.whole else timesteps
    end = 0.0 if habit.clean else float(schedule.sigmas[0])
    most = float(sigmas[0])
    scale = (1 + most**2) ** 0.5 if habit.unit or spacing == "leading" else most
    return Steps((*sigmas.tolist(), end), tuple(timesteps.tolist()), scale)


def spread(spacing: Spacing, num_timesteps: int, num_steps: int) -> Floats:
    """num_steps timesteps of 0 .. num_timesteps-1, falling; those of linspace may lie between two."""
    if spacing == "linspace":
        return np.linspace(num_timesteps - 1, 0, num_steps)
    places = np.arange(num_steps, dtype=np.float64)
    if spacing == "trailing":
        return (num_timesteps - places * (num_timesteps / num_steps)).round() - 1
    rising = places * (num_timesteps // num_steps)
    # Stable Diffusion's offset of 1; where every timestep is used there is no room for it.
    offset = min(1.0, num_timesteps - 1 - rising[-1])
    return np.flip(rising + offset)


def karras_sigmas(most: float, least: float, num_steps: int) -> Floats:
    """Sigmas whose seventh roots fall in a straight line (Karras et al. 2022, eq. 5), without the 0 at the end."""
    return np.linspace(most ** (1 / RHO), least ** (1 / RHO), num_steps) ** RHO
