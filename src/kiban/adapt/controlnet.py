"""ControlNet (Zhang et al. 2023): train one for a Stable Diffusion model, and open and write those of diffusers.

The model stays as it is. A hint is an RGB picture in [0, 1] of the drawing's size; `adapt/hints.py` makes some.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kiban.adapt.pictures import Row, objective_of, rows_of
from kiban.errors import ConfigError, FormatError
from kiban.families.stable_diffusion import StableDiffusion
from kiban.files import read_json, staged_folder, verify_folder, write_manifest
from kiban.generate.prompts import told
from kiban.nn.controlnet import ControlledUNet, ControlNet, ControlNetConfig
from kiban.nn.unet import UNetConfig
from kiban.objectives.diffusion import Diffusion
from kiban.weights.diffusers_config import unet_from_hf, unet_to_hf
from kiban.weights.diffusers_pipeline import DIFFUSERS_WEIGHTS
from kiban.weights.names import Rule, both, prefixed, to_published
from kiban.weights.safetensors import read_safetensors, tensor_bytes
from kiban.weights.unet_names import unet_diffusers_names
from kiban.zoo.tensors import assign

HINT_CHANNELS = (16, 32, 96, 256)
NO_TEXT = 0.5  # of the prompts are dropped, so that the hint alone has to tell what to draw (section 3.4)


def new_controlnet(model: StableDiffusion, generator: torch.Generator | None = None) -> ControlNet:
    """One for this model, which it does not change yet. Raises ConfigError if the autoencoder's latents are too coarse."""
    c = model.config
    levels = len(c.vae.channels)
    if levels > len(HINT_CHANNELS):
        raise ConfigError("model", why=f"has {c.vae.factor} pixels per latent position, a hint encoder at most 8")
    control = ControlNet(ControlNetConfig(unet=c.unet, hint_channels=HINT_CHANNELS[:levels]))
    control.initialise(generator)
    control.copy_from(model.unet)
    return control.to(model.unet.conv_in.weight)


class ControlledTokenUNet(nn.Module):
    """The controlled U-Net, told by tokens (B, N, T) and hints; the model is frozen."""

    def __init__(self, model: StableDiffusion, control: ControlNet) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.network = ControlledUNet(model.unet, control)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, **more: Any) -> Tensor:
        return torch.as_tensor(self.network(x, timesteps, **told(self.model, context.unbind(1)), **more))


def control_rows(model: StableDiffusion, latents: Tensor, tokens: Tensor, hints: Tensor) -> list[Row]:
    """Rows of latents (R, C, h, w), tokens (R or 1, N, T) and hints (R, 3, H, W) in [0, 1]."""
    return rows_of(model, latents, tokens, hint=hints)


def control_objective(model: StableDiffusion, control: ControlNet, *, null: Tensor) -> Diffusion:
    """What control learns from `control_rows`. null: (N, T), the tokens of the empty text."""
    network = ControlledTokenUNet(model, control)
    return objective_of(network, model.config, inputs=("hint",), null_context=null, dropout=NO_TEXT)


def controlnet_names(c: ControlNetConfig) -> dict[str, Rule]:
    """Names of diffusers' ControlNetModel, which numbers the convolutions behind the states of the way down."""
    unet = unet_diffusers_names(conv_projections=c.unet.conv_projections, added=bool(c.unet.added_dim))
    hint = "controlnet_cond_embedding"
    return {
        **prefixed(unet, "", "encoder."),
        **both(f"{hint}.conv_in", "hint.conv_in"),
        **both(f"{hint}.blocks.{{}}", "hint.blocks.{}"),
        **both(f"{hint}.conv_out", "hint.conv_out"),
        **both("controlnet_down_blocks.{}", "zeros.{}"),
        **both("controlnet_mid_block", "zero_mid"),
    }


def controlnet_to_hf(c: ControlNetConfig) -> dict[str, Any]:
    """config.json of a ControlNetModel."""
    values = unet_to_hf(asdict(c.unet), sample_size=0)
    for name in ("sample_size", "out_channels", "up_block_types"):
        del values[name]
    return {
        **values,
        "_class_name": "ControlNetModel",
        "conditioning_channels": 3,
        "conditioning_embedding_out_channels": list(c.hint_channels),
        "controlnet_conditioning_channel_order": "rgb",
        "global_pool_conditions": False,
    }


def controlnet_from_hf(values: dict[str, Any], *, source: str = "config.json") -> ControlNetConfig:
    """Of the config.json of a ControlNetModel. Raises FormatError for what makes another model."""
    usual = {
        "conditioning_channels": 3,
        "controlnet_conditioning_channel_order": "rgb",
        "global_pool_conditions": False,
    }
    for name, value in usual.items():
        if values.get(name, value) != value:
            raise FormatError(source, field=name, why=f"{values[name]!r} makes another model; only {value!r} is known")
    channels = values.get("conditioning_embedding_out_channels", HINT_CHANNELS)
    if not isinstance(channels, Sequence) or not all(type(width) is int for width in channels):
        raise FormatError(source, field="conditioning_embedding_out_channels", why="must be whole numbers")
    unet = UNetConfig(**unet_from_hf(values, source=source))
    return ControlNetConfig(unet=unet, hint_channels=tuple(channels))


def save_controlnet(control: ControlNet, folder: Path) -> None:
    """Write a folder that `ControlNetModel.from_pretrained` of diffusers opens."""
    tensors = to_published(controlnet_names(control.config), {n: p.detach() for n, p in control.named_parameters()})
    with staged_folder(folder) as new:
        (new / "config.json").write_text(json.dumps(controlnet_to_hf(control.config), indent=1), encoding="utf-8")
        (new / DIFFUSERS_WEIGHTS).write_bytes(tensor_bytes(tensors))
        write_manifest(new, {"family": "controlnet"})


def load_controlnet(folder: Path) -> ControlNet:
    """Open a folder of diffusers' ControlNetModel, in eval mode. Raises FormatError or IntegrityError."""
    verify_folder(folder)
    c = controlnet_from_hf(read_json(folder / "config.json"), source=str(folder / "config.json"))
    with torch.device("meta"):
        control = ControlNet(c).eval()
    file = folder / DIFFUSERS_WEIGHTS
    assign(control, controlnet_names(c), read_safetensors(file), source=str(file), dtype=torch.float32)
    return control
