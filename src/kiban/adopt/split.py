"""Train, validation and test rows, of every class a share, with near-duplicates on one side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class SplitIndices:
    """Places of the rows of each part, in random order; groups is the number of clusters of near-duplicates."""

    train: list[int]
    validation: list[int]
    test: list[int]
    groups: int


def split(
    groups: Sequence[int],
    targets: Sequence[int],
    *,
    seed: int,
    validation: float = 0.15,
    test: float = 0.25,
    max_test: int | None = None,
) -> SplitIndices:
    """Split rows into parts. groups: for each row the number of its cluster, which goes to one part whole, so that no
    answer leaks.

    Stratified: groups are dealt class by class, by the class of their first row. A class with three groups or more is
    in every part, one with two in train and test, one with a single group in train only.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for i, number in enumerate(groups):
        members[number].append(i)
    by_class: dict[int, list[int]] = defaultdict(list)
    for number, rows in members.items():
        by_class[targets[rows[0]]].append(number)
    if max_test is not None:
        test = min(test, max_test / max(1, len(groups)))
    rng = np.random.default_rng(seed)
    sizes = {number: len(rows) for number, rows in members.items()}
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for target in sorted(by_class):
        order = [by_class[target][i] for i in rng.permutation(len(by_class[target]))]
        for part, chosen in _deal(order, sizes, {"test": test, "validation": validation}).items():
            parts[part] += [row for number in chosen for row in members[number]]
    shuffled = {part: [rows[i] for i in rng.permutation(len(rows))] for part, rows in parts.items()}
    return SplitIndices(**shuffled, groups=len(members))


def _deal(order: list[int], sizes: Mapping[int, int], shares: Mapping[str, float]) -> dict[str, list[int]]:
    """Fill test, then validation, with groups that fit into their share of rows, at least one; the rest is for training.

    A cluster of copies larger than a share is learned from: as a test it would ask one question many times.
    """
    rows = sum(sizes[number] for number in order)
    left, dealt = list(order), dict[str, list[int]]()
    for part, others in (("test", 2), ("validation", 1)):
        room = len(left) - others if len(order) > 2 else len(left) - 1 if part == "test" else 0
        chosen: set[int] = set()
        filled = 0
        for number in left:
            if len(chosen) < room and filled + sizes[number] <= shares[part] * rows:
                chosen.add(number)
                filled += sizes[number]
        if not chosen and room > 0:
            chosen = {min(left, key=sizes.__getitem__)}
        dealt[part] = [number for number in left if number in chosen]
        left = [number for number in left if number not in chosen]
    dealt["train"] = left
    return dealt
