"""Llama: laptop sizes with Muon, and Llama 2 as it was trained (Touvron et al. 2023, section 2)."""

from __future__ import annotations

from typing import Any

from kiban.families.llama import PRESETS, LlamaConfig
from kiban.recipes.base import LAPTOP, Recipe, Sizes, decoder, laptop_context, laptop_decoder

PUBLISHED = {"llama2-7b": 3e-4, "llama2-13b": 3e-4, "llama2-70b": 1.5e-4}


def _laptop(size: str) -> Recipe:
    layers, dim = LAPTOP[size]
    config = LlamaConfig(
        vocab_size=0,
        num_layers=layers,
        dim=dim,
        num_heads=dim // 64,
        num_kv_heads=dim // 64,
        ffn_dim=32 * round(8 * dim / 3 / 32),  # three matrices of this width weigh what two of four times dim do
        max_seq_len=laptop_context(dim),
        tied=True,
    )
    return laptop_decoder("llama", size, config)


def _published(size: str) -> Recipe:
    adam: dict[str, Any] = {"optimizer": "adamw", "schedule": "cosine", "warmup": 0.004}
    return decoder("llama", size, PRESETS[size], batch_tokens=4_194_304, lr=PUBLISHED[size], vocab_size=32000, **adam)


SIZES: Sizes = {
    "tiny": decoder("llama", "tiny", PRESETS["llama-tiny"], batch_tokens=1024, lr=5e-3),
    **{size: _laptop(size) for size in LAPTOP},
    **{size: _published(size) for size in PUBLISHED},
}
LADDER = tuple(LAPTOP)
