"""Schedules against their formulas, the groups of AdamW, and the probe of precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kiban.errors import ConfigError
from kiban.nn.stack import Stack
from kiban.train.optim import optimizers
from kiban.train.precision import choose
from kiban.train.schedule import SCHEDULES, factor


def test_the_rate_rises_in_a_straight_line_and_falls_as_named() -> None:
    rising = [factor("linear", step, steps=100, warmup=0.1) for step in range(10)]
    assert rising == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factor("linear", 55, steps=100, warmup=0.1) == pytest.approx(0.5)
    assert factor("linear", 100, steps=100, warmup=0.1) == 0.0
    assert factor("cosine", 10, steps=100, warmup=0.1) == pytest.approx(1.0)
    assert factor("cosine", 55, steps=100, warmup=0.1) == pytest.approx(0.55)
    assert factor("cosine", 100, steps=100, warmup=0.1) == pytest.approx(0.1)
    assert factor("cosine", 40, steps=100, warmup=0.0) == pytest.approx(0.1 + 0.45 * (1 + math.cos(0.4 * math.pi)))
    assert factor("constant", 99, steps=100, warmup=0.1) == 1.0
    assert factor("rsqrt", 10, steps=100, warmup=0.1) == pytest.approx(1.0)
    assert factor("rsqrt", 40, steps=100, warmup=0.1) == pytest.approx(0.5)  # 1/sqrt(40) against 1/sqrt(10)
    assert factor("wsd", 60, steps=100, warmup=0.1) == pytest.approx(1.0)
    assert factor("wsd", 80, steps=100, warmup=0.1) == pytest.approx(0.5)
    assert factor("wsd", 99, steps=100, warmup=0.0) == pytest.approx(0.025)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
def test_every_factor_lies_between_0_and_1_and_the_first_step_moves(name: str, steps: int, warmup: float) -> None:
    factors = [factor(name, step, steps=steps, warmup=warmup) for step in range(steps)]
    assert all(0.0 <= f <= 1.0 for f in factors) and factors[0] > 0


def test_an_unknown_schedule_is_answered_with_the_closest() -> None:
    with pytest.raises(ConfigError, match="cosine"):
        factor("cosin", 0, steps=1, warmup=0)


def test_biases_and_norms_do_not_decay_and_frozen_parameters_are_left_out() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    module[2].weight.requires_grad_(False)
    (optimizer,) = optimizers("adamw", module, lr=0.1, weight_decay=0.3, betas=(0.9, 0.99))
    groups = optimizer.param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.3), (4, 0.0)]
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(1.0)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert module[0].weight[0, 0].item() == pytest.approx(1 - 0.1 * 0.3)
    assert module[0].bias[0].item() == module[1].weight[0].item() == module[2].weight[0, 0].item() == 1.0


def test_precision_is_as_asked_or_measured() -> None:
    module = nn.Linear(64, 64)
    assert choose("fp32", module) == "fp32" and choose("bf16", module) == "bf16"
    assert choose("auto", module) in ("fp32", "bf16")


class Net(nn.Module):
    """An embedding, a block of two matrices and a norm, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.blocks = Stack([nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 4))])


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    net = Net()
    muon, adamw = optimizers("muon", net, lr=0.1, weight_decay=0.3, betas=(0.9, 0.99))
    assert [p.shape for g in muon.param_groups for p in g["params"]] == [(8, 4), (4, 8)]
    assert [(len(g["params"]), g["weight_decay"]) for g in adamw.param_groups] == [(2, 0.3), (4, 0.0)]


def test_a_step_of_muon_is_as_long_as_one_of_adamw() -> None:
    """Root mean square 0.2 times the rate (Liu et al. 2025, equation 4), whatever the gradient's size."""
    net = Net()
    muon, _ = optimizers("muon", net, lr=0.01, weight_decay=0.0, betas=(0.9, 0.99))
    weight = net.blocks[0][0].weight
    before = weight.detach().clone()
    weight.grad = 1e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    muon.step()
    step = (weight.detach() - before).square().mean().sqrt().item()
    assert step == pytest.approx(0.2 * 0.01, rel=0.3)  # Newton and Schulz' iteration is only nearly orthogonal
