"""Fixtures shared by all tests: real weights, pulled once and then offline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """MiniLM-L6, a Hugging Face folder."""
    from kiban.catalogue.pull import pull

    return pull("minilm-l6")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, a GGUF file in Q4_1."""
    from kiban.catalogue.pull import pull

    return pull("smollm2-135m-instruct")
