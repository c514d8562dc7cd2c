"""Stable Diffusion. Rombach et al. 2022; versions 1 and 2, SDXL (Podell et al. 2023), InstructPix2Pix (Brooks et al. 2023).

An autoencoder, a U-Net that denoises its latents, and CLIP's text tower or towers that tell it what to draw. Deviation:
dropout is left out. `sd-tiny` and `sd-small` are ours: small enough to train on a CPU in minutes, and in an hour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kiban.config import Family, Traits
from kiban.errors import ConfigError
from kiban.families import clip
from kiban.families.clip import TextConfig, TextTower
from kiban.nn.noise import NoiseSchedule, scaled_linear
from kiban.nn.unet import UNet, UNetConfig
from kiban.nn.vae import VAE, VAEConfig
from kiban.weights import diffusers_pipeline
from kiban.weights.diffusers_config import PREDICTIONS
from kiban.weights.diffusers_pipeline import Component
from kiban.weights.names import NameTable


@dataclass(frozen=True, kw_only=True)
class StableDiffusionConfig:
    """What a system is made of, and the noise it was trained with.

    texts: one text tower, or two whose states stand side by side (SDXL); the last has a projection if the U-Net takes a
    pooled text. text_skip: layers left out before the states; text_norm: whether the final norm is applied to them.
    prediction: what the U-Net gives of a noisy latent: the noise, the velocity (Salimans & Ho 2022) or the latent.
    image_size: usual side in pixels. beta_start, beta_end: variances of the noise, evenly spaced in their roots.
    """

    unet: UNetConfig
    vae: VAEConfig
    texts: tuple[TextConfig, ...]
    text_skip: int = 0
    text_norm: bool = True
    prediction: Literal["eps", "v", "x0"] = "eps"
    image_size: int = 512
    num_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ConfigError("prediction", why=f"{self.prediction!r} is unknown", hint="known: eps, v, x0")
        if [text.embed_dim is not None for text in self.texts] not in ([False], [True], [False, True]):
            why = "one tower, or two of which the second alone has a projection"
            raise ConfigError("texts", why=f"must be {why}")
        if sum(text.dim for text in self.texts) != self.unet.context_dim:
            why = f"have a width of {sum(text.dim for text in self.texts)}, the U-Net reads {self.unet.context_dim}"
            raise ConfigError("texts", why=why)
        pooled = self.texts[-1].embed_dim or 0
        rest = self.unet.added_dim - pooled
        if (self.unet.added_dim > 0) != (pooled > 0) or rest < 0 or rest % self.unet.size_dim:
            why = f"of {self.unet.added_dim} is not a pooled text of {pooled} and sizes of {self.unet.size_dim} each"
            raise ConfigError("added_dim", why=why)
        latent = self.vae.latent_channels
        if self.unet.in_channels not in (latent, 2 * latent, 2 * latent + 1):
            why = f"must be {latent}, {2 * latent} to edit or {2 * latent + 1} to fill in"
            raise ConfigError("in_channels", why=why)
        if self.image_size % self.vae.factor:
            raise ConfigError(f"image_size={self.image_size} is not divisible by the autoencoder's {self.vae.factor}")

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise that it was trained with."""
        return scaled_linear(self.num_timesteps, first=self.beta_start, last=self.beta_end)

    @property
    def num_sizes(self) -> int:
        """How many sizes and crops the U-Net is told: 6 in SDXL, 5 in its refiner (the last a score), else 0."""
        return (self.unet.added_dim - (self.texts[-1].embed_dim or 0)) // self.unet.size_dim

    @property
    def task(self) -> Literal["draw", "edit", "inpaint"]:
        """What stands behind the noisy latent in the U-Net's input.

        draw: nothing; edit: the latent of the image to edit; inpaint: the mask, then the latent of the masked image.
        """
        more = self.unet.in_channels - self.vae.latent_channels
        return "draw" if not more else "edit" if more == self.vae.latent_channels else "inpaint"


