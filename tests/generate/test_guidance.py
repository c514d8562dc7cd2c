"""Guidance by hand-computed numbers, and how often the network is asked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kiban.errors import ConfigError
from kiban.generate.denoiser import DiffusionModel
from kiban.generate.guidance import classifier_free, edit, inpainting_channels, plain
from kiban.nn.noise import scaled_linear

X, T = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([5.0, 6.0])


class Sums:
    """x times the sum of its context, plus the timestep, plus the mean of further channels; counts the rows it is asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, x: Tensor, timesteps: Tensor, *, context: Tensor) -> Tensor:
        self.asked.append(len(x))
        assert len(x) == len(timesteps) == len(context)
        more = x[:, 1:].mean(1, keepdim=True) if x.shape[1] > 1 else 0.0
        return x[:, :1] * context.sum(1)[:, None, None, None] + timesteps[:, None, None, None] + more


def told(*rows: list[float]) -> dict[str, Tensor]:
    return {"context": torch.tensor(rows)}


def test_classifier_free_guidance_by_hand() -> None:
    network, time = Sums(), T[:, None, None, None]
    model = DiffusionModel(network, scaled_linear())
    condition, null = told([1.0, 1.0], [2.0, 3.0]), told([0.5, 0.0])
    got = classifier_free(condition, null, guidance_scale=7.5)(model, X, T)
    sums = torch.tensor([2.0, 5.0])[:, None, None, None]
    torch.testing.assert_close(got, X * (0.5 + 7.5 * (sums - 0.5)) + time)
    torch.testing.assert_close(classifier_free(condition, null, guidance_scale=1.0)(model, X, T), X * sums + time)
    torch.testing.assert_close(classifier_free(condition, null, guidance_scale=0.0)(model, X, T), X * 0.5 + time)
    torch.testing.assert_close(plain(condition)(model, X, T), X * sums + time)
    assert network.asked == [4, 2, 2, 2]


def test_rescaled_guidance_has_the_spread_of_the_condition_alone() -> None:
    model = DiffusionModel(Sums(), scaled_linear())
    condition, null, none = told([1.0, 1.0], [2.0, 3.0]), told([0.5, 0.0]), T * 0
    alone = plain(condition)(model, X, none)
    guided = classifier_free(condition, null, guidance_scale=9.0)(model, X, none)
    full = classifier_free(condition, null, guidance_scale=9.0, rescale=1.0)(model, X, none)
    part = classifier_free(condition, null, guidance_scale=9.0, rescale=0.7)(model, X, none)
    torch.testing.assert_close(full.std(dim=(1, 2, 3)), alone.std(dim=(1, 2, 3)))
    torch.testing.assert_close(part, 0.7 * full + 0.3 * guided)
    assert not torch.allclose(full, guided)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        classifier_free(condition, null, guidance_scale=9.0, rescale=1.5)


def test_guidance_of_an_edit_by_hand() -> None:
    network = Sums()
    model = DiffusionModel(network, scaled_linear())
    image = torch.full((1, 2, 4, 4), 3.0)
    text, empty = torch.tensor([[2.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    both = {"context": text, "channels": image}
    only_image = {"context": empty, "channels": image}
    nothing = {"context": empty, "channels": torch.zeros_like(image)}
    got = edit(both, only_image, nothing, guidance_scale=7.5, image_guidance_scale=1.5)(model, X, T)
    time = T[:, None, None, None]
    e_both, e_image, e_none = 4 * X + time + 3, X + time + 3, X + time
    torch.testing.assert_close(got, e_none + 7.5 * (e_both - e_image) + 1.5 * (e_image - e_none))
    plainest = edit(both, only_image, nothing, guidance_scale=1.0, image_guidance_scale=1.0)(model, X, T)
    torch.testing.assert_close(plainest, e_both)
    assert network.asked == [6, 2]


def test_conditions_are_cut_by_row() -> None:
    guidance = classifier_free(told([1.0], [2.0], [3.0]), told([0.0]), guidance_scale=2.0).rows(slice(1, 3))
    assert [c["context"].flatten().tolist() for c in guidance.conditions] == [[2.0, 3.0], [0.0]]


def test_the_network_computes_in_its_own_dtype() -> None:
    def network(x: Tensor, timesteps: Tensor) -> Tensor:
        assert x.dtype == torch.bfloat16 and timesteps.dtype == torch.float32
        return x

    got = plain({})(DiffusionModel(network, scaled_linear(), dtype=torch.bfloat16), X, T)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, X.bfloat16().float())


def test_inpainting_channels_are_the_mask_and_then_the_image() -> None:
    mask = torch.tensor([[True, False]]).expand(3, 1, 2, 2)
    channels = inpainting_channels(mask, torch.full((1, 4, 2, 2), 5.0))
    assert channels.shape == (3, 5, 2, 2) and (channels[:, 1:] == 5).all()
    assert channels[0, 0].tolist() == [[1.0, 0.0], [1.0, 0.0]]
