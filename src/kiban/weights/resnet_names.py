"""Names of ResNet's weights in transformers, and the settings beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kiban.weights.names import NameTable, Rule, Same, both, prefixed

EXPANSION = 4
IMAGE_SIZE, SCALED = 224, 256  # pixels: what is read, of what the shortest side is scaled to
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pictures, from 0 to 1
PARTS = ("reduce", "middle", "expand")


def preprocessor() -> dict[str, Any]:
    """preprocessor_config.json, which tells transformers how pictures are read."""
    return {
        "image_processor_type": "ConvNextImageProcessor",  # the one that transformers gives ResNet
        "size": {"shortest_edge": IMAGE_SIZE},
        "crop_pct": IMAGE_SIZE / SCALED,
        "resample": 3,  # bicubic
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }


def hf_config(num_blocks: Sequence[int], width: int, *, stride_first: bool) -> dict[str, Any]:
    """config.json of a ResNetModel with bottleneck blocks."""
    return {
        "model_type": "resnet",
        "architectures": ["ResNetModel"],
        "num_channels": 3,
        "embedding_size": width,
        "hidden_sizes": [EXPANSION * width * 2**stage for stage in range(4)],
        "depths": list(num_blocks),
        "layer_type": "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": stride_first,
    }


def hf() -> NameTable:
    """ResNetModel."""
    table: dict[str, Rule] = conv_norm("embedder.embedder", "stem")
    for stage in range(4):
        theirs, mine = f"encoder.stages.{stage}.layers.{{}}", f"stages.{stage}.{{}}"
        for number, part in enumerate(PARTS):
            table |= conv_norm(f"{theirs}.layer.{number}", f"{mine}.{part}")
        table |= conv_norm(f"{theirs}.shortcut", f"{mine}.shortcut")
    return table


def hf_classifier() -> NameTable:
    """ResNetForImageClassification."""
    return {**prefixed(hf(), "resnet.", "body."), **both("classifier.1", "classifier")}


def conv_norm(theirs: str, mine: str) -> dict[str, Rule]:
    """A convolution without bias and its batch normalisation."""
    norm, own = f"{theirs}.normalization", f"{mine}.norm"
    return {
        f"{theirs}.convolution.weight": Same(f"{mine}.conv.weight"),
        **both(norm, own),
        **{f"{norm}.{part}": Same(f"{own}.{part}") for part in ("running_mean", "running_var")},
        f"{norm}.num_batches_tracked": Same(f"{own}.num_batches_tracked", optional=True),
    }
