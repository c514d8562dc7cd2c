"""Pictures from prompts with Stable Diffusion: drawn anew, from a picture, into a part of one, or by an instruction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from kiban import __version__
from kiban.config import Progress, from_dict, silent
from kiban.errors import ConfigError, NonFiniteError
from kiban.families.stable_diffusion import StableDiffusion
from kiban.files import MANIFEST, sha256_of
from kiban.generate.canvas import Canvas, canvas, fingerprint
from kiban.generate.denoiser import DiffusionModel, Prepare
from kiban.generate.guidance import Condition, Guidance, classifier_free, inpainting_channels
from kiban.generate.guidance import edit as edit_guidance
from kiban.generate.images import ImageSampling, Source, generate
from kiban.generate.prompts import condition, with_channels
from kiban.inputs.image import Picture, to_images
from kiban.zoo import Loaded

Check = Callable[[Sequence[Image.Image]], Sequence[bool]]
"""check(images): for each whether it must not be shown; a black picture then takes its place."""

Preview = Callable[[int, int, list[Image.Image]], None]
"""preview(first, done, images): after each step, what pictures first, first + 1 ... head for."""


class Plan(Protocol):
    """What computes in place of a model's own U-Net and decoder, `engine.drawing.DrawingPlan` for one."""

    @property
    def prepare(self) -> Prepare:
        """As in `DiffusionModel`."""

    def decode(self, latents: Tensor) -> Tensor:
        """As `StableDiffusion.decode_image`."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What is asked of a picture beside prompt, seed and the pictures it starts from. width and height in pixels.

    negative: what to keep away from. guidance_scale: how strongly to follow the prompt, 1 switches guidance off;
    image_guidance_scale: the same for the picture that is edited. rescale: see `Guidance`. strength: how much of a picture
    to start from is changed; by default 0.8, and with a mask 1.
    """

    negative: str = ""
    guidance_scale: float = 7.5
    image_guidance_scale: float = 1.5
    rescale: float = 0.0
    strength: float | None = None
    width: int | None = None
    height: int | None = None
    sampling: ImageSampling = field(default_factory=ImageSampling)

    def __post_init__(self) -> None:
        for name in ("guidance_scale", "image_guidance_scale"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError("drawing", field=name, why=f"{value} is no number from 0 on", hint="7.5 is usual")
        if self.strength is not None and not 0 < self.strength <= 1:
            why = f"{self.strength} is not above 0 and at most 1"
            raise ConfigError("drawing", field="strength", why=why, hint="0.8 is usual")


@dataclass(frozen=True)
class Drawn:
    """A picture, all that is needed to draw it again, and whether the check refused it."""

    image: Image.Image
    facts: dict[str, Any]
    refused: bool


@torch.inference_mode()
def draw(
    loaded: Loaded,
    prompts: str | Sequence[str],
    how: Drawing | None = None,
    *,
    seeds: Sequence[int] = (0,),
    init: Picture | None = None,
    mask: Picture | None = None,
    edit: Picture | None = None,
    start: Tensor | None = None,
    batch_size: int = 8,
    progress: Progress = silent,
    preview: Preview | None = None,
    check: Check | None = None,
    plan: Plan | None = None,
) -> list[Drawn]:
    """A picture for each seed, of the one prompt or of one prompt each.

    init: a picture to start from; with mask, white where to paint, the rest of it stays as it is, pixel by pixel. edit: the
    picture that an instruction is about, for models of that kind. start: noise (B, C, h, w) in place of the seeds'. plan:
    of this very model.
    Raises ConfigError if the model cannot do what is asked, DatasetError for unfit pictures, NonFiniteError.
    """
    how, module, c = how or Drawing(), loaded.module, loaded.config
    if not isinstance(module, StableDiffusion):
        raise ConfigError(loaded.source, why="does not draw", hint="a Stable Diffusion does")
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if len(texts) not in (1, len(seeds)):
        raise ConfigError(
            "prompts", why=f"are {len(texts)}, and seeds {len(seeds)}", hint="give one prompt, or as many"
        )
    sheet = canvas(c.task, usual=c.image_size, width=how.width, height=how.height, init=init, mask=mask, edit=edit)
    decode = module.decode_image if plan is None else plan.decode
    latents = generate(
        diffusion_model(module, plan),
        _guidance(loaded, texts, how, sheet),
        how.sampling,
        seeds=seeds,
        shape=(c.vae.latent_channels, sheet.height // c.vae.factor, sheet.width // c.vae.factor),
        source=_source(module, how, sheet),
        start=start,
        device=next(module.parameters()).device,
        batch_size=batch_size,
        progress=progress,
        preview=None if preview is None else lambda first, done, x0: preview(first, done, _images(module, decode, x0)),
    )
    parts = [latents[first : first + batch_size] for first in range(0, len(latents), batch_size)]
    images = [sheet.restore(image) for part in parts for image in _images(module, decode, part)]
    facts = _facts(loaded, how, sheet)
    drawn = [
        Drawn(image, {**facts, "prompt": texts[number % len(texts)], "seed": seed}, False)
        for number, (image, seed) in enumerate(zip(images, seeds, strict=True))
    ]
    return drawn if check is None else _checked(drawn, check(images))


def _checked(drawn: Sequence[Drawn], refused: Sequence[bool]) -> list[Drawn]:
    assert len(refused) == len(drawn), "a check answers for each picture"
    black = [Drawn(Image.new("RGB", d.image.size), {**d.facts, "refused": True}, True) for d in drawn]
    return [dark if bad else d for d, dark, bad in zip(drawn, black, refused, strict=True)]


def drawing_of(facts: Mapping[str, Any]) -> Drawing:
    """The drawing that the facts of a picture tell, to draw it again. Raises ConfigError if they are of another kind."""
    if not isinstance(facts.get("drawing"), Mapping) or not isinstance(facts["drawing"].get("sampling"), Mapping):
        raise ConfigError("drawing", why="is missing from what the picture says")
    values = dict(facts["drawing"])
    return from_dict(Drawing, {**values, "sampling": from_dict(ImageSampling, values["sampling"])})


def diffusion_model(module: StableDiffusion, plan: Plan | None = None) -> DiffusionModel:
    """What samplers ask."""
    c, prepare = module.config, None if plan is None else plan.prepare
    return DiffusionModel(module.unet, c.schedule, c.prediction, next(module.unet.parameters()).dtype, prepare)


def _encoded(module: StableDiffusion, pixels: Tensor) -> Tensor:
    """The likeliest latents (1, C, h, w), unscaled: a draw of them would depend on more than a picture's own seed."""
    weights = next(module.vae.parameters())
    return module.vae.encode(pixels.to(weights.device, weights.dtype)).mode()


def _guidance(loaded: Loaded, texts: Sequence[str], how: Drawing, sheet: Canvas) -> Guidance:
    module, c = loaded.module, loaded.config
    assert isinstance(module, StableDiffusion)
    tell = partial(condition, loaded, width=sheet.width, height=sheet.height)
    told: Condition = tell(texts)
    null: Condition = tell([how.negative], negative=True)
    if c.task == "edit":
        image = _encoded(module, sheet.pixels())
        return edit_guidance(
            with_channels(told, image),
            with_channels(null, image),
            with_channels(null, torch.zeros_like(image)),
            guidance_scale=how.guidance_scale,
            image_guidance_scale=how.image_guidance_scale,
        )
    if c.task == "inpaint":
        hole = sheet.pixels().masked_fill(sheet.painted(), 0.0)  # 0 is grey
        rest = _encoded(module, hole) * c.vae.latent_scale
        channels = inpainting_channels(sheet.painted_latents(c.vae.factor).to(rest.device), rest)
        told, null = with_channels(told, channels), with_channels(null, channels)
    return classifier_free(told, null, guidance_scale=how.guidance_scale, rescale=how.rescale)


def _source(module: StableDiffusion, how: Drawing, sheet: Canvas) -> Source | None:
    """What sampling starts from; None for noise alone. A model that is told the mask keeps the rest by itself."""
    c = module.config
    strength = _strength(how, sheet)
    told = c.task == "inpaint"
    if sheet.picture is None or c.task == "edit" or (told and strength == 1):
        return None
    latents = _encoded(module, sheet.pixels()) * c.vae.latent_scale
    mask = None if sheet.mask is None or told else sheet.painted_latents(c.vae.factor)
    return Source(latents=latents, strength=strength, mask=mask)


def _strength(how: Drawing, sheet: Canvas) -> float:
    return how.strength if how.strength is not None else 0.8 if sheet.mask is None else 1.0


def _images(module: StableDiffusion, decode: Callable[[Tensor], Tensor], latents: Tensor) -> list[Image.Image]:
    pixels = decode(latents.to(next(module.vae.parameters()).dtype))
    if not pixels.isfinite().all():
        raise NonFiniteError("drawing", why="the model gave what are no numbers", hint="load it in float32 or bfloat16")
    return to_images(pixels)


def _facts(loaded: Loaded, how: Drawing, sheet: Canvas) -> dict[str, Any]:
    """All but prompt and seed. A folder is named without the path to it, which is nobody else's business."""
    local = loaded.path is not None and Path(loaded.source).exists()
    manifest = loaded.path / MANIFEST if loaded.path is not None else None
    known = {"model_sha256": sha256_of(manifest)} if manifest is not None and manifest.is_file() else {}
    used = {name: fingerprint(image) for name, image in (("picture", sheet.picture), ("mask", sheet.mask)) if image}
    settings = {**asdict(how), "width": sheet.width, "height": sheet.height}
    if sheet.picture is not None:
        settings["strength"] = _strength(how, sheet)
    return {
        "kiban_version": __version__,
        "model": Path(loaded.source).name if local else loaded.source,
        **known,
        **{f"{name}_sha256": value for name, value in used.items()},
        "drawing": settings,
    }
