"""Train, validation and test rows, of every class a share, with near-duplicates on one side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kiban.adopt.duplicates import groups as find_groups


@dataclass(frozen=True, kw_only=True)
class SplitIndices:
    """Places of the rows of each part, in random order; groups is the number of clusters of near-duplicates."""

    train: list[int]
    validation: list[int]
    test: list[int]
    groups: int


def split(
    texts: Sequence[str],
    targets: Sequence[int],
    *,
    seed: int,
    validation: float = 0.15,
    test: float = 0.25,
    max_test: int | None = None,
) -> SplitIndices:
    """Split rows into parts. A group of near-duplicates goes to one part whole, so that no answer leaks.

    Stratified: groups are dealt class by class, by the class of their first row. A class with three groups or more is
    in every part, one with two in train and test, one with a single group in train only.
    """
    numbers = find_groups(texts)
    members: dict[int, list[int]] = defaultdict(list)
    for i, number in enumerate(numbers):
        members[number].append(i)
    by_class: dict[int, list[int]] = defaultdict(list)
    for number, rows in members.items():
        by_class[targets[rows[0]]].append(number)
    if max_test is not None:
        test = min(test, max_test / max(1, len(texts)))
    rng = np.random.default_rng(seed)
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for target in sorted(by_class):
        order = [by_class[target][i] for i in rng.permutation(len(by_class[target]))]
        for part, chosen in _deal(order, members, {"test": test, "validation": validation}).items():
            parts[part] += [row for number in chosen for row in members[number]]
    shuffled = {part: [rows[i] for i in rng.permutation(len(rows))] for part, rows in parts.items()}
    return SplitIndices(**shuffled, groups=len(members))


def _deal(order: list[int], members: dict[int, list[int]], shares: dict[str, float]) -> dict[str, list[int]]:
    """Fill test, then validation, up to their share of rows with at least a group each; the rest is for training."""
    rows = sum(len(members[number]) for number in order)
    left, dealt = list(order), dict[str, list[int]]()
    for part, keep in (("test", 1), ("validation", 1)):
        chosen: list[int] = []
        filled = 0
        while len(left) > keep and (not chosen or filled + len(members[left[0]]) <= shares[part] * rows):
            if part == "validation" and not chosen and len(left) < 2:
                break
            chosen.append(left.pop(0))
            filled += len(members[chosen[-1]])
        dealt[part] = chosen
    dealt["train"] = left
    return dealt
