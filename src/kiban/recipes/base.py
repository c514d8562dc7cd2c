"""What a pretraining recipe is: a family at one size, its objective, its tokenizer and how it is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from kiban.config import did_you_mean
from kiban.errors import ConfigError
from kiban.train.optim import Name


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A family at one size. batch_tokens: tokens of an optimiser step; micro_tokens: of what is in memory at once.

    config(vocab_size) gives the family's configuration. vocab_size 0: chosen by the amount of text.
    """

    family: str
    size: str
    config: Callable[[int], Any]
    objective: Literal["causal_lm", "masked_lm"]
    tokenizer: Literal["bpe", "wordpiece"]
    seq_len: int
    batch_tokens: int
    lr: float
    vocab_size: int = 0
    micro_tokens: int = 4096
    optimizer: Name = "muon"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    schedule: str = "wsd"
    warmup: float = 0.02
    z_loss: float = 0.0

    @property
    def batch_rows(self) -> int:
        """Rows of an optimiser step."""
        return max(1, self.batch_tokens // self.seq_len)


Sizes = Mapping[str, Recipe]

# Laptop sizes of decoders, non-embedding parameters in the name: (layers, width).
LAPTOP = {"0.8m": (4, 128), "1.8m": (4, 192), "3m": (4, 256), "11m": (6, 384), "25m": (8, 512), "50m": (10, 640)}


def decoder(family: str, size: str, base: Any, **settings: Any) -> Recipe:
    """A recipe for next-token prediction with base's sizes and a byte-level BPE."""
    return Recipe(
        family=family,
        size=size,
        config=lambda vocab_size: dataclasses.replace(base, vocab_size=vocab_size),
        objective="causal_lm",
        tokenizer="bpe",
        seq_len=base.max_seq_len,
        **settings,
    )


def laptop_context(dim: int) -> int:
    """Tokens of a row at a laptop size."""
    return 256 if dim < 384 else 512


def laptop_decoder(family: str, size: str, base: Any) -> Recipe:
    """A laptop size with Muon; rates fall with the width."""
    return decoder(
        family, size, base, batch_tokens=4096 if base.dim < 384 else 16384, lr=4e-3 * (192 / base.dim) ** 0.5
    )


def find(sizes: Sizes, name: str) -> Recipe:
    """The recipe of a size. Raises ConfigError with the closest name."""
    if name not in sizes:
        raise ConfigError("size", field=name, why="unknown", hint=did_you_mean(name, sizes))
    return sizes[name]


def flops_per_token(module: nn.Module, config: Any, seq_len: int) -> float:
    """Operations of a training step per token: 6 for every weight of a matrix product, 12 L H Dh T for attention.

    Chowdhery et al. 2022, appendix B. The output layer counts, also where it is tied to the embeddings.
    """
    weights = sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
    return float(6 * weights + 12 * config.num_layers * config.dim * seq_len)
