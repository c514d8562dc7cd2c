"""ResNet. He et al. 2016. A vision backbone that `adopt` and picture search use, not one of the twelve systems.

Bottleneck blocks alone (50 layers and more). The embedding of a picture is the mean of the last feature map. Files of
both places of the stride open: the paper's (v1) and the 3x3 convolution (v1.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kiban.config import Family, Head, Traits
from kiban.errors import ConfigError, DatasetError, FormatError
from kiban.inputs.image import Picture, clip_pixels, cover, read_image
from kiban.nn import init
from kiban.nn.resnet_v1 import ResNetV1
from kiban.weights import resnet_names
from kiban.weights.resnet_names import IMAGE_SIZE, MEAN, SCALED, STD


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """See `kiban.nn.resnet_v1`."""

    num_blocks: tuple[int, ...]
    width: int = 64
    stride_first: bool = True

    def __post_init__(self) -> None:
        if len(self.num_blocks) != 4 or min(self.num_blocks) < 1 or self.width < 1:
            raise ConfigError("num_blocks", field=str(self.num_blocks), why="needs four stages of one block or more")


def build(config: ResNetConfig) -> ResNetV1:
    """pixels (B, 3, H, W), as `resnet_pixels` makes them, to features (B, 32 * width)."""
    return ResNetV1(config.num_blocks, width=config.width, stride_first=config.stride_first)


class ResNetClassifier(nn.Module):
    """pixels (B, 3, H, W) to logits (B, num_labels): a linear layer on the features."""

    def __init__(self, body: ResNetV1, num_labels: int) -> None:
        super().__init__()
        self.body, self.classifier = body, nn.Linear(body.embed_dim, num_labels)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.as_tensor(self.classifier(self.body(pixels)))

    def initialise(self, generator: torch.Generator | None) -> None:
        """The classifier alone; the body draws its own."""
        init.constants(self.classifier)
        init.normal(self.classifier.weight, 0.01, generator)


def resnet_pixels(source: Picture, *, name: str = "") -> Tensor:
    """A picture as ResNet reads it, (3, 224, 224) float32: shortest side scaled to 256 (bicubic), the middle cut out.

    Equal in every bit to transformers' ConvNextImageProcessor with Pillow, set as `resnet_names.preprocessor` says.
    Raises DatasetError as `read_image` does.
    """
    margin, name = (SCALED - IMAGE_SIZE) // 2, name or (str(source) if isinstance(source, str | Path) else "picture")
    image = read_image(source, name=name)
    try:
        scaled = cover(image, SCALED, SCALED)
    except DatasetError as error:
        raise DatasetError(name, why=error.why, hint=error.hint) from error
    middle = scaled.crop((margin, margin, margin + IMAGE_SIZE, margin + IMAGE_SIZE))
    return clip_pixels(middle, size=IMAGE_SIZE, mean=MEAN, std=STD)


def from_hf(values: Mapping[str, Any]) -> ResNetConfig:
    """config.json of transformers' ResNet. Raises FormatError for an architecture that is not He et al.'s bottleneck one."""
    width = int(values.get("embedding_size", 64))
    depths = tuple(int(count) for count in values.get("depths", (3, 4, 6, 3)))
    config = ResNetConfig(
        num_blocks=depths, width=width, stride_first=bool(values.get("downsample_in_bottleneck", False))
    )
    for name, ours in to_hf(config).items():
        if name != "architectures" and values.get(name, ours) != ours:
            raise FormatError("config.json", field=name, why=f"is {values[name]!r}, kiban's ResNet has {ours!r}")
    return config


def to_hf(c: ResNetConfig) -> dict[str, Any]:
    """config.json that transformers reads."""
    return resnet_names.hf_config(c.num_blocks, c.width, stride_first=c.stride_first)


FAMILY = Family(
    name="resnet",
    config_class=ResNetConfig,
    build=build,
    traits=Traits(reads=frozenset({"image"}), writes=frozenset({"embedding"}), causal=False),
    presets={
        "resnet-50": ResNetConfig(num_blocks=(3, 4, 6, 3)),
        "resnet-101": ResNetConfig(num_blocks=(3, 4, 23, 3)),
        "resnet-152": ResNetConfig(num_blocks=(3, 8, 36, 3)),
        "resnet-tiny": ResNetConfig(num_blocks=(1, 1, 1, 1), width=8),
    },
    architecture="ResNetModel",
    hf_model_types=("resnet",),
    from_hf=from_hf,
    to_hf=to_hf,
    hf_names=lambda config: resnet_names.hf(),
    preprocessor=lambda config: resnet_names.preprocessor(),
    heads={
        "image_classification": Head(
            build=ResNetClassifier,
            architecture="ResNetForImageClassification",
            names=lambda config: resnet_names.hf_classifier(),
        ),
    },
)
