"""Batches without end, in an order that a seed fixes and that can be taken up again in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from torch import Tensor

T = TypeVar("T")
WINDOW = 16  # batches whose rows are sorted together


class Loader(Generic[T]):
    """Gives (ids, batch): the places of the rows, and what collate makes of them.

    Every epoch is a new shuffle. length_of, if given, puts rows of like length into the same batch, within a window of
    batches, so that little is spent on padding; the order of batches stays random. The last batch of an epoch may be short.
    """

    def __init__(
        self,
        rows: Sequence[T],
        collate: Callable[[list[T]], dict[str, Tensor]],
        *,
        batch_size: int,
        seed: int,
        length_of: Callable[[T], int] | None = None,
    ) -> None:
        assert len(rows) > 0, "a loader needs rows"
        self.rows, self.collate, self.batch_size, self.seed, self.length_of = rows, collate, batch_size, seed, length_of
        self.epoch, self.position = 0, 0
        self._batches = self._shuffle()

    def _shuffle(self) -> list[list[int]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.rows)).tolist()
        size = self.batch_size
        if self.length_of is None:
            return [order[i : i + size] for i in range(0, len(order), size)]
        batches = []
        for start in range(0, len(order), WINDOW * size):
            window = sorted(order[start : start + WINDOW * size], key=lambda i: self.length_of(self.rows[i]))  # type: ignore[misc]
            batches += [window[i : i + size] for i in range(0, len(window), size)]
        return [batches[i] for i in generator.permutation(len(batches))]

    def next_ids(self) -> list[int]:
        """The places of the next batch's rows."""
        if self.position == len(self._batches):
            self.epoch, self.position = self.epoch + 1, 0
            self._batches = self._shuffle()
        ids = self._batches[self.position]
        self.position += 1
        return ids

    def batch(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """The batch of these rows."""
        return self.collate([self.rows[i] for i in ids])

    def state(self) -> dict[str, Any]:
        """Where the loader stands."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go to where another loader with the same rows and seed stood."""
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._batches = self._shuffle()
