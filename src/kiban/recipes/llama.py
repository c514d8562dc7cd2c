"""Llama: laptop sizes with Muon, and Llama 2 as it was trained (Touvron et al. 2023, section 2)."""

from __future__ import annotations

import dataclasses
from typing import Any

from kiban.families.llama import PRESETS, LlamaConfig
from kiban.recipes.base import Recipe, Sizes

# Non-embedding parameters in the name: (layers, width).
LAPTOP = {"0.8m": (4, 128), "1.8m": (4, 192), "3m": (4, 256), "11m": (6, 384), "25m": (8, 512), "50m": (10, 640)}
PUBLISHED = {"llama2-7b": 3e-4, "llama2-13b": 3e-4, "llama2-70b": 1.5e-4}


def _recipe(size: str, base: LlamaConfig, **settings: Any) -> Recipe:
    return Recipe(
        family="llama",
        size=size,
        config=lambda vocab_size: dataclasses.replace(base, vocab_size=vocab_size),
        objective="causal_lm",
        tokenizer="bpe",
        seq_len=base.max_seq_len,
        **settings,
    )


def _laptop(size: str) -> Recipe:
    layers, dim = LAPTOP[size]
    config = LlamaConfig(
        vocab_size=0,
        num_layers=layers,
        dim=dim,
        num_heads=dim // 64,
        num_kv_heads=dim // 64,
        ffn_dim=32 * round(8 * dim / 3 / 32),  # three matrices of this width weigh what two of four times dim do
        max_seq_len=256 if dim < 384 else 512,
        tied=True,
    )
    return _recipe(size, config, batch_tokens=4096 if dim < 384 else 16384, lr=4e-3 * (192 / dim) ** 0.5)


def _published(size: str) -> Recipe:
    adam: dict[str, Any] = {"optimizer": "adamw", "schedule": "cosine", "warmup": 0.004}
    return _recipe(size, PRESETS[size], batch_tokens=4_194_304, lr=PUBLISHED[size], vocab_size=32000, **adam)


SIZES: Sizes = {
    "tiny": _recipe("tiny", PRESETS["llama-tiny"], batch_tokens=1024, lr=5e-3),
    **{size: _laptop(size) for size in LAPTOP},
    **{size: _published(size) for size in PUBLISHED},
}
LADDER = tuple(LAPTOP)
