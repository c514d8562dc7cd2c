"""What a network is told, and how strongly an image follows it: weighted sums of predictions, asked in one forward pass.

A condition is what the network takes beside x and timesteps, by name: tensors with a row for each image, or with one for
all. The one named "channels" is not passed on but appended to x: a mask and masked image, or the image to edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kiban.errors import ConfigError
from kiban.generate.denoiser import DiffusionModel, Predictor

Condition = Mapping[str, Tensor]


@dataclass(frozen=True)
class Guidance:
    """The sum of weights[i] * prediction under conditions[i]. Conditions of weight 0 are not asked.

    rescale: share of the way to the standard deviation that the first prediction has alone (Lin et al. 2023, section 3.4).
    """

    conditions: tuple[Condition, ...]
    weights: tuple[float, ...]
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.rescale <= 1:
            why = f"{self.rescale} is not between 0 and 1"
            raise ConfigError("guidance", field="rescale", why=why, hint="0.7 is usual, 0 switches it off")

    def rows(self, some: slice) -> Guidance:
        """What is told of these images."""
        cut = [{name: rows(value, some) for name, value in condition.items()} for condition in self.conditions]
        return replace(self, conditions=tuple(cut))

    def __call__(self, model: DiffusionModel, x: Tensor, timesteps: Tensor) -> Tensor:
        """(B, C, H, W), (B,) to (B, C', H, W) float32."""
        return self.told(model, len(x))(x, timesteps)

    def told(self, model: DiffusionModel, num_images: int) -> Predictor:
        """The same for any number of steps of so many images; what the conditions alone decide is done once."""
        asked = [(weight, condition) for weight, condition in zip(self.weights, self.conditions) if weight]
        joined = _joined([condition for _, condition in asked], num_images)
        channels = joined.pop("channels", None)
        # Further channels may differ between the conditions; without them all are asked of the same x.
        predict = model.told(joined, times=len(asked) if channels is None else 1)

        def guided(x: Tensor, timesteps: Tensor) -> Tensor:
            inputs = x.to(model.dtype)
            if channels is not None:
                inputs = torch.cat((inputs.repeat(len(asked), 1, 1, 1), channels.to(model.dtype)), dim=1)
                timesteps = timesteps.repeat(len(asked))
            outputs = predict(inputs, timesteps).float().chunk(len(asked))
            if len(asked) == 1 and asked[0][0] == 1:
                return outputs[0]
            mixed = sum((weight * output for (weight, _), output in zip(asked, outputs)), start=torch.zeros_like(x))
            return _rescaled(mixed, outputs[0], self.rescale) if self.rescale else mixed

        return guided


def plain(condition: Condition) -> Guidance:
    """What the network says, one pass."""
    return Guidance((condition,), (1.0,))


def classifier_free(condition: Condition, null: Condition, *, guidance_scale: float, rescale: float = 0.0) -> Guidance:
    """null + guidance_scale * (condition - null) (Ho & Salimans 2022, eq. 6, with w + 1 = guidance_scale).

    guidance_scale 1 asks once. null: the condition of the empty text, or of a text to keep away from.
    """
    return Guidance((condition, null), (guidance_scale, 1 - guidance_scale), rescale)


def edit(
    both: Condition, image: Condition, null: Condition, *, guidance_scale: float, image_guidance_scale: float
) -> Guidance:
    """null + image_guidance_scale * (image - null) + guidance_scale * (both - image) (Brooks et al. 2023, eq. 3).

    both: instruction and image; image: the image with the empty text; null: neither, channels of zeros.
    """
    weights = (guidance_scale, image_guidance_scale - guidance_scale, 1 - image_guidance_scale)
    return Guidance((both, image, null), weights)


def inpainting_channels(mask: Tensor, masked_latents: Tensor) -> Tensor:
    """The channels that a 9-channel inpainting model reads beside the noisy latents: (B, 5, h, w).

    mask: (B or 1, 1, h, w) bool, True where it paints; masked_latents: (B or 1, 4, h, w), of the image with a grey hole.
    """
    rows = max(len(mask), len(masked_latents))
    parts = (mask.to(masked_latents.dtype), masked_latents)
    return torch.cat([part.expand(rows, *part.shape[1:]) for part in parts], dim=1)


def rows(tensor: Tensor, some: slice) -> Tensor:
    """Those of these images; one row is for all."""
    return tensor if len(tensor) == 1 else tensor[some]


def _joined(conditions: Sequence[Condition], num_rows: int) -> dict[str, Tensor]:
    """All conditions one behind the other, num_rows rows each."""
    assert all(condition.keys() == conditions[0].keys() for condition in conditions), "conditions name the same things"
    return {
        name: torch.cat([condition[name].expand(num_rows, *condition[name].shape[1:]) for condition in conditions])
        for name in conditions[0]
    }


def _rescaled(guided: Tensor, alone: Tensor, share: float) -> Tensor:
    """guided, part of the way to the standard deviation of alone, image by image."""
    std = alone.flatten(1).std(dim=1) / guided.flatten(1).std(dim=1)  # (B,)
    return guided * (share * std + 1 - share)[:, None, None, None]
