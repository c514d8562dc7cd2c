"""How a race spends its time: what candidates cost, and what each is allowed on a rung and on the test rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kiban.adopt.measure import MAX_SINGLE, MAX_SINGLE_SECONDS
from kiban.errors import BudgetError

SHARES = (0.25, 0.25, 0.4)  # of the time that is left, for each rung; the rest goes to measuring on the test rows
FIRST_SHARE = 0.5  # of the time that is left, at most, for the least that the first rung takes
PLAN_SHARE = 0.4  # of the whole time, at most, for finding out what candidates cost
MIN_ROWS = 48  # fewer validation or test rows tell nothing
MIN_STEPS = 4
ENOUGH_ROWS = 100  # of validation rows, for candidates that are slow to answer
SLOW_SECONDS = 5.0  # to answer all validation rows
LOOKING_SHARE = 0.3  # of a grant that is too small, at most so much goes to validation
PROCESS_SECONDS = 4.0  # to start a fresh process


@dataclass(frozen=True, kw_only=True)
class Budget:
    """seconds for the whole race, or steps for the last fit of each candidate (then timings decide nothing)."""

    seconds: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.steps is None):
            raise BudgetError("budget", why="give either a time or a number of steps")
        if (self.seconds is not None and not self.seconds > 0) or (self.steps is not None and self.steps < 1):
            raise BudgetError("budget", why="must be above 0")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a candidate takes on this machine, in seconds: to begin a fit, for an optimiser step, to answer a row."""

    start: float = 0.0
    step: float = 0.0
    row: float = 0.0


class Allowance(NamedTuple):
    """What a candidate may spend on a rung: optimiser steps, and validation rows to answer."""

    steps: int
    rows: int


def share(pool: float, wanted: Mapping[str, float], least: Mapping[str, float]) -> dict[str, float]:
    """Share a pool of seconds evenly between least and wanted; what a cheap candidate leaves goes to the dearer ones.

    The sum is not above the pool, unless what all need at least is.
    """
    if sum(wanted.values()) <= pool:
        return dict(wanted)
    low, high = 0.0, max(wanted.values(), default=0.0)
    for _ in range(60):  # bisection of the level that candidates are filled to
        level = (low + high) / 2
        fits = sum(min(wanted[id], max(least[id], level)) for id in wanted) <= pool
        low, high = (level, high) if fits else (low, level)
    return {id: min(wanted[id], max(least[id], low)) for id in wanted}


def least_seconds(costs: Mapping[str, Cost], steps: Mapping[str, int], validation_rows: int) -> dict[str, float]:
    """What each candidate takes on a rung if it does as little as makes sense."""
    return {
        id: cost.start + min(MIN_STEPS, steps[id]) * cost.step + min(MIN_ROWS, validation_rows) * cost.row
        for id, cost in costs.items()
    }


def affordable(least: Mapping[str, float], limit: float) -> list[str]:
    """The candidates whose least fits into limit seconds together; the dearest are left out first, two always stay."""
    kept = dict(least)
    while len(kept) > 2 and sum(kept.values()) > limit:
        kept.pop(max(kept, key=lambda id: kept[id]))
    return list(kept)


def allowances(
    costs: Mapping[str, Cost], steps: Mapping[str, int], validation_rows: int, pool: float
) -> dict[str, Allowance]:
    """What each candidate may do with its share of a pool of seconds. steps are those of a full fit, 0 for none."""
    rows = {
        id: validation_rows if validation_rows * cost.row < SLOW_SECONDS else min(validation_rows, ENOUGH_ROWS)
        for id, cost in costs.items()
    }
    wanted = {id: cost.start + steps[id] * cost.step + rows[id] * cost.row for id, cost in costs.items()}
    few = {id: Allowance(min(MIN_STEPS, steps[id]), min(MIN_ROWS, rows[id])) for id in costs}
    least = least_seconds(costs, steps, validation_rows)
    # The quick ones are never held back: what they could give up helps nobody.
    least |= {id: wish for id, wish in wanted.items() if wish < SLOW_SECONDS}
    grants = share(pool, wanted, least)
    result = {}
    for id, cost in costs.items():
        result[id] = Allowance(steps[id], rows[id])
        if grants[id] < wanted[id]:
            rest = grants[id] - cost.start - few[id].steps * cost.step
            looking = min(rest, LOOKING_SHARE * grants[id]) if steps[id] else rest
            seen = max(few[id].rows, min(rows[id], int(looking / cost.row))) if cost.row else rows[id]
            rest = grants[id] - cost.start - seen * cost.row
            taken = max(few[id].steps, min(steps[id], int(rest / cost.step))) if cost.step else steps[id]
            result[id] = Allowance(taken, seen)
    return result


def measuring_seconds(costs: Mapping[str, Cost], available: int, seconds: float) -> dict[str, float]:
    """The time in which each candidate answers test rows, of what is left; the quick ones get enough for all rows."""
    around = sum(PROCESS_SECONDS + c.start + min(MAX_SINGLE_SECONDS, MAX_SINGLE * c.row) for c in costs.values())
    wanted = {id: available * cost.row for id, cost in costs.items()}
    least = {
        id: wish if wish < SLOW_SECONDS else min(available, MIN_ROWS) * costs[id].row for id, wish in wanted.items()
    }
    grants = share(seconds - around, wanted, least)
    return {id: max(SLOW_SECONDS, grant) for id, grant in grants.items()}
