"""BERT: laptop sizes with Muon, and base and large as they were trained (Devlin et al. 2019, appendix A.2)."""

from __future__ import annotations

import dataclasses
from typing import Any

from kiban.families.bert import PRESETS, BertConfig
from kiban.recipes.base import Recipe, Sizes

LAPTOP = {"tiny": 128, "mini": 128, "small": 256, "medium": 256}  # published sizes and our sequence lengths
PUBLISHED = {"bert-base-uncased": 1e-4, "bert-large-uncased": 1e-4, "bert-base-japanese-v3": 1e-4}


def _recipe(size: str, base: BertConfig, **settings: Any) -> Recipe:
    return Recipe(
        family="bert",
        size=size,
        config=lambda vocab_size: dataclasses.replace(base, vocab_size=vocab_size),
        objective="masked_lm",
        tokenizer="wordpiece",
        **settings,
    )


def _laptop(size: str) -> Recipe:
    # Less than an epoch is seen, so nothing is to be gained from dropout.
    base = dataclasses.replace(PRESETS[f"bert-{size}"], max_seq_len=LAPTOP[size], dropout=0.0)
    lr = 4e-3 * (128 / base.dim) ** 0.5
    return _recipe(size, base, seq_len=LAPTOP[size], batch_tokens=4096, lr=lr)


def _published(size: str) -> Recipe:
    adam: dict[str, Any] = {"optimizer": "adamw", "schedule": "linear", "warmup": 0.01, "weight_decay": 0.01}
    base, rate = PRESETS[size], PUBLISHED[size]
    more: dict[str, Any] = {"vocab_size": base.vocab_size, "betas": (0.9, 0.999), **adam}
    return _recipe(size, base, seq_len=512, batch_tokens=256 * 512, lr=rate, **more)


SIZES: Sizes = {
    **{size: _laptop(size) for size in LAPTOP},
    **{size: _published(size) for size in PUBLISHED},
}
LADDER = tuple(LAPTOP)
