"""The order of batches: fixed by the seed, complete, and taken up anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kiban.data.loader import WINDOW, Loader

ROWS = ["あ" * (i * 7 % 23 + 1) for i in range(101)]


def loader(rows: list[str] = ROWS, *, batch_size: int = 8, seed: int = 0, by_length: bool = False) -> Loader[str]:
    length_of: Callable[[str], int] | None = len if by_length else None
    return Loader(rows, collate, batch_size=batch_size, seed=seed, length_of=length_of)


def collate(rows: list[str]) -> dict[str, Any]:
    return {"lengths": torch.tensor([len(row) for row in rows])}


@given(st.integers(1, 60), st.integers(1, 9), st.booleans(), st.integers(0, 5))
def test_every_epoch_holds_every_row_once(num_rows: int, batch_size: int, by_length: bool, seed: int) -> None:
    it = loader(ROWS[:num_rows], batch_size=batch_size, seed=seed, by_length=by_length)
    for epoch in range(3):
        batches = [it.next_ids() for _ in range(-(-num_rows // batch_size))]
        assert it.epoch == epoch
        assert sorted(id for batch in batches for id in batch) == list(range(num_rows))
        assert sorted(map(len, batches))[1:] == [batch_size] * (len(batches) - 1)


def test_epochs_and_seeds_differ_and_the_same_seed_repeats() -> None:
    def ids(it: Loader[str], count: int = 13) -> list[list[int]]:
        return [it.next_ids() for _ in range(count)]

    first = loader(seed=3)
    again, other = loader(seed=3), loader(seed=4)
    one, two = ids(first), ids(first)
    assert one == ids(again) and two == ids(again)
    assert one != two and one != ids(other)


@pytest.mark.parametrize("by_length", [False, True])
def test_it_is_taken_up_at_every_position(by_length: bool) -> None:
    whole = loader(by_length=by_length)
    states, ids = [], []
    for _ in range(3 * 13 + 2):
        states.append(json.loads(json.dumps(whole.state())))
        ids.append(whole.next_ids())
    for start, state in enumerate(states):
        later = loader(by_length=by_length)
        later.next_ids()  # the state that it had does not matter
        later.load_state(state)
        assert [later.next_ids() for _ in range(len(ids) - start)] == ids[start:]


def test_rows_of_like_length_stand_together_in_random_order() -> None:
    rows = ["x" * n for n in range(1, 16 * WINDOW + 1)]
    it = loader(rows, batch_size=16, by_length=True)
    batches = [[len(rows[i]) for i in it.next_ids()] for _ in range(WINDOW)]
    assert all(max(batch) - min(batch) == 15 for batch in batches)
    starts = [min(batch) for batch in batches]
    assert starts != sorted(starts) and starts != sorted(starts, reverse=True)


def test_a_batch_is_what_collate_makes_of_its_rows() -> None:
    it = loader()
    ids = it.next_ids()
    assert it.batch(ids)["lengths"].tolist() == [len(ROWS[i]) for i in ids]
