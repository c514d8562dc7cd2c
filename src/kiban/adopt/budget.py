"""How a race spends its time: what candidates cost, and what each is allowed on a rung and on the test rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kiban.adopt.measure import MAX_SINGLE, MAX_SINGLE_SECONDS
from kiban.errors import BudgetError

SHARES = (0.25, 0.3, 0.5)  # of the time that is left, for each rung; the rest goes to measuring on the test rows
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


def share(pool: float, wanted: Mapping[str, float]) -> dict[str, float]:
    """Share a pool of seconds evenly; what a cheap candidate leaves goes to the dearer ones."""
    grants: dict[str, float] = {}
    for number, (id, wish) in enumerate(sorted(wanted.items(), key=lambda item: item[1])):
        grants[id] = min(wish, max(0.0, pool) / (len(wanted) - number))
        pool -= grants[id]
    return grants


def allowances(
    costs: Mapping[str, Cost], steps: Mapping[str, int], validation_rows: int, pool: float
) -> dict[str, Allowance]:
    """What each candidate may do with its share of a pool of seconds. steps are those of a full fit, 0 for none."""
    rows = {
        id: validation_rows if validation_rows * cost.row < SLOW_SECONDS else min(validation_rows, ENOUGH_ROWS)
        for id, cost in costs.items()
    }
    wanted = {id: cost.start + steps[id] * cost.step + rows[id] * cost.row for id, cost in costs.items()}
    result = {}
    for id, grant in share(pool, wanted).items():
        cost, looking = costs[id], LOOKING_SHARE * grant if steps[id] else grant - costs[id].start
        if grant < wanted[id] and rows[id] * cost.row > looking:
            rows[id] = min(rows[id], max(MIN_ROWS, int(looking / cost.row)))
        rest = grant - cost.start - rows[id] * cost.row
        taken = max(MIN_STEPS, int(rest / cost.step)) if cost.step else steps[id]
        result[id] = Allowance(min(steps[id], taken), rows[id])
    return {id: result[id] for id in costs}


def test_rows(costs: Mapping[str, Cost], available: int, seconds: float) -> dict[str, int]:
    """How many of the available test rows each candidate can answer in the time that is left; the quick ones all."""
    around = sum(PROCESS_SECONDS + c.start + min(MAX_SINGLE_SECONDS, MAX_SINGLE * c.row) for c in costs.values())
    wanted = {id: available * cost.row for id, cost in costs.items()}
    rows = dict.fromkeys(costs, available)
    for id, grant in share(seconds - around, wanted).items():
        if grant < wanted[id] and wanted[id] >= SLOW_SECONDS:
            rows[id] = min(available, max(MIN_ROWS, int(grant / costs[id].row)))
    return rows
