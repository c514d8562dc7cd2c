"""Latents of images: from noise, from another image, with a part of it kept; and back to noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kiban.config import Progress, silent
from kiban.errors import ConfigError
from kiban.generate.denoiser import Denoiser, DiffusionModel, denoiser, keep
from kiban.generate.guidance import Guidance, rows
from kiban.generate.samplers import invert, sampler
from kiban.generate.schedules import Spacing, Steps, check, plan

Preview = Callable[[int, int, Tensor], None]
"""preview(first, done, x0): after each step, the clean latents (b, C, H, W) that images first .. first+b-1 head for."""


@dataclass(frozen=True, kw_only=True)
class ImageSampling:
    """How images are computed. spacing of timesteps None: as the sampler is used with Stable Diffusion.

    karras: noise levels as in Karras et al. 2022, for euler, euler-a, heun and dpm++2m; None: for dpm++2m alone, whose last
    step is long without, unless spacing is given. eta: noise that ddim adds, 0 to 1.
    """

    sampler: str = "dpm++2m"
    num_steps: int = 25
    karras: bool | None = None
    spacing: Spacing | None = None
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.karras is None:  # settled here, so that records of a picture tell which it was
            object.__setattr__(self, "karras", self.sampler == "dpm++2m" and self.spacing is None)
        check(self.sampler, self.num_steps, spacing=self.spacing, karras=bool(self.karras))
        if not 0 <= self.eta <= 1:
            raise ConfigError("images", field="eta", why=f"{self.eta} is not between 0 and 1")
        if self.eta and self.sampler != "ddim":
            raise ConfigError("images", field="eta", why=f"{self.sampler!r} has none", hint="sampler: ddim")


@dataclass(frozen=True, kw_only=True)
class Source:
    """An image to start from (Meng et al. 2022, SDEdit). latents: (B or 1, C, H, W).

    strength: share of the steps that are taken, 1 changes most. mask: (B or 1, 1, H, W) bool, True where to paint; latents
    elsewhere come out exactly as they are. With a mask and strength 1 the painted part begins as noise alone.
    """

    latents: Tensor
    strength: float = 0.8
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            why = f"{self.strength} is not above 0 and at most 1"
            raise ConfigError("images", field="strength", why=why, hint="0.8 is usual")

    def steps(self, steps: Steps) -> Steps:
        """Those that are taken, one at least."""
        return steps.last(max(1, int(len(steps) * self.strength)))

    def rows(self, some: slice, device: torch.device | str) -> Source:
        """What these images start from, on device."""
        latents = rows(self.latents, some).to(device, torch.float32)
        mask = None if self.mask is None else rows(self.mask, some).to(device)
        return replace(self, latents=latents, mask=mask)

    def begin(self, noise: Tensor, steps: Steps) -> Tensor:
        """The noisy latents of the first of these steps."""
        x = self.latents + steps.sigmas[0] * noise
        return torch.where(self.mask, steps.scale * noise, x) if self.mask is not None and self.strength == 1 else x

    def wrap(self, denoise: Denoiser) -> Denoiser:
        """The denoiser, sure of what is not painted."""
        return denoise if self.mask is None else keep(denoise, self.latents, self.mask)

    def end(self, latents: Tensor) -> Tensor:
        """The result, with what is not painted put back."""
        return latents if self.mask is None else torch.where(self.mask, latents, self.latents)


class Noise:
    """Standard noise for a batch, (B, C, H, W) float32 at each call.

    Every image has its own generator, on the CPU, so that it depends on its seed alone and not on its neighbours or the
    device. Raises ConfigError if a seed is negative or above 2^63-1.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device | str = "cpu") -> None:
        for seed in seeds:
            if not 0 <= seed < 2**63:
                raise ConfigError("images", field="seed", why=f"{seed} is not between 0 and 2^63-1")
        self.shape, self.device = shape, device
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(self.device)


@torch.inference_mode()
def generate(
    model: DiffusionModel,
    guidance: Guidance,
    sampling: ImageSampling,
    *,
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    source: Source | None = None,
    start: Tensor | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 8,
    progress: Progress = silent,
    preview: Preview | None = None,
) -> Tensor:
    """Latents of one image for each seed, (B, C, H, W) float32. shape: (C, H, W). An image depends on its own seed alone.

    start: standard noise (B, C, H, W) instead of what the seeds give, from `invert_latents` or `slerp`. batch_size: images
    that the network sees at once. Raises ConfigError if there is no seed, and for more steps than the model has.
    """
    if not seeds or batch_size < 1:
        field = "batch_size" if seeds else "seeds"
        raise ConfigError("images", field=field, why="there has to be at least one")
    karras = bool(sampling.karras)
    steps = plan(model.schedule, sampling.sampler, sampling.num_steps, spacing=sampling.spacing, karras=karras)
    steps = source.steps(steps) if source else steps
    total = len(steps) * -(-len(seeds) // batch_size)
    images: list[Tensor] = []
    for number, first in enumerate(range(0, len(seeds), batch_size)):
        some = slice(first, first + batch_size)
        noise = Noise(seeds[some], shape, device)
        drawn = noise() if start is None else start[some].to(device, torch.float32)
        part = source.rows(some, device) if source else None
        denoise = denoiser(guidance.rows(some).told(model, len(drawn)), model.prediction)
        x = steps.scale * drawn
        if part is not None:
            x, denoise = part.begin(drawn, steps), part.wrap(denoise)
        run = sampler(sampling.sampler, noise, eta=sampling.eta, prediction=model.prediction)
        for done, state in enumerate(run(denoise, x, steps), len(steps) * number + 1):
            progress("image", done, total)
            if preview is not None:
                preview(first, done - len(steps) * number, state.x0)
        x = state.x / (1 + steps.sigmas[-1] ** 2) ** 0.5
        images.append(x if part is None else part.end(x))
    return torch.cat(images)


@torch.inference_mode()
def invert_latents(
    model: DiffusionModel, guidance: Guidance, latents: Tensor, *, num_steps: int, progress: Progress = silent
) -> Tensor:
    """The standard noise of which ddim in num_steps makes latents (B, C, H, W), nearly; float32, for `generate`'s start.

    guidance: best that of a text that describes the image, at guidance_scale 1. The more steps, the closer.
    """
    steps = plan(model.schedule, "ddim", num_steps)
    x: Tensor = latents.float() * (1 + steps.sigmas[-1] ** 2) ** 0.5
    denoise = denoiser(guidance.told(model, len(x)), model.prediction)
    for done, state in enumerate(invert(denoise, x, steps), 1):
        x = state.x
        progress("inversion", done, len(steps))
    return x / steps.scale


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """From noise a to noise b (B, C, H, W) on a sphere, share 0 to 1, so that what lies between is noise as well.

    Of an image's noise and another's at a small share come variations of the image (Ramesh et al. 2022, section 3.2).
    """
    cosine = torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).clamp(-1, 1)
    angle = cosine.acos()[:, None, None, None]
    straight = a + share * (b - a)
    curved = (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()
    return torch.where(angle.sin() < 1e-3, straight, curved)
