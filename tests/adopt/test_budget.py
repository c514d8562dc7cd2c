"""Time is shared so that the whole is kept, cheap candidates get all, and nobody gets too little to tell anything."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiban.adopt.budget import (
    ENOUGH_ROWS,
    MIN_ROWS,
    MIN_STEPS,
    PROCESS_SECONDS,
    SLOW_SECONDS,
    Budget,
    Cost,
    affordable,
    allowances,
    measuring_seconds,
    share,
)
from kiban.adopt.measure import MAX_SINGLE, MAX_SINGLE_SECONDS
from kiban.errors import BudgetError

seconds = st.floats(0, 1000, allow_nan=False)
wishes = st.dictionaries(st.text("abcdef", min_size=1), st.tuples(seconds, st.floats(0, 1)), min_size=1, max_size=6)
times = st.just(0.0) | st.floats(1e-6, 3)
costs_of = st.builds(Cost, start=st.floats(0, 30), step=times, row=times)
fields = st.dictionaries(
    st.text("abcdef", min_size=1), st.tuples(costs_of, st.integers(0, 500)), min_size=1, max_size=6
)


@given(wishes, seconds)
@settings(deadline=None)
def test_a_pool_is_shared_evenly_within_what_each_needs_and_wants(
    wishes: dict[str, tuple[float, float]], pool: float
) -> None:
    wanted = {id: wish for id, (wish, _) in wishes.items()}
    least = {id: wish * part for id, (wish, part) in wishes.items()}
    grants = share(pool, wanted, least)
    assert all(least[id] <= grants[id] <= wanted[id] for id in wanted)
    assert sum(grants.values()) <= max(pool, sum(least.values())) * (1 + 1e-9) + 1e-9
    if sum(wanted.values()) <= pool:
        assert grants == wanted
    elif sum(least.values()) <= pool:
        assert sum(grants.values()) >= pool - 1e-6, "time is left over while somebody wants it"
    held = [g for id, g in grants.items() if g < wanted[id] - 1e-9]  # who is held back has as much as anyone else
    for id, grant in grants.items():
        assert all(other >= grant - 1e-6 or grant <= least[id] + 1e-6 for other in held)


def test_what_a_cheap_candidate_leaves_goes_to_the_dearer_ones() -> None:
    none = dict.fromkeys("abc", 0.0)
    assert share(30, {"a": 2, "b": 100, "c": 100}, none) == pytest.approx({"a": 2, "b": 14, "c": 14})
    assert share(30, {"a": 20, "b": 100, "c": 100}, {"a": 0, "b": 24, "c": 0}) == pytest.approx(
        {"a": 3, "b": 24, "c": 3}
    )
    assert share(-5, {"a": 2, "b": 100}, {"a": 1, "b": 2}) == {"a": 1, "b": 2}


@given(fields, st.integers(1, 2000), seconds)
@settings(max_examples=200, deadline=None)
def test_allowances_keep_to_the_pool_if_the_minimum_does(
    fields: dict[str, tuple[Cost, int]], validation: int, pool: float
) -> None:
    costs, steps = {id: c for id, (c, _) in fields.items()}, {id: n for id, (_, n) in fields.items()}
    found = allowances(costs, steps, validation, pool)
    spent = least = 0.0
    for id, (taken, rows) in found.items():
        c = costs[id]
        assert min(MIN_STEPS, steps[id]) <= taken <= steps[id]
        assert min(MIN_ROWS, validation) <= rows <= validation
        spent += c.start + taken * c.step + rows * c.row
        fewest = c.start + min(MIN_STEPS, steps[id]) * c.step + min(MIN_ROWS, validation) * c.row
        looked = validation if validation * c.row < SLOW_SECONDS else min(validation, ENOUGH_ROWS)
        wish = c.start + steps[id] * c.step + looked * c.row
        assert wish >= SLOW_SECONDS or found[id] == (steps[id], looked), "the quick ones are never held back"
        least += wish if wish < SLOW_SECONDS else fewest
    assert list(found) == list(costs)
    assert spent <= max(pool, least) * (1 + 1e-6) + 1e-6


def test_who_can_be_paid_in_full_gets_everything() -> None:
    costs = {"quick": Cost(start=1, step=0.1, row=0.001), "slow": Cost(start=2, step=2.0, row=0.5)}
    steps = {"quick": 77, "slow": 300}
    found = allowances(costs, steps, 400, 120.0)
    assert found["quick"] == (77, 400)
    assert MIN_STEPS < found["slow"].steps < 300 and found["slow"].rows == 66  # 0.3 of its grant is for looking
    whole = allowances(costs, steps, 400, 10_000.0)
    assert whole["slow"] == (300, 100), "who is slow to answer is judged on enough rows, not on all"


def test_a_candidate_without_steps_spends_its_grant_on_rows() -> None:
    found = allowances({"zero_shot": Cost(start=5, row=0.5)}, {"zero_shot": 0}, 400, 40.0)
    assert found["zero_shot"] == (0, 70)


@given(fields, st.integers(1, 2000), seconds)
@settings(max_examples=200, deadline=None)
def test_measuring_keeps_to_the_time_if_the_minimum_does(
    fields: dict[str, tuple[Cost, int]], available: int, time: float
) -> None:
    costs = {id: c for id, (c, _) in fields.items()}
    found = measuring_seconds(costs, available, time)
    around = sum(PROCESS_SECONDS + c.start + min(MAX_SINGLE_SECONDS, MAX_SINGLE * c.row) for c in costs.values())
    least = 0.0
    for id, granted in found.items():
        wanted = available * costs[id].row
        assert granted <= max(SLOW_SECONDS, wanted * (1 + 1e-9))
        assert granted >= min(wanted, max(SLOW_SECONDS, min(MIN_ROWS, available) * costs[id].row)) * (1 - 1e-9)
        least += max(SLOW_SECONDS, min(wanted, max(SLOW_SECONDS, MIN_ROWS * costs[id].row)))
    assert sum(found.values()) + around <= max(time + SLOW_SECONDS * len(found), around + least) * (1 + 1e-6) + 1e-6


@given(st.dictionaries(st.text("abcdef", min_size=1), seconds, min_size=1, max_size=6), seconds)
def test_the_dearest_are_left_out_until_the_rest_fits(least: dict[str, float], limit: float) -> None:
    kept = affordable(least, limit)
    out = set(least) - set(kept)
    assert len(kept) >= min(2, len(least))
    assert all(least[o] >= least[k] for o in out for k in kept)
    assert len(kept) <= 2 or sum(least[id] for id in kept) <= limit
    if out:
        cheapest = min(least[id] for id in out)
        assert sum(least[id] for id in kept) + cheapest > limit, "it would have fitted"


@pytest.mark.parametrize(
    "given_", [{}, {"seconds": 1.0, "steps": 1}, {"seconds": 0.0}, {"seconds": math.nan}, {"steps": 0}]
)
def test_a_budget_is_a_time_or_a_number_of_steps(given_: dict[str, float]) -> None:
    with pytest.raises(BudgetError):
        Budget(**given_)  # type: ignore[arg-type]
