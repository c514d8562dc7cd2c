"""Rotary positions against complex numbers, and the property that they exist for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kiban.errors import ConfigError
from kiban.nn.positions import Rotary, rotate


def turned(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Dimension i and i + Dh/2 as one complex number, turned by position * base^(-2i/Dh). x: (B, H, T, Dh) float64."""
    half = x.shape[-1] // 2
    pairs = torch.complex(x[..., :half], x[..., half:])
    frequency = base ** (-2 * torch.arange(half, dtype=torch.float64) / x.shape[-1])
    angle = positions[:, None, :, None] * frequency
    pairs = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((pairs.real, pairs.imag), dim=-1)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def apply(x: Tensor, positions: Tensor, base: float = 10_000.0) -> Tensor:
    cos, sin = Rotary(x.shape[-1], base=base).table(positions)
    return rotate(x, cos[:, None].double(), sin[:, None].double())


@pytest.mark.parametrize("head_dim", [2, 8, 64])
@pytest.mark.parametrize("base", [10_000.0, 1_000_000.0])
@pytest.mark.parametrize("first", [0, 5, 4000])
def test_rotation_is_a_product_of_complex_numbers(head_dim: int, base: float, first: int) -> None:
    x = randn(2, 3, 9, head_dim)
    positions = torch.arange(first, first + 9)[None] + torch.tensor([[0], [3]])
    # Angles are float32, as in the released models; at 4,000 their last bit is 2.4e-4.
    assert torch.allclose(apply(x, positions, base), turned(x, positions, base), atol=1e-5 + 1e-6 * first)


def test_the_table_is_float32_cosines_and_sines_of_twice_the_half() -> None:
    cos, sin = Rotary(6, base=100.0).table(torch.tensor([[0, 1, 2]]))
    assert cos.shape == sin.shape == (1, 3, 6) and cos.dtype == sin.dtype == torch.float32
    assert torch.equal(cos[..., :3], cos[..., 3:]) and torch.equal(sin[..., :3], sin[..., 3:])
    assert torch.equal(cos[0, 0], torch.ones(6)) and torch.equal(sin[0, 0], torch.zeros(6))
    assert torch.allclose(cos**2 + sin**2, torch.ones(1))
    assert torch.allclose(sin[0, 2, :3], torch.tensor([2 * 100.0 ** (-i / 3) for i in range(3)]).sin())


def test_scores_depend_on_the_distance_alone() -> None:
    q, k = randn(1, 2, 1, 16), randn(1, 2, 2, 16)[:, :, 1:]

    def score(place: int, distance: int) -> Tensor:
        there = apply(q, torch.tensor([[place + distance]])) * apply(k, torch.tensor([[place]]))
        return there.sum(-1)

    for distance in (0, 1, 7, -5):
        at_start = score(5, distance)
        assert torch.allclose(score(6, distance), at_start, atol=1e-5)
        assert torch.allclose(score(500, distance), at_start, atol=1e-3)
        assert not torch.allclose(score(5, distance + 1), at_start, atol=1e-2)


def test_rotation_keeps_lengths_and_can_be_turned_back() -> None:
    x, positions = randn(2, 3, 9, 8), torch.arange(9)[None]
    there = apply(x, positions)
    assert torch.allclose(there.norm(dim=-1), x.norm(dim=-1))
    assert torch.allclose(apply(there, -positions), x)
    assert torch.equal(there[:, :, 0], x[:, :, 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_type_of_x_is_kept_under_a_float32_table(dtype: torch.dtype) -> None:
    x = randn(1, 1, 4, 8).to(dtype)
    cos, sin = Rotary(8).table(torch.arange(4)[None])
    assert rotate(x, cos[:, None], sin[:, None]).dtype == dtype


def test_the_module_holds_nothing_that_a_file_could_lack() -> None:
    with torch.device("meta"):
        rotary = Rotary(8)
    assert not rotary.state_dict() and not list(rotary.buffers())
    assert rotary.table(torch.arange(3))[0].device.type == "cpu"


def test_an_odd_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="head_dim=7"):
        Rotary(7)
