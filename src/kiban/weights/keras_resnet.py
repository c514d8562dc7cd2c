"""Keras' first ResNet-50 (He et al.'s own weights, converted from Caffe) as a folder that transformers opens.

It differs in form, not in kind: its convolutions have biases, its normalisations another epsilon, and it reads colours as
blue, green, red from 0 to 255 with a mean taken off. All of this goes into the numbers, so that usual pixels go in. One
trace is left: pictures are padded with the usual mean, which is up to half a level of 255 away from Caffe's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kiban.errors import FormatError
from kiban.files import read_json, write_manifest
from kiban.weights.resnet_names import MEAN, STD, hf_config, preprocessor
from kiban.weights.safetensors import write_safetensors
from kiban.weights.tfjs import read_tfjs

NUM_BLOCKS = (3, 4, 6, 3)
EPSILON, USUAL_EPSILON = 1e-3, 1e-5  # of batch normalisation: Keras', torch's
CAFFE_MEAN = (103.939, 116.779, 123.68)  # blue, green, red
# ImageNet has two classes of each of these names.
SAME_NAMES = {134: "crane (bird)", 517: "crane (machine)", 639: "maillot (tank suit)"}


def convert_folder(folder: Path, weights: Path) -> None:
    """Turn model.json, labels.json and the file of weights, all in folder, into what transformers and kiban open there."""
    manifest, names = folder / "model.json", folder / "labels.json"
    tensors = to_hf_tensors(read_tfjs(manifest, weights.read_bytes()), mean=MEAN, std=STD)
    labels = _labels(names, len(tensors["classifier.1.bias"]))
    config = {
        **hf_config(NUM_BLOCKS, len(tensors["resnet.embedder.embedder.convolution.weight"]), stride_first=True),
        "architectures": ["ResNetForImageClassification"],
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        "dtype": "float32",
    }
    for path in (manifest, names, weights):
        path.unlink()
    for name, values in (("config.json", config), ("preprocessor_config.json", preprocessor())):
        (folder / name).write_text(json.dumps(values, indent=2), encoding="utf-8")
    write_safetensors(folder, tensors)
    write_manifest(folder, {"family": "resnet", "head": "image_classification"})


def _labels(path: Path, count: int) -> list[str]:
    """The names of the classes in their order. Raises FormatError unless there are count, each another one."""
    values = read_json(path)
    if set(values) != {str(number) for number in range(count)}:
        raise FormatError(path, why=f"does not name the {count:,} classes of the weights")
    labels = [SAME_NAMES.get(number, str(values[str(number)]).replace("_", " ")) for number in range(count)]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise FormatError(path, field=twice, why="is the name of two classes")
    return labels


def to_hf_tensors(tensors: Mapping[str, Tensor], *, mean: Sequence[float], std: Sequence[float]) -> dict[str, Tensor]:
    """Weights of ResNetForImageClassification with the stride in the first convolution.

    mean, std: of red, green, blue from 0 to 1, by which pixels will be normalised. Raises FormatError if one is missing.
    """
    result: dict[str, Tensor] = {}
    try:
        for theirs, norm, ours in _layers():
            result |= _conv_norm(tensors, theirs, norm, ours)
        result["classifier.1.weight"] = tensors["fc1000/kernel"].mT.contiguous()
        result["classifier.1.bias"] = tensors["fc1000/bias"]
    except KeyError as error:
        raise FormatError("ResNet-50", field=str(error.args[0]), why="is missing", hint="fetch it again") from error
    _read_usual_pixels(result, "resnet.embedder.embedder", mean, std)
    return result


def _layers() -> list[tuple[str, str, str]]:
    """Keras' names of each convolution and its normalisation, and transformers' of both."""
    found = [("conv1", "bn_conv1", "resnet.embedder.embedder")]
    for stage, count in enumerate(NUM_BLOCKS):
        for block in range(count):
            name = f"{stage + 2}{'abcdef'[block]}_branch"
            ours = f"resnet.encoder.stages.{stage}.layers.{block}"
            parts = {f"2{letter}": f"layer.{number}" for number, letter in enumerate("abc")}
            parts |= {} if block else {"1": "shortcut"}
            found += [(f"res{name}{end}", f"bn{name}{end}", f"{ours}.{part}") for end, part in parts.items()]
    return found


def _conv_norm(tensors: Mapping[str, Tensor], conv: str, norm: str, ours: str) -> dict[str, Tensor]:
    """(x + bias - mean) / sqrt(variance + epsilon) is the same with the bias taken off the mean."""
    kernel = tensors[f"{conv}/kernel"]  # (H, W, in, out)
    return {
        f"{ours}.convolution.weight": kernel.permute(3, 2, 0, 1).contiguous(),
        f"{ours}.normalization.weight": tensors[f"{norm}/gamma"],
        f"{ours}.normalization.bias": tensors[f"{norm}/beta"],
        f"{ours}.normalization.running_mean": tensors[f"{norm}/moving_mean"] - tensors[f"{conv}/bias"],
        f"{ours}.normalization.running_var": tensors[f"{norm}/moving_variance"] + (EPSILON - USUAL_EPSILON),
        f"{ours}.normalization.num_batches_tracked": torch.tensor(0),
    }


def _read_usual_pixels(result: dict[str, Tensor], stem: str, mean: Sequence[float], std: Sequence[float]) -> None:
    """255 * (std * x + mean) - Caffe's mean is what the first convolution was made for."""
    kernel = result[f"{stem}.convolution.weight"].flip(1).double()  # from blue, green, red
    scale = 255 * torch.tensor(std, dtype=torch.float64).view(3, 1, 1)
    offset = (255 * torch.tensor(mean, dtype=torch.float64) - torch.tensor(CAFFE_MEAN[::-1]).double()).view(3, 1, 1)
    name = f"{stem}.normalization.running_mean"
    result[name] = (result[name].double() - (kernel * offset).sum((1, 2, 3))).float()
    result[f"{stem}.convolution.weight"] = (kernel * scale).float().contiguous()
