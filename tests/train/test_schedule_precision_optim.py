"""Schedules against their formulas, the groups of AdamW, and the probe of precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kiban.errors import ConfigError
from kiban.train.optim import adamw
from kiban.train.precision import choose
from kiban.train.schedule import factor


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


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
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
    groups = adamw(module, lr=0.1, weight_decay=0.3, betas=(0.9, 0.99)).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.3), (4, 0.0)]
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(1.0)
    optimizer = adamw(module, lr=0.1, weight_decay=0.3, betas=(0.9, 0.99))
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert module[0].weight[0, 0].item() == pytest.approx(1 - 0.1 * 0.3)
    assert module[0].bias[0].item() == module[1].weight[0].item() == module[2].weight[0, 0].item() == 1.0


def test_precision_is_as_asked_or_measured() -> None:
    module = nn.Linear(64, 64)
    assert choose("fp32", module) == "fp32" and choose("bf16", module) == "bf16"
    assert choose("auto", module) in ("fp32", "bf16")
