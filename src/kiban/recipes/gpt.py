"""GPT: laptop sizes with Muon, and the published ones as their papers trained them."""

from __future__ import annotations

import dataclasses
from typing import Any

from kiban.families.gpt import PRESETS, GPTConfig
from kiban.recipes.base import LAPTOP, Recipe, Sizes, decoder, laptop_context, laptop_decoder

# Brown et al. 2020, table 2.1: tokens of a batch and the rate.
PUBLISHED = {
    "gpt2-small": (0.5e6, 6e-4),
    "gpt2-medium": (0.5e6, 3e-4),
    "gpt2-large": (0.5e6, 2.5e-4),
    "gpt2-xl": (1e6, 2e-4),
    "gpt3-small": (0.5e6, 6e-4),
    "gpt3-medium": (0.5e6, 3e-4),
    "gpt3-large": (0.5e6, 2.5e-4),
    "gpt3-xl": (1e6, 2e-4),
    "gpt3-2.7b": (1e6, 1.6e-4),
    "gpt3-6.7b": (2e6, 1.2e-4),
    "gpt3-13b": (2e6, 1e-4),
    "gpt3-175b": (3.2e6, 0.6e-4),
}


def _laptop(size: str) -> Recipe:
    layers, dim = LAPTOP[size]
    context = laptop_context(dim)
    config = GPTConfig(vocab_size=0, num_layers=layers, dim=dim, num_heads=dim // 64, max_seq_len=context)
    return laptop_decoder("gpt", size, config)


def _published(size: str) -> Recipe:
    batch, lr = PUBLISHED[size]
    adam: dict[str, Any] = {"optimizer": "adamw", "schedule": "cosine", "warmup": 0.01}
    # Every layer dense: a band does not mix with the mask that keeps documents apart, and Hugging Face has none.
    config = dataclasses.replace(PRESETS[size], band=None)
    return decoder("gpt", size, config, batch_tokens=int(batch), lr=lr, vocab_size=config.vocab_size, **adam)


SIZES: Sizes = {
    "tiny": decoder("gpt", "tiny", PRESETS["gpt-tiny"], batch_tokens=1024, lr=5e-3),
    **{size: _laptop(size) for size in LAPTOP},
    **{size: _published(size) for size in PUBLISHED},
}
LADDER = tuple(LAPTOP)  # what a time budget chooses from
