"""How the models of `tour.stable_diffusion` are trained: of latents, and for as many operations of pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kiban import zoo
from kiban.adapt import pictures
from kiban.config import Progress
from kiban.families.stable_diffusion import StableDiffusion, StableDiffusionConfig
from kiban.generate.prompts import sizes
from kiban.nn.vae import VAE
from kiban.objectives.autoencoder import Autoencoder, measure_latent_scale
from kiban.objectives.diffusion import Diffusion, seeded_loader
from kiban.tour import shapes
from kiban.tour.running import fit
from kiban.tour.stable_diffusion_models import LANGS, PART, PixelUNet, Setting, config_of, tokens_of
from kiban.train.settings import TrainConfig


def pool_of(s: Setting, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures (R, 3, S, S) of the combinations of training in random order, with captions (R, T) in either language."""
    rng = np.random.default_rng([seed, 1])
    some = [shapes.TRAIN[i] for i in rng.permutation(np.repeat(np.arange(len(shapes.TRAIN)), s.pool))]
    captions = [shapes.caption(c, LANGS[int(rng.integers(2))], rng) for c in some]
    return shapes.pixels(some, rng, s.image_size), tokens_of(captions)


def train(
    objective: Diffusion | Autoencoder,
    rows: Sequence[Any],
    collate: Callable[[list[tuple[Any, int]]], dict[str, Tensor]],
    config: TrainConfig,
    folder: Path,
    progress: Progress,
) -> None:
    """Train the objective's module on rows, with new noise at every use."""
    loader = seeded_loader(rows, collate, steps=config.steps, batch_size=config.batch_size, seed=config.seed)
    fit(objective, objective.module, loader, config, folder, progress)
    objective.module.eval()


def train_config(s: Setting, steps: int, batch_size: int, lr: float, seed: int) -> TrainConfig:
    """How all three networks are trained."""
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        micro_batch_size=batch_size,
        lr=lr,
        betas=(0.9, 0.95),
        warmup=0.05,
        schedule="wsd",
        ema=s.ema,
        precision="fp32",
        checkpoint_every=200,
        seed=seed,
    )


def image_batch(rows: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """A batch of `Autoencoder`."""
    return {
        "images": torch.stack([image for image, _ in rows]),
        "seeds": torch.tensor([seed for _, seed in rows]),
    }


def autoencoder(s: Setting, seed: int) -> Autoencoder:
    """The objective of a fresh autoencoder."""
    vae = VAE(config_of(s).vae)
    zoo.initialise(vae, torch.Generator().manual_seed(seed))
    return Autoencoder(vae, error="l2", kl_weight=1e-4)


def latent_diffusion(s: Setting, vae: VAE, images: Tensor, seed: int) -> StableDiffusion:
    """A fresh model around a trained autoencoder, which stays as it is; the scale of latents is measured on images."""
    model = StableDiffusion(config_of(s, measure_latent_scale(vae, torch.split(images, PART))))
    zoo.initialise(model, torch.Generator().manual_seed(seed))
    model.vae.load_state_dict(vae.state_dict())
    model.vae.requires_grad_(False)
    return model


def diffusion(network: nn.Module, c: StableDiffusionConfig) -> Diffusion:
    """The objective of a network, with which a tenth of the captions is left out."""
    return pictures.objective_of(network, c, null_context=tokens_of([[]])[:, None], dropout=0.1)


def pixel_diffusion(s: Setting, seed: int) -> Diffusion:
    """The objective of a fresh model of pixels: that of latents in all but its network."""
    network, generator = PixelUNet(s), torch.Generator().manual_seed(seed)
    network.unet.initialise(generator)
    network.text.initialise(generator)
    return diffusion(network, config_of(s))


@torch.no_grad()
def encode(model: StableDiffusion, images: Tensor, seed: int) -> Tensor:
    """Pictures (R, 3, S, S) to a draw of their latents, scaled."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([model.encode_image(part, generator) for part in torch.split(images, PART)])


def flops(objective: Diffusion | Autoencoder, batch: dict[str, Tensor]) -> int:
    """Operations of a training step on this batch, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        objective(batch).total.backward()  # type: ignore[no-untyped-call]
    objective.module.zero_grad()
    return int(counter.get_total_flops())


def train_latents(
    s: Setting, images: Tensor, tokens: Tensor, seed: int, folder: Path, progress: Progress
) -> tuple[StableDiffusion, int]:
    """The latent diffusion model, and how many operations its training took, the autoencoder's with it."""
    coder = autoencoder(s, seed)
    config = train_config(s, s.vae_steps, s.vae_batch_size, s.vae_lr, seed)
    cost = s.vae_steps * flops(coder, image_batch([(images[i], i) for i in range(s.vae_batch_size)]))
    train(coder, images.unbind(), image_batch, config, folder / "autoencoder", progress)
    model = latent_diffusion(s, coder.vae, images[:1024], seed)
    rows = pictures.rows_of(model, encode(model, images, seed), tokens[:, None])
    objective = diffusion(pictures.TokenUNet(model), model.config)
    cost += s.steps * step_flops(objective, rows, s.batch_size)
    config = train_config(s, s.steps, s.batch_size, s.lr, seed)
    train(objective, rows, pictures.stack, config, folder / "latents", progress)
    return model, cost


def train_pixels(
    s: Setting, images: Tensor, tokens: Tensor, budget: int, seed: int, folder: Path, progress: Progress
) -> tuple[Diffusion, int]:
    """The diffusion of pixels, trained for a budget of operations, and how many of them whole steps took."""
    objective = pixel_diffusion(s, seed)
    told = {"sizes": sizes(s.image_size, s.image_size)[0]}
    rows = [{"latents": image, "context": text, **told} for image, text in zip(images, tokens[:, None], strict=True)]
    each = step_flops(objective, rows, s.batch_size)
    steps = max(1, budget // each)
    config = train_config(s, steps, s.batch_size, s.lr, seed)
    train(objective, rows, pictures.stack, config, folder / "pixels", progress)
    return objective, steps * each


def step_flops(objective: Diffusion, rows: list[pictures.Row], batch_size: int) -> int:
    """Operations of a training step."""
    return flops(objective, pictures.stack([(row, i) for i, row in enumerate(rows[:batch_size])]))
