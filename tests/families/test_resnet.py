"""ResNet against transformers: forward, folders, pixels; counts of the paper's sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    ResNetForImageClassification,
    ResNetModel,
)
from transformers import ResNetConfig as TheirConfig

from kiban import zoo
from kiban.catalogue.pull import pull
from kiban.errors import ConfigError, DatasetError, FormatError
from kiban.families.resnet import ResNetClassifier, ResNetConfig, from_hf, resnet_pixels, to_hf
from kiban.nn.resnet_v1 import ResNetV1
from kiban.weights.resnet_names import preprocessor
from random_weights import fill

SMALL = ResNetConfig(num_blocks=(1, 2, 2, 1), width=8)
FAMILY = zoo.families()["resnet"]


def filled(module: nn.Module, seed: int = 1) -> nn.Module:
    """Weights, and statistics of batch normalisation, that show."""
    fill(module, seed)
    source = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.add_(1)
                assert part.running_mean is not None and part.running_var is not None
                part.running_mean.normal_(0, 0.3, generator=source)
                part.running_var.uniform_(0.5, 2, generator=source)
    return module.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("stride_first", [True, False])
def test_the_forward_pass_is_that_of_transformers(stride_first: bool, images: Tensor, tmp_path: Path) -> None:
    config = ResNetConfig(num_blocks=(1, 2, 3, 2), width=16, stride_first=stride_first)
    theirs = filled(ResNetModel(TheirConfig(**{k: v for k, v in to_hf(config).items() if k != "architectures"})))
    theirs.save_pretrained(tmp_path)  # type: ignore[operator]
    ours = zoo.load(tmp_path)
    assert ours.config == config and ours.head is None
    with torch.no_grad():
        expected = theirs(images).pooler_output.flatten(1)
        assert expected.std() > 0.01
        torch.testing.assert_close(ours.module(images), expected, atol=1e-5, rtol=1e-5)


def test_a_folder_of_ours_opens_in_transformers_with_its_labels(images: Tensor, tmp_path: Path) -> None:
    labels = ("りんご", "dog", "鳥")
    made = zoo.new(FAMILY, SMALL, "small", head="image_classification", labels=labels)
    filled(made.module)
    zoo.save(made, tmp_path / "model")
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path / "model").eval()
    assert isinstance(theirs, ResNetForImageClassification) and list(theirs.config.id2label.values()) == list(labels)
    again = zoo.load(tmp_path / "model")
    assert again.labels == labels and again.head == "image_classification"
    with torch.no_grad():
        expected = made.module(images)
        torch.testing.assert_close(theirs(images).logits, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(again.module(images), expected)


def test_a_bare_folder_opens_in_transformers(images: Tensor, tmp_path: Path) -> None:
    made = zoo.new(FAMILY, SMALL, "small")
    filled(made.module)
    zoo.save(made, tmp_path / "model")
    theirs = AutoModel.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(images).pooler_output.flatten(1), made.module(images), atol=1e-5, rtol=1e-5)


# He et al.'s table 1 has no counts; these are of the networks with their classifier of 1,000, as torchvision states them.
@pytest.mark.parametrize(
    ("preset", "count"), [("resnet-50", 25_557_032), ("resnet-101", 44_549_160), ("resnet-152", 60_192_808)]
)
def test_published_sizes_have_their_parameters(preset: str, count: int) -> None:
    labels = tuple(str(number) for number in range(1000))
    assert zoo.create(preset, head="image_classification", labels=labels, device="meta").num_parameters == count
    assert zoo.create(preset, device="meta").num_parameters == count - 2048 * 1000 - 1000


@pytest.mark.parametrize("size", [(300, 200), (123, 457), (256, 256), (31, 40), (1000, 501)])
def test_pixels_are_those_of_transformers_in_every_bit(size: tuple[int, int], tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor()), encoding="utf-8")
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    expected = processor(Image.fromarray(noise), return_tensors="pt")["pixel_values"]
    assert torch.equal(resnet_pixels(Image.fromarray(noise))[None], expected)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"x\.png"):
        resnet_pixels(tmp_path / "x.png")
    Image.new("RGB", (400_000, 1)).save(tmp_path / "thin.png")
    with pytest.raises(DatasetError, match=r"thin\.png.*long and thin"):
        resnet_pixels(tmp_path / "thin.png")


def test_one_batch_is_learned_by_heart() -> None:
    labels = tuple("abcdefgh")
    made = zoo.create(
        "resnet-tiny", head="image_classification", labels=labels, generator=torch.Generator().manual_seed(0)
    )
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    made.module.train()
    optimiser = torch.optim.Adam(made.module.parameters(), lr=3e-3)
    for _ in range(60):
        loss = nn.functional.cross_entropy(made.module(images), torch.arange(8))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.1


def test_every_block_begins_as_its_shortcut() -> None:
    module = zoo.create("resnet-tiny", generator=torch.Generator().manual_seed(0)).module.train()
    assert isinstance(module, ResNetV1)
    x = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    block = module.stages[0][0]  # type: ignore[index]
    assert torch.equal(block(x), block.shortcut(x).relu())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layer_type": "basic"}, "layer_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_sizes": [256, 512, 1024]}, "hidden_sizes"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage"),
    ],
)
def test_other_networks_of_transformers_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(FormatError, match=told):
        from_hf({**to_hf(SMALL), **change})
    with pytest.raises(ConfigError):
        from_hf({**to_hf(SMALL), "depths": [3, 4, 6]})


@pytest.mark.slow
@pytest.mark.weights
def test_the_published_weights_give_what_transformers_gives() -> None:
    folder = pull("resnet-50-imagenet")
    ours, theirs = zoo.load(folder), AutoModelForImageClassification.from_pretrained(folder).eval()
    assert isinstance(ours.module, ResNetClassifier) and ours.labels[7] == theirs.config.id2label[7] == "cock"
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    images = [Image.fromarray(noise), Image.new("RGB", (300, 300), (250, 140, 20))]
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(torch.stack([resnet_pixels(image) for image in images]), pixels)
    with torch.no_grad():
        torch.testing.assert_close(ours.module(pixels), theirs(pixels).logits, atol=1e-4, rtol=1e-4)
        features = theirs.resnet(pixels).pooler_output.flatten(1)
        torch.testing.assert_close(ours.module.body(pixels), features, atol=1e-4, rtol=1e-4)
