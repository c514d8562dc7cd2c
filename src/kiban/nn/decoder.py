"""What every decoder of text does alike, whatever its blocks are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kiban.nn import init
from kiban.nn.cache import KVCache


class Decoder(nn.Module, ABC):
    """tokens (B, T) int64 to logits (B, T, V), by `hidden` and head, a linear layer.

    config has num_layers, num_kv_heads and head_dim. stds: standard deviations of initial weights that are not 0.02.
    """

    config: Any
    head: nn.Module
    stds: ClassVar[Mapping[str, float]] = {}

    @abstractmethod
    def hidden(self, tokens: Tensor, *, mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Last states after the final norm, (B, T, D).

        mask: (B, past + T) bool, True where a token is real, or (B, T, past + T) bool, True where a query may look; None if
        all are real. cache: the past, extended in place.
        """

    def forward(
        self, tokens: Tensor, *, mask: Tensor | None = None, cache: KVCache | None = None, last_only: bool = False
    ) -> Tensor:
        """Logits (B, T, V), or (B, 1, V) for the last position alone. Arguments as in `hidden`."""
        x = self.hidden(tokens, mask=mask, cache=cache)
        return torch.as_tensor(self.head(x[:, -1:] if last_only else x))

    def make_cache(
        self, batch: int, max_len: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> KVCache:
        """An empty cache for batch sequences of at most max_len tokens."""
        c = self.config
        return KVCache(c.num_layers, batch, c.num_kv_heads, c.head_dim, max_len, dtype=dtype, device=device)

    def initialise(self, generator: torch.Generator | None) -> None:
        """N(0, 0.02^2); projections back into the residual stream are scaled by 1/sqrt(2L) (Radford et al. 2019)."""
        init.constants(self)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(("attn.o.weight", "ffn.down.weight"))
                scale = (2 * self.config.num_layers) ** -0.5 if residual else 1.0
                init.normal(parameter, self.stds.get(name, 0.02 * scale), generator)
