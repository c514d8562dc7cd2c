"""DreamBooth. Ruiz et al. 2023. A rare word becomes the name of one thing, learned from a few pictures of it.

Lest the model forget what else is of its kind, it goes on learning pictures of the kind that it drew itself before (prior
preservation, section 3.3). Deviation: rarity is read from the tokenizer's order, since a model file has no counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from kiban.adapt.pictures import Row, TokenUNet, objective_of, stack, train
from kiban.config import Progress, silent
from kiban.errors import ConfigError
from kiban.families.stable_diffusion import StableDiffusion
from kiban.generate.draw import diffusion_model
from kiban.generate.guidance import classifier_free
from kiban.generate.images import ImageSampling, generate
from kiban.generate.prompts import sizes, told
from kiban.inputs.tokenizer import Tokenizer
from kiban.objectives.diffusion import MOST_SEED
from kiban.train.settings import Hooks, TrainConfig, TrainResult

LETTERS = 3  # at most, so that a name is no word with a meaning of its own (section 3.2)

Pair = tuple[Row, Row]
"""A picture of the thing and one of its kind."""


def rare_token(tokenizer: Tokenizer) -> str:
    """A name: three small letters that are one token, the last such in the tokenizer's order, which is the rarest in BPE.

    Raises ConfigError if there is none.
    """
    for token in range(tokenizer.vocab_size - 1, -1, -1):
        text = tokenizer.decode([token]).strip()
        plain = len(text) == LETTERS and text.isascii() and text.isalpha() and text.islower()
        if plain and tokenizer.encode(text, add_special=False) == [token]:
            return text
    raise ConfigError("tokenizer", why=f"has no token of {LETTERS} letters that could be a name", hint="choose a word")


def instance_and_class(name: str, kind: str) -> tuple[str, str]:
    """The prompts of the thing and of its kind, such as "a sks dog" and "a dog" (section 3.2)."""
    return f"a {name} {kind}", f"a {kind}"


def draw_class(
    model: StableDiffusion,
    tokens: Tensor,
    null: Tensor,
    *,
    seeds: Sequence[int],
    side: int,
    sampling: ImageSampling | None = None,
    guidance_scale: float = 7.5,
    progress: Progress = silent,
) -> Tensor:
    """What the model, before it learns, draws of a kind: latents (len(seeds), C, side/f, side/f) on the CPU.

    tokens, null: (N, T) of the kind's prompt and of the empty one. side: of the pictures, in pixels.
    """
    c, device = model.config, model.unet.conv_in.weight.device
    with torch.no_grad():
        conditions = [told(model, given[:, None].to(device).unbind()) for given in (tokens, null)]
    if c.num_sizes:
        conditions = [{**condition, "sizes": sizes(side, side).to(device)} for condition in conditions]
    latents = generate(
        diffusion_model(model),
        classifier_free(*conditions, guidance_scale=guidance_scale),
        sampling or ImageSampling(),
        seeds=seeds,
        shape=(c.vae.latent_channels, side // c.vae.factor, side // c.vae.factor),
        device=device,
        progress=progress,
    )
    return latents.cpu().clone()  # what inference mode made cannot be learned from


def pairs(instance: Sequence[Row], prior: Sequence[Row]) -> list[Pair]:
    """Every row of the longer list once, with those of the shorter one over and over."""
    count = max(len(instance), len(prior))
    return [(instance[i % len(instance)], prior[i % len(prior)]) for i in range(count)]


def collate(some: Sequence[tuple[Pair, int]], *, prior_weight: float) -> dict[str, Tensor]:
    """A batch of both pictures of each pair, with noise of their own.

    The trainer averages over both; with weights of 2 and 2 * prior_weight that is the paper's sum of two means (eq. 2).
    """
    own = [(instance, seed) for (instance, _), seed in some]
    kind = [(prior, MOST_SEED - 1 - seed) for (_, prior), seed in some]
    weights = torch.tensor([2.0] * len(own) + [2.0 * prior_weight] * len(kind))
    return {**stack(own + kind), "weights": weights[:, None, None, None]}


def learn_all(model: StableDiffusion, *, texts: bool = False) -> None:
    """Let the whole U-Net learn, and the text towers if asked for, as the paper does; `add_image_lora` takes less memory."""
    model.requires_grad_(False)
    for part in [model.unet, *(model.texts if texts else [])]:
        part.requires_grad_(True)


def dreambooth(
    model: StableDiffusion,
    instance: Sequence[Row],
    prior: Sequence[Row],
    config: TrainConfig,
    *,
    prior_weight: float = 1.0,
    folder: Path | None = None,
    hooks: Hooks | None = None,
    progress: Progress = silent,
) -> TrainResult:
    """Train what requires gradients in the model. A row of config's batches is a pair of pictures.

    instance, prior: of `rows_of`, with the tokens of the prompts of `instance_and_class`. Raises ConfigError if one is empty
    or prior_weight is not above 0.
    """
    if not instance or not prior or not prior_weight > 0:
        why = "needs pictures of the thing, pictures of its kind, and a prior_weight above 0"
        raise ConfigError("dreambooth", why=why, hint="without a prior, use kiban.adapt.pictures.train")
    objective = objective_of(TokenUNet(model), model.config)
    return train(
        objective,
        pairs(instance, prior),
        config,
        collate=lambda some: collate(some, prior_weight=prior_weight),
        folder=folder,
        hooks=hooks,
        progress=progress,
    )
