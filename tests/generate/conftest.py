"""A small random Llama."""

from __future__ import annotations

import pytest
import torch

from kiban import zoo
from kiban.families.llama import Llama, LlamaConfig


@pytest.fixture(scope="session")
def tiny_llama() -> Llama:
    """Random, with grouped heads; the weights are large enough that answers vary with the prompt."""
    config = LlamaConfig(
        vocab_size=258, num_layers=3, dim=48, num_heads=6, num_kv_heads=2, ffn_dim=96, max_seq_len=192, norm_eps=1e-5
    )
    model = zoo.initialise(Llama(config), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    return model.eval()  # type: ignore[return-value]
