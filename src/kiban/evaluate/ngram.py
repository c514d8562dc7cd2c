"""An n-gram model to measure pretraining against: interpolated modified Kneser-Ney (Chen & Goodman 1999, section 5).

The stronger of the two forms in that paper: three discounts an order (for counts 1, 2 and 3 or more), estimated from
counts of counts. Lower orders count the different tokens seen before an n-gram; the beginning of a document is one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kiban.config import Progress, silent
from kiban.errors import ConfigError, DatasetError

Ints = NDArray[np.integer[Any]]

DEFAULT_DISCOUNTS = (0.5, 1.0, 1.5)  # KenLM's, where the counts of counts give none (Heafield et al. 2013, section 3.3)


@dataclass(frozen=True)
class _Level:
    """The n-grams of one order k, numbered by the order of their keys, and their contexts, the (k-1)-grams.

    key = number of the context * vocab_size + last token; an order-1 number is the token itself.
    """

    keys: NDArray[np.int64]  # (number of n-grams,) increasing
    counts: NDArray[np.int32]  # (number of n-grams,)
    totals: NDArray[np.int64]  # (number of contexts,) sum of the counts behind a context, 1 where there are none
    backoff: NDArray[np.float64]  # (number of contexts,) weight of the next lower order, 1 where nothing was seen
    discounts: NDArray[np.float64]  # (4,) by min(count, 3)


class KneserNey:
    """log p(token | up to order - 1 tokens before it in its document); no token has probability 0.

    discounts: (order, 3), what is taken from counts of 1, 2 and 3 or more, lowest order first.
    """

    def __init__(self, levels: Sequence[_Level], vocab_size: int) -> None:
        self.levels, self.vocab_size, self.order = tuple(levels), vocab_size, len(levels)
        self.discounts = np.stack([level.discounts[1:] for level in levels])

    @classmethod
    def fit(
        cls,
        tokens: Ints,
        *,
        vocab_size: int,
        order: int = 5,
        starts: Ints | None = None,
        progress: Progress = silent,
    ) -> KneserNey:
        """Count the n-grams of tokens (N,), ids below vocab_size.

        starts: (number of documents,), where documents begin, increasing; n-grams do not cross them. None: one document.
        Raises ConfigError if order is below 1, DatasetError if there are no tokens or ids or starts are out of range.
        """
        if order < 1:
            raise ConfigError("n-gram model", field="order", why=f"{order} is below 1")
        if not len(tokens):
            raise DatasetError("n-gram model", why="there are no tokens to count", hint="give it a longer corpus")
        depth = _depths(tokens, starts, vocab_size, order)
        levels: list[_Level] = []
        numbers = tokens.astype(np.int32)  # of the n-gram that ends at each token; -1 where the document is too short
        keys: NDArray[np.int64] = np.arange(vocab_size)
        for k in range(1, order + 1):
            num_contexts = len(levels[-1].keys) if levels else 1
            if k < order:
                longer = _extend(tokens, numbers, depth, k, vocab_size)
                counts = np.bincount(numbers[longer.ends], minlength=len(keys))  # a longer one is one token in front
                counts[np.unique(numbers[depth == k - 1])] += 1  # and so is the beginning of a document
                levels.append(_level(keys, counts, num_contexts, vocab_size))
                keys, numbers = longer.keys, longer.numbers
            else:
                counts = np.bincount(numbers[depth >= k - 1], minlength=len(keys))
                levels.append(_level(keys, counts, num_contexts, vocab_size))
            progress("n-grams", k, order)
        return cls(levels, vocab_size)

    def log_probs(self, tokens: Ints, starts: Ints | None = None) -> NDArray[np.float64]:
        """Natural log-probability of each token after those before it in its document, (N,).

        The first token of a document is scored by the unigrams, the second by the bigrams, and so on. Raises DatasetError
        if ids or starts are out of range.
        """
        depth = _depths(tokens, starts, self.vocab_size, self.order)
        p = np.full(len(tokens), 1.0 / self.vocab_size)
        contexts = np.zeros(len(tokens), dtype=np.int64)  # number of the context of each token, -1 if it was never seen
        for k, level in enumerate(self.levels, 1):
            if not len(level.keys):  # every document was shorter
                break
            at = np.flatnonzero((depth >= k - 1) & (contexts >= 0))
            context = contexts[at]
            found = _find(level.keys, context * self.vocab_size + tokens[at])
            counts = np.where(found >= 0, level.counts[found], 0)
            own = (counts - level.discounts[np.minimum(counts, 3)]) / level.totals[context]
            p[at] = own + level.backoff[context] * p[at]
            contexts = np.full(len(tokens), -1, dtype=np.int64)
            inside = at + 1 < len(tokens)
            contexts[at[inside] + 1] = found[inside]
        return np.asarray(np.log(p))


def _depths(tokens: Ints, starts: Ints | None, vocab_size: int, order: int) -> NDArray[np.uint8]:
    """How many tokens of its document stand before each token, at most order - 1."""
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        bad = int(tokens.min()) if tokens.min() < 0 else int(tokens.max())
        raise DatasetError("n-gram model", field="tokens", why=f"id {bad} is not in a vocabulary of {vocab_size}")
    if starts is None:
        starts = np.zeros(1, dtype=np.int64)
    elif len(starts) == 0 or starts[0] != 0 or (np.diff(starts) < 0).any() or starts[-1] > len(tokens):
        why = f"must increase from 0 to at most {len(tokens)}"
        raise DatasetError("n-gram model", field="starts", why=why)
    depth = np.full(len(tokens), order - 1, dtype=np.uint8)
    for distance in range(order - 2, -1, -1):  # the nearest start is written last
        places = starts + distance
        depth[places[places < len(tokens)]] = distance
    return depth


class _Longer(NamedTuple):
    keys: NDArray[np.int64]
    numbers: NDArray[np.int32]  # (N,) of the n-gram that ends at each token, -1 for none
    ends: NDArray[np.int64]  # a place where each n-gram ends


def _extend(tokens: Ints, numbers: NDArray[np.int32], depth: NDArray[np.uint8], k: int, vocab_size: int) -> _Longer:
    """From the numbers of the k-grams by place to the (k+1)-grams."""
    places = np.flatnonzero(depth >= k)
    keys = numbers[places - 1].astype(np.int64)
    keys *= vocab_size
    keys += tokens[places]
    by_key = np.argsort(keys)
    keys = keys[by_key]
    places = places[by_key]
    del by_key
    new = np.empty(len(keys), dtype=bool)
    new[:1] = True
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    longer = np.full(len(tokens), -1, dtype=np.int32)
    longer[places] = np.cumsum(new, dtype=np.int32) - 1
    return _Longer(keys[new], longer, places[new])


def _level(keys: NDArray[np.int64], counts: NDArray[Any], num_contexts: int, vocab_size: int) -> _Level:
    discounts = np.array([0.0, *estimate_discounts(counts)])
    contexts = keys // vocab_size
    totals = np.bincount(contexts, weights=counts, minlength=num_contexts)
    taken = np.bincount(contexts, weights=discounts[np.minimum(counts, 3)], minlength=num_contexts)
    seen = totals > 0
    totals = np.where(seen, totals, 1.0)
    return _Level(
        keys, counts.astype(np.int32), totals.astype(np.int64), np.where(seen, taken / totals, 1.0), discounts
    )


def estimate_discounts(counts: Ints) -> tuple[float, float, float]:
    """What to take from counts of 1, 2 and 3 or more (Chen & Goodman 1999, eq. 26), from how many counts are 1 to 4.

    On small data one of these may be 0, or the estimate fall outside 0 to the count; then it is 0.5, 1 or 1.5.
    """
    _, n1, n2, n3, n4 = (int(n) for n in np.bincount(np.minimum(counts, 5), minlength=6)[:5])
    result = []
    for k, (here, above) in enumerate(((n1, n2), (n2, n3), (n3, n4)), 1):
        value = k - (k + 1) * n1 / (n1 + 2 * n2) * above / here if here and above and n1 else 0.0
        result.append(value if 0 < value < k else DEFAULT_DISCOUNTS[k - 1])
    return result[0], result[1], result[2]


def _find(keys: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of wanted in the increasing keys, -1 where one is not there."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1)
