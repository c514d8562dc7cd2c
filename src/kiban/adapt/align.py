"""Which words of two languages translate each other, counted in parallel text: IBM model 1 (Brown et al. 1993, section 4.2).

It gives the tokens of a new language a place to begin: the mean of the embeddings of their translations.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiban.config import Progress, silent

Ids = Sequence[int]


@dataclass(frozen=True)
class Translations:
    """t(target | source) for the pairs of tokens that were seen together, sorted by source."""

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    probability: NDArray[np.float64]


def translations(
    pairs: Sequence[tuple[Ids, Ids]], *, rounds: int = 4, ignore: Collection[int] = (), progress: Progress = silent
) -> Translations:
    """Expectation maximisation over (source ids, target ids); a token counts once a text. ignore: special tokens."""
    ignored = frozenset(ignore)
    places, keys = _links(pairs, ignored)
    cells, link = np.unique(keys, return_inverse=True)
    source, target = cells >> 32, cells & 0xFFFFFFFF
    probability: NDArray[np.float64] = np.ones(len(cells))
    for number in range(rounds):
        # A target token of a text is shared out among the source tokens of the text.
        weight = probability[link]
        weight /= np.bincount(places, weights=weight)[places]
        counts = np.bincount(link, weights=weight, minlength=len(cells))
        totals = np.bincount(source, weights=counts)
        probability = counts / totals[source]
        progress("align", number + 1, rounds)
    return Translations(source, target, probability)


def _links(pairs: Sequence[tuple[Ids, Ids]], ignored: frozenset[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every source token of a text with every target token: number of the (text, target), source << 32 | target."""
    places, keys, first = [], [], 0
    for a, b in pairs:
        sources, targets = (np.array(sorted(set(ids) - ignored), dtype=np.int64) for ids in (a, b))
        keys.append((sources[:, None] << 32 | targets[None]).ravel())
        places.append(np.tile(np.arange(first, first + len(targets)), len(sources)))
        first += len(targets)
    return np.concatenate(places), np.concatenate(keys)


@torch.no_grad()
def place_by_translation(embedding: Tensor, found: Translations, *, new: Collection[int], most: int = 8) -> Tensor:
    """embedding (V, D) with the rows of new set to the weighted mean of their translations' rows, the most likely ones.

    Tokens without a translation keep their rows. The scale of a row is that of the old rows, on average.
    """
    result, wanted = embedding.clone(), frozenset(new)
    old = torch.tensor(sorted(set(range(len(embedding))) - wanted))
    length = embedding[old].norm(dim=-1).mean()
    starts = np.flatnonzero(np.diff(found.source, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(found.source)], strict=True):
        token = int(found.source[start])
        if token not in wanted:
            continue
        best = start + np.argsort(-found.probability[start:end])[:most]
        weight = torch.from_numpy(found.probability[best]).to(embedding)
        row = (weight[:, None] * embedding[torch.from_numpy(found.target[best])]).sum(0)
        result[token] = row / row.norm().clamp(min=1e-9) * length
    return result
