"""Copies and near-copies among millions of documents: MinHash (Broder 1997) with banding, on disk where it is large.

A document becomes a row of 288 bytes; the groups are found from those rows, one band at a time, in 20 bytes of memory a
document, 100 where all are copies. Texts are never compared again: the agreement of 120 hashes estimates their Jaccard
similarity to +-0.04.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from kiban.data.characters import CONTROL, HIRAGANA, KANJI, MARK, SPACE, SYMBOL, classes, code_points
from kiban.data.seen import hash64

SIMILARITY = 0.8
BANDS, HASHES = 20, 6  # pairs of similarity 0.8 share a band in 998 of 1,000 cases, of 0.5 in 27 of 100
SHINGLE = 5  # units: kana and kanji one by one, words of scripts with spaces
SEED = 20260401  # of the hashes; another one would give other signatures
ROW = np.dtype([("exact", "<u8"), ("bands", "<u8", (BANDS,)), ("hashes", "u1", (BANDS * HASHES,))])
CHUNK = 2**16  # pairs compared at once

Rows = NDArray[np.void]  # of dtype ROW
U64 = NDArray[np.uint64]


def signatures(texts: Sequence[str]) -> Rows:
    """The rows of texts, (len(texts),) of ROW: a hash of the whole, one of each band, and a byte of each MinHash."""
    from rensa import RMinHash

    rows = np.zeros(len(texts), dtype=ROW)
    forms = [unicodedata.normalize("NFKC", text).casefold() for text in texts]
    grams = [_shingles(form) for form in forms]
    offsets = np.cumsum([0, *map(len, grams)]).astype(np.uint64)
    if not len(texts):
        return rows
    flat = np.concatenate(grams)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, BANDS * HASHES, SEED)
    minima = np.asarray(matrix.to_rows(), dtype=np.uint32)  # (N, BANDS * HASHES)
    rows["exact"] = [hash64("".join(form.split())) for form in forms]
    # A band's number is part of its key's factors, so that equal hashes in different bands don't meet.
    factors = _factors(BANDS * HASHES).reshape(BANDS, HASHES)
    rows["bands"] = _mixed((minima.reshape(-1, BANDS, HASHES) * factors).sum(2, dtype=np.uint64))
    rows["hashes"] = (minima & np.uint32(255)).astype(np.uint8)  # the high bits of a minimum are mostly 0
    return rows


def groups(rows: Rows, similarity: float = SIMILARITY) -> NDArray[np.int64]:
    """For every row the index of the first row of its group; copies and near-copies share one, through chains too.

    Rows that share a band are compared with the first and the one before them in the bucket, so that boilerplate, which
    fills a bucket with thousands, costs no square of them.
    """
    first = np.arange(len(rows))
    first = _joined(first, _pairs(np.asarray(rows["exact"])))
    for band in range(BANDS):
        left, right = _pairs(np.asarray(rows["bands"][:, band]))
        apart = first[left] != first[right]
        left, right = left[apart], right[apart]
        near = np.zeros(len(left), dtype=bool)
        for start in range(0, len(left), CHUNK):
            part = slice(start, start + CHUNK)
            near[part] = estimate(rows[left[part]], rows[right[part]]) >= similarity
        first = _joined(first, (left[near], right[near]))
    return first


def estimate(left: Rows, right: Rows) -> NDArray[np.float64]:
    """The Jaccard similarity of documents, pair by pair, from their hashes; two bytes agree by chance once in 256."""
    agreement = (left["hashes"] == right["hashes"]).mean(1)
    result: NDArray[np.float64] = (agreement - 1 / 256) / (1 - 1 / 256)
    return result


def _pairs(keys: U64) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each row of a bucket with the first one of it and with the one before it."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1  # places whose key is that of the place before
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(keys) else same
    heads = begins[np.searchsorted(begins, same, side="right") - 1]
    others = same[heads != same - 1]
    left = np.concatenate([order[heads], order[others - 1]])
    return left, np.concatenate([order[same], order[others]])


def _joined(first: NDArray[np.int64], pairs: tuple[NDArray[np.int64], NDArray[np.int64]]) -> NDArray[np.int64]:
    """The groups after the rows of each pair have become one group."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    left, right = pairs
    if not len(left):
        return first
    graph = coo_array((np.ones(len(left), dtype=bool), (first[left], first[right])), shape=(len(first), len(first)))
    labels = connected_components(graph, directed=False)[1][first]
    smallest = np.full(int(labels.max()) + 1, len(first))
    np.minimum.at(smallest, labels, np.arange(len(first)))
    result: NDArray[np.int64] = smallest[labels]
    return result


def _shingles(form: str) -> U64:
    """Hashes of the runs of five units; of all units where there are fewer, of the whole where there is none."""
    units = _units(code_points(form))
    if not len(units):
        return np.asarray([hash64(form)], dtype=np.uint64)
    size = min(SHINGLE, len(units))
    result = np.zeros(len(units) - size + 1, dtype=np.uint64)
    for place, factor in enumerate(_factors(SHINGLE)[:size]):
        result += units[place : place + len(result)] * factor
    return _mixed(result)


def _units(points: NDArray[np.uint32]) -> U64:
    """A hash of each unit of a text. Marks and spaces are none."""
    kinds = classes(points)
    inside = (kinds != SPACE) & (kinds != CONTROL) & (kinds != MARK) & (kinds != SYMBOL)
    alone = (kinds >= HIRAGANA) & (kinds <= KANJI)
    begins = inside & (alone | ~np.concatenate([[False], (inside & ~alone)[:-1]]))
    letters, starts = points[inside].astype(np.uint64), np.flatnonzero(begins[inside])
    if not len(starts):
        return np.zeros(0, dtype=np.uint64)
    places = np.arange(len(letters)) - np.repeat(starts, np.diff(np.append(starts, len(letters))))
    factors = _factors(64)
    return _mixed(np.add.reduceat(_mixed(letters) * factors[places % len(factors)], starts))


@cache
def _factors(number: int) -> U64:
    return np.random.default_rng(SEED).integers(1, 1 << 63, size=number, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def _mixed(values: U64) -> U64:
    """The finaliser of SplitMix64: sums are linear in what they were made of; what is drawn from them must not be."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
