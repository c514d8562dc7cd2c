"""No group straddles parts, every row is used once, and every class is where it can be."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiban.adopt.split import SplitIndices, split

tables = st.integers(1, 5).flatmap(
    lambda classes: st.lists(st.tuples(st.integers(0, 30), st.integers(0, classes - 1)), min_size=1, max_size=80)
)


def parts_of(found: SplitIndices) -> dict[str, list[int]]:
    return {"train": found.train, "validation": found.validation, "test": found.test}


@given(tables, st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_rows_are_used_once_groups_stay_whole_and_classes_are_everywhere(
    table: list[tuple[int, int]], seed: int
) -> None:
    groups, targets = [g for g, _ in table], [t for _, t in table]
    found = split(groups, targets, seed=seed)
    parts = parts_of(found)
    assert sorted(i for rows in parts.values() for i in rows) == list(range(len(table)))
    homes = {groups[i]: part for part, rows in parts.items() for i in rows}
    assert all(homes[groups[i]] == part for part, rows in parts.items() for i in rows)
    assert found.groups == len(set(groups)) == len(homes)
    first = {}
    for group, target in table:
        first.setdefault(group, target)
    for target, count in Counter(first.values()).items():
        where = {homes[group] for group, t in first.items() if t == target}
        assert where == {"train"} if count == 1 else {"train", "test"} <= where
        assert count < 3 or where == {"train", "validation", "test"}
    assert parts_of(split(groups, targets, seed=seed)) == parts


@given(st.lists(st.integers(1, 6), min_size=20, max_size=60), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_sizes_are_near_their_shares(sizes: list[int], seed: int) -> None:
    groups = [number for number, size in enumerate(sizes) for _ in range(size)]
    found = split(groups, [0] * len(groups), seed=seed)
    rows = len(groups)
    assert 0.25 * rows - 6 <= len(found.test) <= 0.25 * rows
    assert 0.15 * rows - 6 <= len(found.validation) <= 0.15 * rows


def test_a_cluster_of_copies_larger_than_a_share_is_learned_from() -> None:
    groups = [0] * 60 + list(range(1, 41))
    for seed in range(10):
        found = split(groups, [0] * 100, seed=seed)
        assert 0 in {groups[i] for i in found.train}
        assert len(found.test) == 25 and len(found.validation) == 15


def test_classes_keep_their_shares() -> None:
    targets = [0] * 700 + [1] * 200 + [2] * 100
    found = split(list(range(1000)), targets, seed=1)
    for part, share in ((found.test, 0.25), (found.validation, 0.15), (found.train, 0.6)):
        assert Counter(targets[i] for i in part) == {0: 700 * share, 1: 200 * share, 2: 100 * share}


def test_the_test_part_can_be_limited() -> None:
    found = split(list(range(10_000)), [i % 4 for i in range(10_000)], seed=0, max_test=600)
    assert len(found.test) == 600 and len(found.validation) == 1500
    few = split(list(range(40)), [i % 4 for i in range(40)], seed=0, max_test=600)
    assert len(few.test) == 8  # a quarter of ten rows of each class, whole rows


def test_seeds_give_other_splits_in_random_order() -> None:
    groups, targets = list(range(300)), [i % 2 for i in range(300)]
    a, b = split(groups, targets, seed=0), split(groups, targets, seed=1)
    assert set(a.test) != set(b.test)
    assert a.test != sorted(a.test)
    assert abs(np.mean([targets[i] for i in a.test[:30]]) - 0.5) < 0.3


@pytest.mark.parametrize(("count", "expected"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1))])
def test_tiny_classes(count: int, expected: tuple[int, int, int]) -> None:
    found = split(list(range(count)), [0] * count, seed=0)
    assert (len(found.train), len(found.validation), len(found.test)) == expected
