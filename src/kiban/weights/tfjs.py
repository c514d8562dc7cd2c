"""Weights as TensorFlow.js keeps them: a JSON manifest of names and shapes, and raw numbers one behind the other."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kiban.errors import FormatError
from kiban.files import read_json


def read_tfjs(manifest: Path, data: bytes) -> dict[str, Tensor]:
    """The tensors of a layers model by name, float32. data: the files that the manifest lists, joined in its order.

    Raises FormatError for a manifest of another form, quantised numbers, or data of another length.
    """
    groups = read_json(manifest).get("weightsManifest")
    try:
        entries = [(str(entry["name"]), entry) for group in groups or () for entry in group["weights"]]
        shapes = {name: tuple(int(size) for size in entry["shape"]) for name, entry in entries}
        foreign = [name for name, e in entries if e["dtype"] != "float32" or "quantization" in e]
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(manifest, field="weightsManifest", why=f"is of another form: {error}") from error
    if foreign:
        raise FormatError(manifest, field=foreign[0], why="is not kept as plain float32")
    if len(shapes) < len(entries) or any(size < 0 for shape in shapes.values() for size in shape):
        raise FormatError(
            manifest, field="weightsManifest", why="names a tensor twice, or gives it an impossible shape"
        )
    counts = [math.prod(shape) for shape in shapes.values()]
    if not shapes or 4 * sum(counts) != len(data):
        why = f"promises {4 * sum(counts):,} bytes of weights, there are {len(data):,}"
        raise FormatError(manifest, field="weightsManifest", why=why)
    numbers = torch.from_numpy(np.frombuffer(data, "<f4").astype(np.float32))
    parts = torch.split(numbers, counts)
    return {name: part.reshape(shape).clone() for (name, shape), part in zip(shapes.items(), parts, strict=True)}
