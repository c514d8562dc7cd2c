"""Memory that a model needs, before anything is loaded."""

from __future__ import annotations

from typing import Literal

from kiban.config import did_you_mean
from kiban.errors import ConfigError

Way = Literal["load", "lora", "full"]
RUNTIME_BYTES = 400 * 2**20  # Python, torch and the libraries beside the weights, measured
BYTES_PER_PARAMETER = {
    "load": 4.0,  # float32 weights
    "lora": 4.0 + 0.05 * 16,  # adapters are a few percent, with gradients and two Adam moments
    "full": 16.0,  # weights, gradients, two Adam moments
}
ACTIVATIONS = {"load": 0.1, "lora": 1.0, "full": 1.0}  # of the float32 weights, at the batches that adopt uses


def estimate(parameters: int, way: Way) -> int:
    """Bytes for loading a model, or for training it with LoRA or in full, in float32.

    Raises ConfigError for an unknown way.
    """
    if way not in BYTES_PER_PARAMETER:
        raise ConfigError("memory", field=way, why="unknown way", hint=did_you_mean(way, BYTES_PER_PARAMETER))
    return int(parameters * (BYTES_PER_PARAMETER[way] + 4 * ACTIVATIONS[way])) + RUNTIME_BYTES
