"""Norms and feed-forward layers against their formulas, initial weights against their statistics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.nn import init
from kiban.nn.feedforward import FeedForward, GatedFeedForward
from kiban.nn.norm import LayerNorm, RMSNorm


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rms_norm_is_its_formula() -> None:
    norm, x = RMSNorm(5, eps=0.3), torch.randn(2, 3, 5, generator=generator())
    with torch.no_grad():
        norm.weight.copy_(torch.arange(5.0))
    for b, t in ((0, 0), (1, 2)):
        mean_square = sum(float(value) ** 2 for value in x[b, t]) / 5
        expected = [float(value) / math.sqrt(mean_square + 0.3) * i for i, value in enumerate(x[b, t])]
        assert torch.allclose(norm(x)[b, t], torch.tensor(expected))
    theirs = nn.RMSNorm(5, eps=0.3)
    theirs.load_state_dict(norm.state_dict())
    assert torch.allclose(norm(x), theirs(x))


@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm_keeps_the_type_and_takes_the_mean_in_float32(dtype: torch.dtype, weight: torch.dtype) -> None:
    norm = RMSNorm(64, eps=1e-6).to(weight)
    x = (torch.randn(3, 64, generator=generator()) * 300).to(dtype)  # squares that float16 cannot hold
    found = norm(x)
    assert found.dtype == dtype
    assert torch.allclose(found.float(), F.rms_norm(x.float(), (64,), eps=1e-6), rtol=1e-2)


def test_rms_norm_of_zeros_is_zero_and_the_length_does_not_matter() -> None:
    norm = RMSNorm(8, eps=1e-6)
    assert torch.equal(norm(torch.zeros(2, 8)), torch.zeros(2, 8))
    x = torch.randn(2, 8, generator=generator())
    assert torch.allclose(norm(1000 * x), norm(x), atol=1e-5)


def test_layer_norm_is_torchs() -> None:
    assert LayerNorm is nn.LayerNorm


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [F.gelu, F.silu, F.relu])
def test_feed_forward_layers_are_their_formulas(activation: object, bias: bool) -> None:
    x = torch.randn(2, 3, 6, generator=generator())
    assert callable(activation)
    plain, gated = (kind(6, 10, activation=activation, bias=bias) for kind in (FeedForward, GatedFeedForward))
    assert torch.allclose(plain(x), linear(plain.down, activation(linear(plain.up, x))), atol=1e-6)
    inner = activation(linear(gated.gate, x)) * linear(gated.up, x)
    assert torch.allclose(gated(x), linear(gated.down, inner), atol=1e-6)
    assert (plain.up.bias is not None) == (gated.gate.bias is not None) == (gated.down.bias is not None) == bias


def test_normal_weights_have_their_mean_and_deviation() -> None:
    weight = torch.empty(1000, 1000)
    init.normal(weight, 0.02, generator())
    assert abs(float(weight.mean())) < 5 * 0.02 / 1000
    assert abs(float(weight.std()) / 0.02 - 1) < 5 / math.sqrt(2 * 10**6)
    assert (weight.abs() > 0.06).float().mean() == pytest.approx(math.erfc(3 / math.sqrt(2)), rel=0.1)


def test_truncated_normal_weights_end_at_two_deviations() -> None:
    weight = torch.empty(1000, 1000)
    init.truncated_normal(weight, 0.02, generator())
    assert 0.0399 < float(weight.abs().max()) <= 0.04
    density = math.exp(-2) / math.sqrt(2 * math.pi)
    variance = 1 - 4 * density / math.erf(2 / math.sqrt(2))  # of a standard normal cut at 2
    assert float(weight.std()) / 0.02 == pytest.approx(math.sqrt(variance), rel=0.005)
    assert abs(float(weight.mean())) < 5 * 0.02 / 1000


@pytest.mark.parametrize("fill", [init.normal, init.truncated_normal])
def test_a_seed_repeats_the_weights_and_touches_no_global_state(fill: object) -> None:
    assert callable(fill)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, second, other = (nn.Parameter(torch.empty(50)) for _ in range(3))
    fill(first, 0.5, generator(7))
    fill(second, 0.5, generator(7))
    fill(other, 0.5, generator(8))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(torch.rand(1), expected)
    assert first.requires_grad and first.grad_fn is None


def test_constants_fill_biases_and_scales_everywhere_and_nothing_else() -> None:
    module = nn.Sequential(nn.Linear(3, 4), LayerNorm(4), nn.Sequential(RMSNorm(4, eps=1e-5), nn.Embedding(2, 4)))
    for parameter in module.parameters():
        nn.init.constant_(parameter, 9.0)
    init.constants(module)
    values = {name: set(parameter.flatten().tolist()) for name, parameter in module.named_parameters()}
    assert values == {
        "0.weight": {9.0},
        "0.bias": {0.0},
        "1.weight": {1.0},
        "1.bias": {0.0},
        "2.0.weight": {1.0},
        "2.1.weight": {9.0},
    }
