"""The functions that shape logits, against hand-made cases."""

from __future__ import annotations

import pytest
import torch

from kiban.errors import ConfigError
from kiban.generate import logits as shape
from kiban.generate.sampling import Sampler, Sampling

LOGITS = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]))


def kept(logits: torch.Tensor) -> list[list[int]]:
    return [[int(i) for i in (row > -torch.inf).nonzero().flatten()] for row in logits]


@pytest.mark.parametrize(("k", "first"), [(1, [0]), (2, [0, 1]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])])
def test_top_k_keeps_the_likeliest(k: int, first: list[int]) -> None:
    assert kept(shape.top_k(LOGITS, k)) == [first, [3 - i for i in reversed(first)]]


@pytest.mark.parametrize(
    ("p", "first"), [(0.01, [0]), (0.49, [0]), (0.6, [0, 1]), (0.9, [0, 1, 2]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_fewest_that_reach_p(p: float, first: list[int]) -> None:
    assert kept(shape.top_p(LOGITS, p)) == [first, [3 - i for i in reversed(first)]]


@pytest.mark.parametrize("scale", [0.0, 0.01, 3.0, 30.0])
@pytest.mark.parametrize("p", [5e-324, 0.3, 0.95])
def test_top_p_over_many_tokens_is_what_sorting_all_gives(p: float, scale: float) -> None:
    logits = scale * torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))
    shares = logits.double().softmax(-1)
    for row, share in zip(kept(shape.top_p(logits, p)), shares, strict=True):
        mass = float(share[row].sum())
        rest = torch.ones(5000, dtype=torch.bool).index_fill(0, torch.tensor(row), False)
        assert mass >= p - 1e-5 and (len(row) == 1 or mass - float(share[row].min()) < p + 1e-5)
        assert float(share[row].min()) >= float(share[rest].max())


def test_min_p_is_relative_to_the_likeliest() -> None:
    assert kept(shape.min_p(LOGITS, 0.2)) == [[0, 1, 2], [1, 2, 3]]
    assert kept(shape.min_p(LOGITS, 1.0)) == [[0], [3]]


def test_repetition_penalty_lowers_what_was_seen_in_that_row_only() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0], [2.0, -2.0, 1.0]])
    changed = shape.repetition_penalty(logits, [[0, 1, 0], []], 2.0)
    assert changed.tolist() == [[1.0, -4.0, 1.0], [2.0, -2.0, 1.0]]
    assert logits[0, 0] == 2.0  # the argument is left alone


def test_temperature_keeps_the_order_and_changes_the_sharpness() -> None:
    cold, hot = shape.temperature(LOGITS, 0.5).softmax(-1), shape.temperature(LOGITS, 2.0).softmax(-1)
    assert cold[0, 0] > 0.5 > hot[0, 0]
    torch.testing.assert_close(cold[0], LOGITS[0].exp() ** 2 / (LOGITS[0].exp() ** 2).sum())


def test_samples_follow_the_distribution() -> None:
    sampler = Sampler(Sampling(temperature=1.0), [3])
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[sampler(LOGITS[:1], [[]])[0]] += 1
    # Four standard deviations of the largest class: 4 * sqrt(0.25 / 4000) = 0.032.
    torch.testing.assert_close(counts / 4000, LOGITS[0].exp(), atol=0.032, rtol=0)


def test_a_row_draws_the_same_whatever_stands_beside_it() -> None:
    alone = Sampler(Sampling(temperature=1.0), [7])
    together = Sampler(Sampling(temperature=1.0), [1, 7])
    for _ in range(50):
        assert alone(LOGITS[1:], [[]])[0] == together(LOGITS, [[], []])[1]


@pytest.mark.parametrize(
    "setting",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"stop": ("",)},
        {"temperature": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        Sampling(**setting)  # type: ignore[arg-type]
