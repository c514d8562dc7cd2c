"""Keys and values of the tokens already seen."""

from __future__ import annotations

import torch
from torch import Tensor

from kiban.errors import LimitError


class KVCache:
    """Room for max_len tokens in every layer; length tokens are filled. keys and values: (L, B, Hkv, max_len, Dh)."""

    def __init__(
        self,
        num_layers: int,
        batch: int,
        num_kv_heads: int,
        head_dim: int,
        max_len: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (num_layers, batch, num_kv_heads, max_len, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length, self.max_len = 0, max_len

    def reserve(self, tokens: int) -> None:
        """Raises LimitError unless that many more tokens fit."""
        if self.length + tokens > self.max_len:
            raise LimitError("cache", why=f"{self.length} + {tokens} tokens do not fit into {self.max_len}")

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, Hkv, T, Dh) of one layer behind the filled part; returns all so far, as views.

        length grows once per forward pass, in `advance`. Raises LimitError if they do not fit.
        """
        self.reserve(keys.shape[2])
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Count the tokens that all layers have stored."""
        self.length += tokens
