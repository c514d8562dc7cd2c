"""A small Stable Diffusion that draws what captions in Japanese and English say, trained on a laptop in an hour or two.

The autoencoder learns the pictures first. Then the U-Net learns to denoise their latents, told of the captions by the text
tower of a CLIP, which stays as it is (Rombach et al. 2022, sections 3.1 to 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiban import zoo
from kiban.adapt.pictures import objective_of
from kiban.adapt.pictures import train as train_denoiser
from kiban.config import Progress, silent
from kiban.data.pairs import Pair, choose_caption
from kiban.families.stable_diffusion import PRESETS, StableDiffusion
from kiban.generate.prompts import padded
from kiban.inputs.tokenizer import Tokenizer
from kiban.nn.vae import VAE
from kiban.objectives.autoencoder import Autoencoder, measure_latent_scale
from kiban.objectives.diffusion import seeded_loader
from kiban.recipes.squares import channels_first, moved, squares
from kiban.train.precision import usual_device
from kiban.train.settings import TrainConfig, TrainResult
from kiban.train.trainer import Trainer

ENCODE = 64  # pictures and texts encoded at once, before the U-Net's training


@dataclass(frozen=True, kw_only=True)
class Settings:
    """preset: of a Stable Diffusion; its text tower gives way. shift: pixels by which the autoencoder sees pictures moved.

    kl_weight: more than that of the paper, since the few latents of a small picture should be near N(0, 1).
    dropout: share of captions that the U-Net is not told, so that it can be guided.
    """

    preset: str = "sd-small"
    vae_steps: int = 4_000
    vae_batch_size: int = 8
    vae_lr: float = 2e-3
    shift: int = 4
    kl_weight: float = 0.01
    steps: int = 3_000
    batch_size: int = 64
    lr: float = 1e-3
    ema: float = 0.998
    dropout: float = 0.1
    min_snr: float = 5.0
    languages: tuple[str, ...] = ("ja", "en")
    seed: int = 0


def train(
    pairs: Sequence[Pair],
    clip: zoo.Loaded,
    folder: Path,
    settings: Settings | None = None,
    *,
    progress: Progress = silent,
) -> tuple[zoo.Loaded, TrainResult]:
    """The trained model. Started again with the same arguments, it goes on where it was interrupted.

    clip: whose text tower and tokenizer it takes. folder: gets checkpoints and metrics.jsonl of both stages.
    """
    c = settings or Settings()
    pictures = squares(pairs, PRESETS[c.preset].image_size, progress)
    vae, result = _learn_pictures(pictures, folder / "autoencoder", c, progress)
    if result.stopped_by == "sigterm":
        return _model(clip, vae, c), result
    scale = measure_latent_scale(vae.eval(), _batches(pictures, torch.device(usual_device())))
    model = _model(clip, vae, c, scale)
    module: Any = model.module.eval()
    latents, states = _latents(module, pictures, c.seed, progress), _states(model, pairs, c, progress)
    module.unet.train()
    result = _learn_drawing(module, pairs, latents, states, folder, c, progress)
    module.cpu().eval()
    return model, result


def _model(clip: zoo.Loaded, vae: VAE, c: Settings, latent_scale: float = 1.0) -> zoo.Loaded:
    """A fresh U-Net, the autoencoder, and CLIP's text tower without its projection."""
    text = replace(clip.config.text, embed_dim=None)
    usual = PRESETS[c.preset]
    config = replace(
        usual,
        unet=replace(usual.unet, context_dim=text.dim),
        vae=replace(usual.vae, latent_scale=latent_scale),
        texts=(text,),
    )
    generator = torch.Generator().manual_seed(c.seed)
    model = zoo.new(zoo.families()["stable_diffusion"], config, c.preset, generator=generator)
    module, tower = model.module, clip.module.text
    assert isinstance(module, StableDiffusion) and isinstance(tower, torch.nn.Module)
    module.vae.load_state_dict(vae.state_dict())
    kept = {name: value for name, value in tower.state_dict().items() if not name.startswith("projection.")}
    module.texts[0].load_state_dict(kept)
    module.to(usual_device())
    return replace(model, tokenizer=clip.tokenizer)


def in_unit_range(pixels: Tensor) -> Tensor:
    """0 to 255 as -1 to 1."""
    return pixels / 127.5 - 1


