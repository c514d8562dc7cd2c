"""Prompts as the conditions that a Stable Diffusion's U-Net takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kiban.errors import ConfigError
from kiban.families.stable_diffusion import StableDiffusion
from kiban.generate.guidance import Condition
from kiban.inputs.tokenizer import Tokenizer
from kiban.zoo import Loaded

# What SDXL's refiner is told of how pleasing a picture is (Podell et al. 2023's code): of the prompt, and of its opposite.
SCORE, NEGATIVE_SCORE = 6.0, 2.5


def prompt_tokens(loaded: Loaded, prompts: Sequence[str]) -> list[Tensor]:
    """For each text tower (B, T) int64, T its positions: cut, and padded as its tokenizer does.

    Raises ConfigError if the model has no tokenizers.
    """
    texts = loaded.config.texts
    if len(loaded.tokenizers) != len(texts):
        hint = "put tokenizer/ with vocab.json and merges.txt into the folder, for SDXL tokenizer_2/ as well"
        raise ConfigError(loaded.source, why="has no tokenizer, so that it cannot read a prompt", hint=hint)
    return [padded(tok, prompts, text.max_seq_len) for tok, text in zip(loaded.tokenizers, texts, strict=True)]


def padded(tokenizer: Tokenizer, prompts: Sequence[str], length: int) -> Tensor:
    """(B, length) int64, cut and padded: the U-Net looks at the padding too, so that it has to be the tokenizer's own."""
    pad = tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id
    assert pad is not None, "a tokenizer of CLIP ends a text"
    rows = tokenizer.encode_batch(prompts, max_len=length)
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows])


def told(module: StableDiffusion, tokens: Sequence[Tensor]) -> dict[str, Tensor]:
    """context, and pooled if the U-Net takes it, of tokens (B, T) for each text tower."""
    states = module.encode_text(tokens)
    pooled = {} if states.pooled is None else {"pooled": states.pooled}
    return {"context": states.context, **pooled}


def sizes(width: int, height: int) -> Tensor:
    """What SDXL is told of a picture that is as large as it is and not cut, (1, 6): size, top and left, size asked for."""
    return torch.tensor([[height, width, 0, 0, height, width]])


def condition(
    loaded: Loaded, prompts: Sequence[str], *, width: int, height: int, negative: bool = False
) -> dict[str, Tensor]:
    """What the U-Net is told of prompts, a row for each. width, height: of the picture in pixels.

    negative: of prompts to keep away from. An empty one is nothing but zeros in SDXL, which was trained so.
    """
    module = loaded.module
    assert isinstance(module, StableDiffusion)
    device = next(module.parameters()).device
    found = told(module, [tokens.to(device) for tokens in prompt_tokens(loaded, prompts)])
    num_sizes = module.config.num_sizes
    if num_sizes:
        own = sizes(width, height).float()
        if num_sizes == 5:
            own = torch.cat((own[:, :4], torch.tensor([[NEGATIVE_SCORE if negative else SCORE]])), dim=1)
        found["sizes"] = own.to(device)
    if negative and num_sizes == 6:
        empty = torch.tensor([not prompt for prompt in prompts], device=device)
        found["context"] = found["context"].masked_fill(empty[:, None, None], 0)
        found["pooled"] = found["pooled"].masked_fill(empty[:, None], 0)
    return found


def with_channels(told: Condition, channels: Tensor) -> Condition:
    """The condition, and what stands behind the noisy latent in the U-Net's input."""
    return {**told, "channels": channels}
