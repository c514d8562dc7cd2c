"""A small convolutional network, learned from these pictures alone: a ResNet (He et al. 2015) of four basic blocks.

The names of its parameters are those of transformers' ResNet, so that the folder opens there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.adopt.strategies.base import Fitted, Job, Task
from kiban.adopt.strategies.image_training import Pixels, Preparation, classify, epochs_to_steps, train_pictures
from kiban.files import read_json, verify_folder
from kiban.inputs.image import read_image
from kiban.weights.folder import write_folder
from kiban.weights.safetensors import read_safetensors

SIZE = 64
STEM, WIDTHS = 32, (32, 64, 128, 256)
EPOCHS = 40
MAX_VALIDATION = 400
MEAN = STD = (0.5, 0.5, 0.5)


class _Conv(nn.Module):
    """Convolution and batch normalisation."""

    def __init__(self, inside: int, outside: int, *, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False)
        self.normalization = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.normalization(self.convolution(x)))


class _Block(nn.Module):
    """Two convolutions beside a shortcut (figure 2), which is a convolution of 1 x 1 where the size changes."""

    def __init__(self, inside: int, outside: int, *, stride: int) -> None:
        super().__init__()
        same = inside == outside and stride == 1
        self.shortcut = nn.Identity() if same else _Conv(inside, outside, kernel=1, stride=stride)
        first = _Conv(inside, outside, kernel=3, stride=stride)
        self.layer = nn.Sequential(first, _Conv(outside, outside, kernel=3))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer[1](F.relu(self.layer[0](x))) + self.shortcut(x))


class SmallResNet(nn.Module):
    """pixels (B, 3, S, S) to logits (B, C)."""

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        blocks = [
            _Block(inside, outside, stride=1 if i == 0 else 2)
            for i, (inside, outside) in enumerate(zip((STEM, *WIDTHS), WIDTHS, strict=False))
        ]
        stages = nn.ModuleList(nn.ModuleDict({"layers": nn.ModuleList([block])}) for block in blocks)
        self.resnet = nn.ModuleDict(
            {
                "embedder": nn.ModuleDict({"embedder": _Conv(3, STEM, kernel=7, stride=2)}),
                "encoder": nn.ModuleDict({"stages": stages}),
            }
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(WIDTHS[-1], num_labels))

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.relu(self.resnet.get_submodule("embedder.embedder")(pixels))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)  # a quarter of a side
        for stage in self.resnet.get_submodule("encoder.stages").children():
            x = stage.get_submodule("layers.0")(x)
        return torch.as_tensor(self.classifier(x.mean((2, 3))))


def _squeezed(path: Any) -> Pixels:
    """The whole picture on a square: proportions are lost, and nothing else."""
    return np.asarray(read_image(path).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


HOW = Preparation(read=_squeezed, size=SIZE, mean=MEAN, std=STD)


class SmallCNNPredictor:
    """A network and its labels."""

    def __init__(self, module: SmallResNet, labels: Sequence[str]) -> None:
        self.module, self.labels = module.eval(), tuple(labels)

    def predict(self, inputs: Sequence[Any]) -> NDArray[np.float64]:
        """Probabilities (N, C). Raises DatasetError that names a picture that cannot be read."""
        if not len(inputs):
            return np.zeros((0, len(self.labels)))
        return classify(self.module, HOW, np.stack([_squeezed(path) for path in inputs]))

    def save(self, folder: Path) -> None:
        """Write a folder that `AutoModelForImageClassification` opens."""
        preprocessor = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": SIZE, "width": SIZE},
            "resample": 2,  # bilinear
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(MEAN),
            "image_std": list(STD),
        }
        write_folder(
            folder,
            tensors=self.module.state_dict(),
            config=_hf_config(self.labels),
            files={"preprocessor_config.json": json.dumps(preprocessor, indent=1)},
            manifest={"strategy": "small_cnn", "labels": list(self.labels)},
        )

    @classmethod
    def load(cls, folder: Path) -> SmallCNNPredictor:
        verify_folder(folder)
        labels = read_json(folder / "kiban.json")["labels"]
        module = SmallResNet(len(labels))
        try:
            module.load_state_dict(read_safetensors(folder / "model.safetensors"))
        except RuntimeError as error:
            raise ValueError(f"model.safetensors does not fit: {error}") from error
        return cls(module, labels)


def _hf_config(labels: Sequence[str]) -> dict[str, Any]:
    return {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "num_channels": 3,
        "embedding_size": STEM,
        "hidden_sizes": list(WIDTHS),
        "depths": [1] * len(WIDTHS),
        "layer_type": "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "dtype": "float32",
    }


class SmallCNN:
    """See the module's first lines."""

    name = "small_cnn"
    learns = True

    def refusal(self, task: Task, traits: Any) -> str | None:
        if task.kind != "image":
            return f"not written for {task.kind} tasks"
        return None if traits is None else "needs no model"

    def default_steps(self, train_rows: int) -> int:
        return epochs_to_steps(EPOCHS, train_rows)

    def reads(self, train_rows: int, validation_rows: int) -> int:
        return train_rows + min(MAX_VALIDATION, validation_rows)

    def fit(self, job: Job) -> Fitted:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed)
            module = SmallResNet(len(job.task.labels))
        outcome = train_pictures(job, module, HOW, lr=2e-3, weight_decay=0.05, max_validation=MAX_VALIDATION)
        return Fitted(predictor=SmallCNNPredictor(module, job.task.labels), steps=outcome.steps)


STRATEGY = SmallCNN()
PREDICTOR = SmallCNNPredictor
