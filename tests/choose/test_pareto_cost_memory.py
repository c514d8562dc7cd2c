"""The front against brute force; cost and memory against their formulas."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiban.choose.cost import Prices, cost_per_thousand
from kiban.choose.memory import BYTES_PER_PARAMETER, estimate
from kiban.choose.pareto import front
from kiban.errors import ConfigError

points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)


@settings(max_examples=150, deadline=None)
@given(points)
def test_nothing_on_the_front_is_dominated_and_all_that_is_not_is_on_it(drawn: list[tuple[int, int]]) -> None:
    named = [(i, float(q), float(c)) for i, (q, c) in enumerate(drawn)]
    kept = front(named)
    for i, q, c in named:
        beaten = any(q2 >= q and c2 <= c and (q2, c2) != (q, c) for _, q2, c2 in named)
        assert (i in kept) is not beaten
    costs = [drawn[i][1] for i in kept]
    assert costs == sorted(costs)


def test_an_hour_of_the_machine_costs_an_hours_price() -> None:
    yen, usd = cost_per_thousand(3.6, Prices(yen_per_hour=15, yen_per_usd=150))
    assert (yen, usd) == pytest.approx((15.0, 0.1))


@pytest.mark.parametrize("prices", [{"yen_per_hour": -1, "yen_per_usd": 150}, {"yen_per_hour": 1, "yen_per_usd": 0}])
def test_impossible_prices_are_refused(prices: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Prices(**prices)


def test_memory_grows_with_the_model_and_with_what_is_trained() -> None:
    for ways in zip(("load", "lora", "full"), ("lora", "full", "full")):
        small, large = (estimate(100_000_000, way) for way in ways)  # type: ignore[arg-type]
        assert small <= large
    for way in BYTES_PER_PARAMETER:
        assert estimate(10**6, way) < estimate(10**9, way)  # type: ignore[arg-type]
    # Full fine-tuning in float32: weights, gradients and two moments are 16 bytes a parameter, plus activations.
    assert estimate(10**9, "full") - estimate(0, "full") >= 16 * 10**9
    with pytest.raises(ConfigError, match="full"):
        estimate(1, "ful")  # type: ignore[arg-type]
