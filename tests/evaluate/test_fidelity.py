"""How far a format is from the exact weights, against sums made by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kiban.errors import DatasetError
from kiban.evaluate.fidelity import Logits, fidelity


def always(*probabilities: float) -> Logits:
    """A model that says the same after every token."""
    return lambda tokens: torch.tensor(probabilities).log().expand(*tokens.shape, -1)


def table_of(generator: torch.Generator) -> Tensor:
    """Logits (V, V): what a model of one token back says."""
    return torch.randn(50, 50, generator=generator)


def test_the_measures_are_those_of_the_definition() -> None:
    found = fidelity(always(0.3, 0.7), always(0.6, 0.4), [[0, 1, 1], [0, 1]])
    assert found.tokens == 3
    assert found.kl[0] == pytest.approx(0.6 * math.log(0.6 / 0.3) + 0.4 * math.log(0.4 / 0.7))
    assert found.top1[0] == 0
    assert found.perplexity[0] == pytest.approx(1 / 0.7)


def test_a_model_is_faithful_to_itself() -> None:
    found = fidelity(always(0.3, 0.7), always(0.3, 0.7), [[1, 0, 1]])
    assert found.kl == (0, 0, 0) and found.top1 == (1, 1, 1)
    assert found.perplexity[0] == pytest.approx((0.3 * 0.7) ** -0.5)


def test_the_interval_holds_the_mean_and_narrows_with_more_text() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = table_of(generator)
    noisy = exact + 0.3 * table_of(generator)
    text = torch.randint(0, 50, (4000,), generator=generator).tolist()
    widths = []
    for size in (400, 4000):
        kl, low, high = fidelity(lambda t: noisy[t], lambda t: exact[t], [text[:size]]).kl
        assert 0 < low < kl < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_neighbours_are_drawn_whole() -> None:
    """A stretch that is wrong as a whole says less than as many wrong tokens here and there."""
    right, wrong = always(0.9, 0.1), torch.tensor([0.1, 0.9]).log()

    def wrong_at(places: Tensor) -> Logits:
        def model(tokens: Tensor) -> Tensor:
            logits = right(tokens).clone()
            logits[0, places] = wrong
            return logits

        return model

    row = [[0] * 513]
    stretch = fidelity(wrong_at(torch.arange(0, 128)), right, row)
    spread = fidelity(wrong_at(torch.arange(0, 512, 4)), right, row)
    assert stretch.top1[0] == spread.top1[0] == 0.75
    assert stretch.top1[2] - stretch.top1[1] > 2 * (spread.top1[2] - spread.top1[1])


def test_text_that_is_too_short_is_told() -> None:
    with pytest.raises(DatasetError, match="two tokens"):
        fidelity(always(1.0), always(1.0), [[0], []])
