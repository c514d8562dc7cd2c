"""Keras' ResNet-50 in TensorFlow.js' form: read, and the same function after it was turned into transformers' form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from keras_reference import CLASSES, WIDTH, keras, manifest_and_data, random_weights
from kiban.errors import FormatError
from kiban.families.resnet import ResNetClassifier, ResNetConfig, build
from kiban.weights import resnet_names
from kiban.weights.keras_resnet import CAFFE_MEAN, NUM_BLOCKS, convert_folder, to_hf_tensors
from kiban.weights.resnet_names import MEAN, STD
from kiban.weights.tfjs import read_tfjs
from kiban.zoo.tensors import assign


def converted(t: dict[str, Tensor], mean: tuple[float, ...]) -> ResNetClassifier:
    with torch.device("meta"):
        module = ResNetClassifier(build(ResNetConfig(num_blocks=NUM_BLOCKS, width=WIDTH)), CLASSES)
    assign(module, resnet_names.hf_classifier(), to_hf_tensors(t, mean=mean, std=STD), source="x", dtype=torch.float32)
    return module.eval()


@pytest.mark.parametrize(("mean", "allowed"), [(tuple(m / 255 for m in CAFFE_MEAN[::-1]), 1e-4), (MEAN, 0.02)])
@torch.no_grad()
def test_the_function_stays_the_same(mean: tuple[float, ...], allowed: float) -> None:
    weights = random_weights()
    pictures = torch.randint(0, 256, (2, 3, 96, 96), generator=torch.Generator().manual_seed(1)).float()
    expected = keras(weights, pictures)
    normalised = (pictures / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    found = converted(weights, mean)(normalised)
    assert (found - expected).abs().max() <= allowed * expected.abs().max()


def test_a_missing_layer_is_named() -> None:
    weights = random_weights()
    del weights["bn4c_branch2b/beta"]
    with pytest.raises(FormatError, match="bn4c_branch2b/beta"):
        to_hf_tensors(weights, mean=MEAN, std=STD)


def manifest(folder: Path, weights: list[dict[str, Any]]) -> Path:
    path = folder / "model.json"
    path.write_text(json.dumps({"weightsManifest": [{"paths": ["a.bin"], "weights": weights}]}), encoding="utf-8")
    return path


def test_tensors_are_read_in_the_order_of_the_manifest(tmp_path: Path) -> None:
    first, second = torch.arange(6.0).view(2, 3), torch.tensor([7.0])
    path = manifest(
        tmp_path,
        [{"name": "b", "shape": [2, 3], "dtype": "float32"}, {"name": "a", "shape": [1], "dtype": "float32"}],
    )
    found = read_tfjs(path, first.numpy().tobytes() + second.numpy().tobytes())
    assert torch.equal(found["b"], first) and torch.equal(found["a"], second)


@pytest.mark.parametrize(
    ("labels", "told"),
    [({"0": "a"}, "5 classes"), ({str(n): "abcda"[n] for n in range(5)}, "'a'"), ({"x": "a"}, "labels.json")],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: dict[str, str], told: str) -> None:
    listed, data = manifest_and_data(random_weights())
    (tmp_path / "model.json").write_bytes(listed)
    (tmp_path / "weights.raw").write_bytes(data)
    (tmp_path / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    with pytest.raises(FormatError, match=told):
        convert_folder(tmp_path, tmp_path / "weights.raw")


GOOD = {"name": "a", "shape": [2], "dtype": "float32"}


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ([{**GOOD, "shape": [3]}], "12 bytes"),
        ([{**GOOD, "dtype": "uint8"}], "plain float32"),
        ([{**GOOD, "quantization": {"dtype": "uint8"}}], "plain float32"),
        ([{**GOOD, "shape": [1]}, {**GOOD, "shape": [1]}], "twice"),
        ([{**GOOD, "shape": [-1, -2]}], "impossible"),
        ([{"name": "a", "dtype": "float32"}], "another form"),
        ([], "0 bytes"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path, weights: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(FormatError, match=told):
        read_tfjs(manifest(tmp_path, weights), bytes(8))
