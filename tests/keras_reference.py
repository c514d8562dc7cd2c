"""A narrow ResNet-50 under Keras' names, what Keras computes with it, and the files of TensorFlow.js that hold it."""

from __future__ import annotations

import json

import torch
from torch import Tensor
from torch.nn import functional as F

from kiban.weights.keras_resnet import CAFFE_MEAN, EPSILON, NUM_BLOCKS

WIDTH, CLASSES = 8, 5


def random_weights(seed: int = 0) -> dict[str, Tensor]:
    """A narrow network under Keras' names."""
    source = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}

    def layer(conv: str, norm: str, kernel: int, inputs: int, outputs: int) -> None:
        shape = (kernel, kernel, inputs, outputs)
        scale = 1 / 70 if conv == "conv1" else 1.0  # it reads numbers up to 255
        found[f"{conv}/kernel"] = torch.randn(shape, generator=source) * scale * (kernel**2 * inputs) ** -0.5
        found[f"{conv}/bias"] = torch.randn(outputs, generator=source) * 0.3
        for name in ("gamma", "beta", "moving_mean"):
            found[f"{norm}/{name}"] = torch.randn(outputs, generator=source) * 0.3 + (name == "gamma")
        found[f"{norm}/moving_variance"] = torch.rand(outputs, generator=source) + 0.1

    layer("conv1", "bn_conv1", 7, 3, WIDTH)
    inputs = WIDTH
    for stage, count in enumerate(NUM_BLOCKS):
        width = WIDTH * 2**stage
        for block in range(count):
            name = f"{stage + 2}{'abcdef'[block]}_branch"
            layer(f"res{name}2a", f"bn{name}2a", 1, inputs, width)
            layer(f"res{name}2b", f"bn{name}2b", 3, width, width)
            layer(f"res{name}2c", f"bn{name}2c", 1, width, 4 * width)
            if not block:
                layer(f"res{name}1", f"bn{name}1", 1, inputs, 4 * width)
            inputs = 4 * width
    found["fc1000/kernel"] = torch.randn(inputs, CLASSES, generator=source) * inputs**-0.5
    found["fc1000/bias"] = torch.randn(CLASSES, generator=source)
    return found


def keras(t: dict[str, Tensor], pictures: Tensor) -> Tensor:
    """What Keras computes for pictures (B, 3, H, W), red, green, blue from 0 to 255: logits."""

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        kernel = t[f"{conv}/kernel"].permute(3, 2, 0, 1)
        y = F.conv2d(x, kernel, t[f"{conv}/bias"], stride=stride, padding=kernel.shape[-1] // 2)
        mean, variance, gamma, beta = (
            t[f"{norm}/{name}"].view(1, -1, 1, 1) for name in ("moving_mean", "moving_variance", "gamma", "beta")
        )
        return (y - mean) / (variance + EPSILON).sqrt() * gamma + beta

    x = pictures.flip(1) - torch.tensor(CAFFE_MEAN).view(1, 3, 1, 1)
    x = F.max_pool2d(F.pad(layer(x, "conv1", "bn_conv1", 2).relu(), (1, 1, 1, 1)), 3, stride=2)
    for stage, count in enumerate(NUM_BLOCKS):
        for block in range(count):
            name, stride = f"{stage + 2}{'abcdef'[block]}_branch", 2 if stage and not block else 1
            y = layer(x, f"res{name}2a", f"bn{name}2a", stride).relu()
            y = layer(layer(y, f"res{name}2b", f"bn{name}2b").relu(), f"res{name}2c", f"bn{name}2c")
            x = (y + (x if block else layer(x, f"res{name}1", f"bn{name}1", stride))).relu()
    return x.mean((2, 3)) @ t["fc1000/kernel"] + t["fc1000/bias"]


def manifest_and_data(weights: dict[str, Tensor]) -> tuple[bytes, bytes]:
    """model.json, and the numbers joined in its order."""
    listed = [{"name": name, "shape": list(tensor.shape), "dtype": "float32"} for name, tensor in weights.items()]
    data = b"".join(tensor.numpy().astype("<f4").tobytes() for tensor in weights.values())
    return json.dumps({"weightsManifest": [{"paths": [], "weights": listed}]}).encode(), data
