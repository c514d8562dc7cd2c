"""The diffusion models of `tour.stable_diffusion`: of latents and, for as many operations, of pixels; and how they draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kiban.adapt import pictures
from kiban.families.clip import TextConfig, TextTower
from kiban.families.stable_diffusion import StableDiffusion, StableDiffusionConfig
from kiban.generate.denoiser import DiffusionModel
from kiban.generate.guidance import Condition, classifier_free
from kiban.generate.images import ImageSampling, Source, generate
from kiban.generate.prompts import sizes, told
from kiban.nn.noise import Prediction
from kiban.nn.unet import UNet, UNetConfig
from kiban.nn.vae import VAEConfig
from kiban.objectives.diffusion import Diffusion
from kiban.tour import shapes

LENGTH = 10  # tokens of a caption: start, up to 8 words, end
LANGS: tuple[shapes.Lang, ...] = ("ja", "en")
SIZE_DIM = 8  # width of an embedded size; all pictures have the same
PART = 96  # pictures that are encoded, drawn or decoded at once


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The models and their training. pool: training pictures of each combination.

    channels, pixel_channels: of the U-Nets, so that both have about as many parameters. steps: of the U-Net of latents;
    that of pixels has as many as make the same number of operations. pictures: drawn for each held-out caption in each
    language.
    """

    image_size: int = 32
    pool: int = 60
    vae_channels: tuple[int, ...] = (16, 32, 64)
    vae_steps: int = 800
    vae_batch_size: int = 16
    vae_lr: float = 1e-3
    channels: tuple[int, ...] = (32, 64, 96)
    pixel_channels: tuple[int, ...] = (16, 32, 64, 96)
    text_dim: int = 64
    prediction: Prediction = "v"
    steps: int = 4000
    batch_size: int = 32
    lr: float = 1e-3
    ema: float = 0.99
    judge_steps: int = 400
    pictures: int = 4


def text_config(s: Setting) -> TextConfig:
    """The text tower of both models, whose pooled text goes into every res-block as in SDXL: places are learned sooner."""
    return TextConfig(
        vocab_size=len(shapes.vocabulary()) + 1,
        max_seq_len=LENGTH,
        eos_id=None,
        num_layers=2,
        dim=s.text_dim,
        num_heads=4,
        ffn_dim=4 * s.text_dim,
        embed_dim=s.text_dim,
        quick_gelu=False,
    )


def unet_config(s: Setting, channels: tuple[int, ...], ends: int) -> UNetConfig:
    """A U-Net with heads 16 wide, whose two deepest levels look at the text. ends: channels of what it reads and gives."""
    heads = tuple(width // 16 for width in channels)
    return UNetConfig(
        channels=channels,
        depths=(0,) * (len(channels) - 2) + (1, 1),
        num_heads=heads,
        context_dim=s.text_dim,
        num_res_blocks=1,
        num_groups=8,
        added_dim=s.text_dim + pictures.NUM_SIZES * SIZE_DIM,
        size_dim=SIZE_DIM,
        in_channels=ends,
        out_channels=ends,
    )


def config_of(s: Setting, latent_scale: float = 1.0) -> StableDiffusionConfig:
    """The latent diffusion model."""
    return StableDiffusionConfig(
        unet=unet_config(s, s.channels, 4),
        vae=VAEConfig(channels=s.vae_channels, num_res_blocks=1, num_groups=8, latent_scale=latent_scale),
        texts=(text_config(s),),
        text_norm=False,
        prediction=s.prediction,
        image_size=s.image_size,
    )


class PixelUNet(nn.Module):
    """The U-Net of pixels, told by tokens as `TokenUNet` is."""

    def __init__(self, s: Setting) -> None:
        super().__init__()
        self.unet = UNet(unet_config(s, s.pixel_channels, 3))
        self.text = TextTower(text_config(s))

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, sizes: Tensor) -> Tensor:
        """x (B, 3, H, W), timesteps (B,), context (B, 1, T) int64, sizes (B, 6); the shape of x out."""
        return torch.as_tensor(self.unet(x, timesteps, **self.told(context[:, 0]), sizes=sizes))

    def told(self, tokens: Tensor) -> dict[str, Tensor]:
        """context (B, T, D) and pooled (B, D) of tokens (B, T)."""
        context, pooled = self.text.hidden_and_embedding(tokens, skip=0)
        return {"context": context, "pooled": pooled}


@dataclass(frozen=True)
class Painter:
    """What draws: a network, what it is told of tokens (B, T), the shape of what it draws, and the way to pixels."""

    model: DiffusionModel
    told: Callable[[Tensor], Condition]
    shape: tuple[int, int, int]
    decode: Callable[[Tensor], Tensor]

    @torch.inference_mode()
    def draw(
        self,
        captions: Sequence[Sequence[str]],
        guidance_scale: float,
        sampling: ImageSampling,
        *,
        first: int,
        source: Source | None = None,
    ) -> Tensor:
        """Latents or pixels of captions, (B, C, h, w), from the noise of seeds first, first + 1, ..."""
        told, null = (self.told(tokens_of(texts)) for texts in (captions, [[]]))
        return generate(
            self.model,
            classifier_free(told, null, guidance_scale=guidance_scale),
            sampling,
            seeds=range(first, first + len(captions)),
            shape=self.shape,
            source=source,
            batch_size=PART,
        )

    @torch.inference_mode()
    def pictures(self, drawn: Tensor) -> Tensor:
        """What was drawn as pictures (B, 3, S, S)."""
        return torch.cat([self.decode(part) for part in torch.split(drawn, PART)])


def tokens_of(captions: Sequence[Sequence[str]]) -> Tensor:
    """(B, T) int64."""
    return shapes.tokens(captions, shapes.vocabulary(), LENGTH)


def latent_painter(s: Setting, model: StableDiffusion) -> Painter:
    """Draws latents."""
    c = model.config
    side = s.image_size // c.vae.factor
    return Painter(
        DiffusionModel(model.unet, c.schedule, c.prediction),
        lambda tokens: {**told(model, [tokens]), "sizes": sizes(s.image_size, s.image_size)},
        (c.vae.latent_channels, side, side),
        model.decode_image,
    )


def pixel_painter(s: Setting, objective: Diffusion) -> Painter:
    """Draws pixels."""
    network = objective.module
    assert isinstance(network, PixelUNet)
    return Painter(
        DiffusionModel(network.unet, objective.schedule, objective.prediction),
        lambda tokens: {**network.told(tokens), "sizes": sizes(s.image_size, s.image_size)},
        (3, s.image_size, s.image_size),
        lambda pixels: pixels,
    )
