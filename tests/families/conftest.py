"""Small random decoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kiban import zoo

BASES: dict[str, dict[str, Any]] = {
    "gpt": {"vocab_size": 97, "num_layers": 4, "dim": 48, "num_heads": 6, "max_seq_len": 32},
    "llama": {
        "vocab_size": 97, "num_layers": 3, "dim": 48, "num_heads": 6, "num_kv_heads": 2, "ffn_dim": 80, "max_seq_len": 64,
    },
}  # fmt: skip


def decoder(name: str, **changes: Any) -> zoo.Loaded:
    """A small random model of a family, float32, in eval mode; weights large enough that a mistake shows."""
    family = zoo.families()[name]
    loaded = zoo.new(
        family, family.config_class(**{**BASES[name], **changes}), "small", generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        for parameter in loaded.module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    loaded.module.eval()
    return loaded


@pytest.fixture(scope="session")
def decoder_of() -> Callable[..., zoo.Loaded]:
    return decoder


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 97, (3, 20), generator=torch.Generator().manual_seed(3))
