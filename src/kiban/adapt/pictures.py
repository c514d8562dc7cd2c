"""What training Stable Diffusion on one's own pictures shares: rows of latents and tokens, one network, the run.

Pictures are encoded once, before training, each to one draw of its latents; LDM's code draws anew at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kiban.config import Progress, silent
from kiban.errors import ConfigError
from kiban.families.stable_diffusion import StableDiffusion, StableDiffusionConfig
from kiban.generate.prompts import padded, sizes, told
from kiban.inputs.tokenizer import Tokenizer
from kiban.objectives.diffusion import Diffusion, seeded_loader
from kiban.train.settings import Hooks, TrainConfig, TrainResult
from kiban.train.trainer import Trainer

Row = dict[str, Tensor]
"""latents (C, h, w), context (N, T) int64 (the tokens of each text tower), and what else the run needs, by name."""

T = TypeVar("T")
NUM_SIZES = 6  # height and width of the picture, top and left of the cut, height and width asked for (SDXL)


class TokenUNet(nn.Module):
    """The U-Net, told by tokens: texts are encoded on the way, so that their towers can learn as well."""

    def __init__(self, model: StableDiffusion) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, **more: Any) -> Tensor:
        """x (B, Cin, h, w), timesteps (B,), context (B, N, T) int64, and what `UNet` takes by name; (B, Cout, h, w)."""
        return torch.as_tensor(self.model.unet(x, timesteps, **told(self.model, context.unbind(1)), **more))


def prompt_tokens(tokenizers: Sequence[Tokenizer], prompts: Sequence[str], c: StableDiffusionConfig) -> Tensor:
    """Prompts (R) as tokens (R, N, T), one tokenizer for each tower, padded to all of its positions."""
    towers = zip(tokenizers, c.texts, strict=True)
    return torch.stack([padded(tokenizer, prompts, tower.max_seq_len) for tokenizer, tower in towers], dim=1)


@torch.no_grad()
def encode(model: StableDiffusion, images: Iterable[Tensor], generator: torch.Generator | None) -> Tensor:
    """Pictures (3, H, W) in [-1, 1], one at a time, to scaled latents (R, C, h, w) on the CPU."""
    device = model.vae.quant.weight.device
    return torch.cat([model.encode_image(image[None].to(device), generator).cpu() for image in images])


def rows_of(model: StableDiffusion, latents: Tensor, tokens: Tensor, **more: Tensor) -> list[Row]:
    """Rows of latents (R, C, h, w) and tokens (R or 1, N, T). more: other tensors with a row for each or one for all.

    SDXL is told that pictures are as large as they are and not cut. Raises ConfigError for its refiner.
    """
    c = model.config
    if c.num_sizes not in (0, NUM_SIZES):
        raise ConfigError("model", why=f"takes {c.num_sizes} sizes", hint="adapt the base model, not the refiner")
    if c.num_sizes:
        height, width = (c.vae.factor * side for side in latents.shape[-2:])
        more["sizes"] = sizes(width, height)
    columns = {"latents": latents, "context": tokens, **more}
    whole = {name: value.expand(len(latents), *value.shape[1:]) for name, value in columns.items()}
    return [{name: value[i] for name, value in whole.items()} for i in range(len(latents))]


def stack(rows: list[tuple[Row, int]]) -> dict[str, Tensor]:
    """A batch of `Diffusion` from rows that have seeds."""
    columns = {name: torch.stack([row[name] for row, _ in rows]) for name in rows[0][0]}
    return {**columns, "seeds": torch.tensor([seed for _, seed in rows])}


def objective_of(
    network: nn.Module, c: StableDiffusionConfig, *, inputs: Sequence[str] = (), **options: Any
) -> Diffusion:
    """What the model was trained for. inputs, options: of `Diffusion`; sizes are passed on where the model takes them."""
    inputs = [*inputs, "sizes"] if c.num_sizes else inputs
    return Diffusion(network, c.schedule, prediction=c.prediction, inputs=inputs, **options)


def train(
    objective: Diffusion,
    rows: Sequence[T],
    config: TrainConfig,
    *,
    collate: Callable[[list[tuple[T, int]]], dict[str, Tensor]],
    folder: Path | None = None,
    hooks: Hooks | None = None,
    progress: Progress = silent,
) -> TrainResult:
    """Train what requires gradients in the objective's network. Every use of a row draws other noise.

    collate: makes a batch of rows with seeds; `stack`, if they are of the kind of `Row`.
    """
    loader = seeded_loader(rows, collate, steps=config.steps, batch_size=config.batch_size, seed=config.seed)
    return Trainer(objective, objective.module, loader, config, folder=folder, hooks=hooks, progress=progress).run()