def _batches(pictures: NDArray[np.uint8], device: torch.device) -> list[Tensor]:
    """(ENCODE, 3, S, S) each, in [-1, 1]."""
    parts = [channels_first(pictures[i : i + ENCODE]) for i in range(0, len(pictures), ENCODE)]
    return [in_unit_range(part).to(device) for part in parts]


def _learn_pictures(
    pictures: NDArray[np.uint8], folder: Path, c: Settings, progress: Progress
) -> tuple[VAE, TrainResult]:
    """An autoencoder from scratch."""
    vae = VAE(PRESETS[c.preset].vae)
    zoo.initialise(vae, torch.Generator().manual_seed(c.seed))
    vae.to(usual_device())

    def collate(rows: list[tuple[int, int]]) -> dict[str, Tensor]:
        images = channels_first(np.stack([moved(pictures[i], seed, c.shift) for i, seed in rows]))
        return {"images": in_unit_range(images), "seeds": torch.tensor([seed for _, seed in rows])}

    size, rows = c.vae_batch_size, range(len(pictures))
    loader = seeded_loader(rows, collate, steps=c.vae_steps, batch_size=size, seed=c.seed)
    config = _config(c, steps=c.vae_steps, batch_size=size, lr=c.vae_lr)
    objective = Autoencoder(vae, kl_weight=c.kl_weight)
    return vae, Trainer(objective, objective.module, loader, config, folder=folder, progress=progress).run()


def _config(c: Settings, **settings: Any) -> TrainConfig:
    return TrainConfig(
        micro_batch_size=settings["batch_size"],
        schedule="wsd",
        warmup=0.03,
        betas=(0.9, 0.99),
        checkpoint_every=100,
        seed=c.seed,
        **settings,
    )


@torch.no_grad()
def _latents(module: StableDiffusion, pictures: NDArray[np.uint8], seed: int, progress: Progress) -> Tensor:
    """A draw of each picture's, (N, C, h, w) float32 on the CPU."""
    generator, found = torch.Generator().manual_seed(seed), []
    parts = _batches(pictures, next(module.parameters()).device)
    for number, part in enumerate(parts):
        found.append(module.encode_image(part, generator).cpu())
        progress("latents", min(len(pictures), (number + 1) * ENCODE), len(pictures))
    return torch.cat(found)


@torch.no_grad()
def _states(model: zoo.Loaded, pairs: Sequence[Pair], c: Settings, progress: Progress) -> dict[str, Tensor]:
    """What the text tower gives for every caption, and for none: (T, D) float32 on the CPU."""
    module, tokenizer = model.module, model.tokenizer
    assert isinstance(module, StableDiffusion) and isinstance(tokenizer, Tokenizer)
    texts = ["", *dict.fromkeys(text for pair in pairs for lang in c.languages for text in pair.captions.get(lang, ()))]
    device, length = next(module.parameters()).device, module.config.texts[0].max_seq_len
    found: dict[str, Tensor] = {}
    for first in range(0, len(texts), ENCODE):
        part = texts[first : first + ENCODE]
        states = module.encode_text([padded(tokenizer, part, length).to(device)]).context.cpu()
        found |= dict(zip(part, states, strict=True))
        progress("captions", len(found), len(texts))
    return found


def _learn_drawing(
    module: StableDiffusion,
    pairs: Sequence[Pair],
    latents: Tensor,
    states: dict[str, Tensor],
    folder: Path,
    c: Settings,
    progress: Progress,
) -> TrainResult:
    def collate(rows: list[tuple[int, int]]) -> dict[str, Tensor]:
        texts = [
            choose_caption(pairs[i].captions, seed=seed, epoch=0, row=i, languages=c.languages)[1] for i, seed in rows
        ]
        return {
            "latents": latents[[i for i, _ in rows]],
            "context": torch.stack([states[text] for text in texts]),
            "seeds": torch.tensor([seed for _, seed in rows]),
        }

    objective = objective_of(module.unet, module.config, min_snr=c.min_snr, null_context=states[""], dropout=c.dropout)
    config = _config(c, steps=c.steps, batch_size=c.batch_size, lr=c.lr, ema=c.ema)
    numbers = range(len(pairs))
    return train_denoiser(objective, numbers, config, collate=collate, folder=folder, progress=progress)
