"""Convolutions by tiles and laid out, against torch's in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.engine import convolution
from kiban.engine.convolution import Conv

TOLERANCE = 1e-5


def given(layer: nn.Conv2d, batch: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, shift and plus."""
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, layer.weight[0].numel() ** -0.5, generator=source)
    x = torch.randn(batch, height, width, layer.in_channels, generator=source)
    shift = torch.randn(batch, layer.out_channels, generator=source)
    size = exact(layer, x).shape
    return x, shift, torch.randn(size, generator=source)


@torch.no_grad()
def exact(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """(B, H, W, C) float64."""
    weight, bias = layer.weight.double(), layer.bias if layer.bias is None else layer.bias.double()
    x = x.double().permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias, layer.stride, layer.padding).permute(0, 2, 3, 1)


@torch.inference_mode()
def check(layer: nn.Conv2d, batch: int, height: int, width: int, tile: int | None) -> None:
    x, shift, plus = given(layer, batch, height, width)
    conv, kept = Conv(layer), plus.clone()
    assert conv.tile(batch, height, width) == tile
    for _ in range(2):  # laid out, then used again
        for found, expected in (
            (conv(x), exact(layer, x)),
            (conv(x, silu=True), exact(layer, F.silu(x.double()))),
            (conv(x, shift=shift), exact(layer, x) + shift[:, None, None]),
            (conv(x, silu=True, plus=plus), exact(layer, F.silu(x.double())) + plus),
        ):
            assert found.is_contiguous() and found.shape == expected.shape
            assert (found - expected).abs().max() < TOLERANCE
    assert torch.equal(plus, kept)


@pytest.mark.parametrize("size", [(2, 16, 16), (1, 24, 24), (3, 21, 14), (2, 13, 40)])
def test_tiles_of_four_give_the_convolution(size: tuple[int, int, int]) -> None:
    check(nn.Conv2d(96, 104, 3, padding=1), *size, 4)


def test_tiles_of_two_give_the_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    check(nn.Conv2d(256, 256, 3, padding=1), 2, 15, 10, 2)
    monkeypatch.setattr(convolution, "MAX_KERNEL_BYTES", 36 * 256 * 256 * 4 - 1)
    check(nn.Conv2d(256, 256, 3, padding=1), 1, 24, 25, 2)


@pytest.mark.parametrize("bytes_at_once", [1, 36 * 10 * 96 * 4 * 3])
def test_pieces_make_up_the_whole(monkeypatch: pytest.MonkeyPatch, bytes_at_once: int) -> None:
    monkeypatch.setattr(convolution, "PIECE_BYTES", bytes_at_once)
    check(nn.Conv2d(96, 96, 3, padding=1), 2, 18, 38, 4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(96, 96, 3, padding=1, stride=2),
        nn.Conv2d(96, 96, 1),
        nn.Conv2d(4, 96, 3, padding=1),
        nn.Conv2d(96, 3, 3, padding=1, bias=False),
        nn.Conv2d(96, 96, 3),
    ],
)
def test_other_convolutions_are_as_torch_has_them(layer: nn.Conv2d) -> None:
    check(layer, 2, 16, 24, None)


def test_few_tiles_are_no_matter_for_tiles() -> None:
    check(nn.Conv2d(96, 96, 3, padding=1), 1, 16, 16, None)


def test_without_layouts_of_onednn_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "available", lambda weight: False)
    check(nn.Conv2d(8, 8, 3, padding=1, stride=2), 2, 16, 16, None)