@dataclass(frozen=True)
class TextStates:
    """What the U-Net reads of texts: context (B, T, D), and pooled (B, E) if it takes one."""

    context: Tensor
    pooled: Tensor | None


class StableDiffusion(nn.Module):
    """The parts: unet, vae, and texts, a list of towers. Denoising itself is `kiban.generate`'s."""

    def __init__(self, config: StableDiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.unet, self.vae = UNet(config.unet), VAE(config.vae)
        self.texts = nn.ModuleList(TextTower(text) for text in config.texts)

    def encode_text(self, tokens: Sequence[Tensor]) -> TextStates:
        """tokens: (B, T) int64 for each tower, as its own tokenizer made and padded them."""
        c = self.config
        assert len(tokens) == len(self.texts), "each tower needs its own tokens"
        states, pooled = [], None
        for tower, text, own in zip(self.texts, c.texts, tokens, strict=True):
            assert isinstance(tower, TextTower)
            if text.embed_dim is None:
                states.append(tower.hidden(own, skip=c.text_skip, norm=c.text_norm))
            else:
                early, pooled = tower.hidden_and_embedding(own, skip=c.text_skip)
                states.append(early)
        return TextStates(torch.cat(states, dim=-1), pooled)

    def encode_image(self, image: Tensor, generator: torch.Generator | None) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to a draw of its latents, scaled to a deviation near 1: (B, C, H/f, W/f)."""
        return self.vae.encode(image).sample(generator) * self.config.vae.latent_scale

    def decode_image(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) to images (B, 3, f*h, f*w), not clamped to [-1, 1]."""
        return self.vae.decode(latents / self.config.vae.latent_scale)

    def initialise(self, generator: torch.Generator | None) -> None:
        """The text towers; U-Net and autoencoder draw their own."""
        for tower in self.texts:
            assert isinstance(tower, TextTower)
            tower.initialise(generator)


def components(c: StableDiffusionConfig) -> tuple[Component, ...]:
    """The folders with weights that a pipeline of diffusers has, each with its config.json and name table."""
    return diffusers_pipeline.components(asdict(c))


def hf_names(c: StableDiffusionConfig) -> NameTable:
    """All parts of a pipeline's folder; a published name is the part's folder, a dot, and the name in its file."""
    return diffusers_pipeline.hf_names(asdict(c))


def ldm_names(c: StableDiffusionConfig) -> NameTable:
    """All parts in the one file of the first code; what else such a file may hold (`model_ema.`) is not in the table."""
    return diffusers_pipeline.ldm_names(asdict(c))


def from_hf(values: Mapping[str, Any]) -> StableDiffusionConfig:
    """values: every JSON file of a pipeline under its path in the folder, such as `unet/config.json`.

    Raises FormatError if one is missing or makes another model.
    """
    settings = diffusers_pipeline.from_hf(values)
    unet, vae = UNetConfig(**settings.pop("unet")), VAEConfig(**settings.pop("vae"))
    texts = tuple(TextConfig(**text) for text in settings.pop("texts"))
    return StableDiffusionConfig(unet=unet, vae=vae, texts=texts, **settings)


def to_hf(c: StableDiffusionConfig) -> dict[str, Any]:
    """Every JSON file of a pipeline that diffusers opens, under its path, but for the tokenizers' own.

    Raises FormatError for text states that no pipeline takes.
    """
    return diffusers_pipeline.to_hf(asdict(c), pipeline=pipeline_class(c), num_sizes=c.num_sizes)


def pipeline_class(c: StableDiffusionConfig) -> str:
    """The class of diffusers that the model is for."""
    if c.unet.added_dim and len(c.texts) == 1:
        return "StableDiffusionXLImg2ImgPipeline"
    kind = {"draw": "", "edit": "InstructPix2Pix", "inpaint": "Inpaint"}[c.task]
    return f"StableDiffusion{'XL' if c.unet.added_dim else ''}{kind}Pipeline"


def _first(in_channels: int = 4) -> StableDiffusionConfig:
    """Version 1."""
    return StableDiffusionConfig(
        unet=UNetConfig(
            channels=(320, 640, 1280, 1280),
            depths=(1, 1, 1, 0),
            num_heads=(8, 8, 8, 8),
            context_dim=768,
            in_channels=in_channels,
            conv_projections=True,
        ),
        vae=VAEConfig(),
        texts=(replace(clip.PRESETS["clip-vit-l-14"].text, embed_dim=None),),
    )


def _second(**options: Any) -> StableDiffusionConfig:
    """Version 2. Its text tower is 24 layers deep, the last of which it does not use."""
    unet = replace(_first().unet, num_heads=(5, 10, 20, 20), context_dim=1024, conv_projections=False)
    text = replace(clip.PRESETS["clip-vit-h-14"].text, num_layers=23, embed_dim=None)
    return StableDiffusionConfig(unet=unet, vae=VAEConfig(), texts=(text,), **options)


def _xl(unet: UNetConfig, *texts: TextConfig) -> StableDiffusionConfig:
    vae = VAEConfig(latent_scale=0.13025)
    return StableDiffusionConfig(unet=unet, vae=vae, texts=texts, text_skip=1, text_norm=False, image_size=1024)


_BIG = clip.PRESETS["clip-vit-bigg-14"].text
PRESETS = {
    "sd1": _first(),
    "sd1-inpaint": _first(in_channels=9),
    "instruct-pix2pix": _first(in_channels=8),
    "sd2": _second(),
    "sd2-768": _second(prediction="v", image_size=768),
    "sdxl-base": _xl(
        UNetConfig(
            channels=(320, 640, 1280),
            depths=(0, 2, 10),
            num_heads=(5, 10, 20),
            context_dim=2048,
            added_dim=1280 + 6 * 256,
        ),
        _first().texts[0],
        _BIG,
    ),
    "sdxl-refiner": _xl(
        UNetConfig(
            channels=(384, 768, 1536, 1536),
            depths=(0, 4, 4, 0),
            num_heads=(6, 12, 24, 24),
            context_dim=1280,
            added_dim=1280 + 5 * 256,
        ),
        _BIG,
    ),
    "sd-tiny": StableDiffusionConfig(
        unet=UNetConfig(
            channels=(64, 128), depths=(1, 1), num_heads=(2, 4), context_dim=128, num_res_blocks=1, num_groups=16
        ),
        vae=VAEConfig(channels=(32, 64, 64), num_res_blocks=1, num_groups=16, latent_scale=1.0),
        texts=(replace(clip.PRESETS["clip-tiny"].text, embed_dim=None),),
        image_size=64,
    ),
    "sd-small": StableDiffusionConfig(
        unet=UNetConfig(
            channels=(96, 192),
            depths=(1, 1),
            num_heads=(3, 6),
            context_dim=128,
            in_channels=16,
            out_channels=16,
            num_res_blocks=1,
            num_groups=16,
        ),
        vae=VAEConfig(channels=(16, 32, 64, 128), latent_channels=16, num_res_blocks=1, num_groups=8, latent_scale=1.0),
        texts=(replace(clip.PRESETS["clip-tiny"].text, embed_dim=None),),
        prediction="v",
        image_size=64,
    ),
}

FAMILY = Family(
    name="stable_diffusion",
    config_class=StableDiffusionConfig,
    build=StableDiffusion,
    traits=Traits(reads=frozenset({"text", "image"}), writes=frozenset({"image"}), causal=False),
    presets=PRESETS,
    architecture="StableDiffusionPipeline",
    # Of model_index.json, which has no model_type.
    hf_model_types=tuple(sorted({pipeline_class(c) for c in PRESETS.values()} | {"StableDiffusionXLInpaintPipeline"})),
    from_hf=from_hf,
    to_hf=to_hf,
    hf_names=hf_names,
    components=components,
    ldm_names=ldm_names,
)
