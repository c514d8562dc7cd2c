"""InstructPix2Pix (Brooks et al. 2023): a model that draws learns to edit, or to fill in a hole, as its U-Net reads more.

The first convolution gets input channels for the picture to edit, or for the mask and the masked picture (Rombach et al.
2022, section 4.5). They begin at zero, so that at first the model does what it did (section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.adapt.pictures import Row, TokenUNet, encode, objective_of, rows_of
from kiban.errors import ConfigError
from kiban.families.stable_diffusion import StableDiffusion
from kiban.generate.guidance import inpainting_channels
from kiban.objectives.diffusion import Diffusion

DROPOUT = 0.1  # of the instructions
CHANNELS_DROPOUT = 0.1  # of the pictures to edit, half of them together with the instruction: 5 percent of each kind


def widen(model: StableDiffusion, task: Literal["edit", "inpaint"]) -> None:
    """Let the U-Net of a model that draws read the channels of another task. Raises ConfigError if it reads more already."""
    c = model.config
    if c.task != "draw":
        raise ConfigError("widen", why=f"the model can {c.task} already", hint="begin with one that draws")
    old = model.unet.conv_in
    wider = nn.Conv2d(
        2 * c.vae.latent_channels + (task == "inpaint"), old.out_channels, 3, padding=1,
        device=old.weight.device, dtype=old.weight.dtype,
    )  # fmt: skip
    with torch.no_grad():
        wider.weight.zero_()
        wider.weight[:, : old.in_channels] = old.weight
        assert wider.bias is not None and old.bias is not None
        wider.bias.copy_(old.bias)
    model.unet.conv_in = wider
    model.unet.config = replace(c.unet, in_channels=wider.in_channels)
    model.config = replace(c, unet=model.unet.config)


@torch.no_grad()
def edit_channels(model: StableDiffusion, sources: Iterable[Tensor]) -> Tensor:
    """Pictures to edit, (3, H, W) in [-1, 1], one at a time, to what the U-Net reads of them: (R, C, h, w) on the CPU.

    These are the most likely latents, unlike the noisy ones not scaled, as in the published weights.
    """
    device = model.vae.quant.weight.device
    return torch.cat([model.vae.encode(source[None].to(device)).mode().cpu() for source in sources])


def edit_rows(model: StableDiffusion, sources: Iterable[Tensor], tokens: Tensor, targets: Tensor) -> list[Row]:
    """Rows of pictures to edit (3, H, W), instructions (R or 1, N, T), and latents (R, C, h, w) of what becomes of them."""
    return rows_of(model, targets, tokens, channels=edit_channels(model, sources))


def inpaint_rows(
    model: StableDiffusion,
    images: Iterable[Tensor],
    masks: Iterable[Tensor],
    tokens: Tensor,
    generator: torch.Generator | None,
) -> list[Row]:
    """Rows of pictures (3, H, W) in [-1, 1] and masks (1, H, W) bool, True where a hole is to be filled in."""
    pictures, holes = list(images), torch.stack(list(masks))
    latents = encode(model, pictures, generator)
    around = encode(model, (p.masked_fill(hole, 0.0) for p, hole in zip(pictures, holes, strict=True)), generator)
    small = F.interpolate(holes.float(), size=latents.shape[-2:], mode="nearest").bool()
    return rows_of(model, latents, tokens, channels=inpainting_channels(small, around))


def edit_objective(model: StableDiffusion, *, null: Tensor) -> Diffusion:
    """What a widened model learns from its rows. null: (N, T), the tokens of the empty text.

    One that edits also learns to do without the picture, so that guidance can weigh it (section 3.2.1).
    """
    share = CHANNELS_DROPOUT if model.config.task == "edit" else 0.0
    return objective_of(TokenUNet(model), model.config, null_context=null, dropout=DROPOUT, channels_dropout=share)
