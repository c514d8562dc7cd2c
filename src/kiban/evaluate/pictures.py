"""Pictures to embeddings, with a model that sees: CLIP, or a backbone such as ResNet."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.config import Progress, silent
from kiban.errors import ConfigError, DatasetError
from kiban.families.clip import CLIP
from kiban.families.resnet import ResNetClassifier, resnet_pixels
from kiban.inputs.image import Picture, clip_pixels
from kiban.nn.resnet_v1 import ResNetV1

Seeing = CLIP | ResNetV1
Broken = Callable[[int, DatasetError], None]
"""on_broken(place, error): called for a picture that cannot be read, which is then left out."""


def seeing(module: nn.Module, *, name: str) -> Seeing:
    """The part of a model that makes embeddings of pictures. Raises ConfigError, naming the model, if there is none."""
    body = module.body if isinstance(module, ResNetClassifier) else module
    if not isinstance(body, CLIP | ResNetV1):
        hint = "`kiban models --reads image` lists those that do"
        raise ConfigError(name, why="makes no embeddings of pictures", hint=hint)
    return body


def read_pixels(model: Seeing, source: Picture, *, name: str = "") -> Tensor:
    """A picture as the model reads it, (3, S, S) float32. Raises DatasetError if it cannot be read."""
    if isinstance(model, CLIP):
        return clip_pixels(source, size=model.config.vision.image_size, name=name)
    return resnet_pixels(source, name=name)


def read_batches(
    model: Seeing,
    pictures: Sequence[Picture],
    *,
    batch_size: int = 64,
    on_broken: Broken | None = None,
    progress: Progress = silent,
) -> Iterator[tuple[list[int], Tensor]]:
    """Places of pictures and their pixels (B, 3, S, S), all that can be read.

    Raises DatasetError that names the first that cannot be, if on_broken is None.
    """
    for start in range(0, len(pictures), batch_size):
        places, rows = [], []
        for place in range(start, min(start + batch_size, len(pictures))):
            try:
                rows.append(read_pixels(model, pictures[place]))
            except DatasetError as error:
                if on_broken is None:
                    raise
                on_broken(place, error)
            else:
                places.append(place)
        if rows:
            yield places, torch.stack(rows)
        progress("pictures", min(start + batch_size, len(pictures)), len(pictures))


@torch.no_grad()  # tensors of inference mode could not be learned from, as a probe on them does
def embed_pixels(model: Seeing, pixels: Tensor) -> Tensor:
    """(B, 3, S, S) to (B, E) float32 of length 1, on the CPU."""
    weight = next(model.parameters())
    inputs = pixels.to(weight.device, weight.dtype)
    found = model.encode_image(inputs) if isinstance(model, CLIP) else F.normalize(model(inputs), dim=-1)
    return found.float().cpu()


@torch.no_grad()
def own_classes(model: ResNetClassifier, pixels: Tensor) -> Tensor:
    """Probabilities (B, C) of the classes that a model was trained on, for pixels (B, 3, S, S), on the CPU."""
    weight = model.classifier.weight
    return torch.as_tensor(model(pixels.to(weight.device, weight.dtype)).float().softmax(-1).cpu())


def embed_images(
    model: Seeing, pictures: Sequence[Picture], *, batch_size: int = 64, progress: Progress = silent
) -> Tensor:
    """(N, E) float32 of length 1, on the CPU. Raises DatasetError that names the picture that cannot be read."""
    batches = read_batches(model, pictures, batch_size=batch_size, progress=progress)
    rows = [embed_pixels(model, pixels) for _, pixels in batches]
    return torch.cat(rows) if rows else torch.empty(0, width(model))


def width(model: Seeing) -> int:
    """Numbers in an embedding."""
    return model.config.embed_dim if isinstance(model, CLIP) else model.embed_dim


def fingerprint(model: Seeing) -> str:
    """What tells this model's eyes from all others: the sha256 of their weights and settings, as hex."""
    tower = model.vision if isinstance(model, CLIP) else model
    settings = repr(model.config.vision) if isinstance(model, CLIP) else repr(model)  # strides stand in the latter
    found = hashlib.sha256(settings.encode())
    for name, tensor in tower.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
