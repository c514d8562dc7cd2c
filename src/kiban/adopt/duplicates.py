"""Near-duplicate texts, found by MinHash over character n-grams (Broder 1997), exact copies by their normalised form."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

NGRAM = 5
SIMILARITY = 0.8  # Jaccard of the n-gram sets
BANDS, HASHES = 16, 4  # of a signature, and in each band
NEAR = 64  # members of a bucket that each one is compared with
LIKELY = 0.65  # agreement of the signatures of texts worth comparing exactly: three deviations below SIMILARITY

Grams = NDArray[np.uint64]


def normal_form(text: str) -> str:
    """The text without what does not matter: width, case and spaces."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def groups(texts: Sequence[str]) -> list[int]:
    """For every text the number of its group; copies and near-copies share one, through chains too.

    Candidates share one of 16 bands of 4 hashes (at similarity 0.8 they are missed once in 4,000 pairs) and are then
    compared exactly. In a bucket each meets the first and the NEAR that follow, so that boilerplate, which fills a
    bucket with thousands, costs no square of them.
    """
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(i: int, j: int) -> None:
        a, b = root(i), root(j)
        parent[max(a, b)] = min(a, b)

    forms = [normal_form(text) for text in texts]
    first: dict[str, int] = {}
    for i, form in enumerate(forms):
        join(i, first.setdefault(form, i))
    distinct = list(first.values())
    sets = [_ngrams(forms[i]) for i in distinct]
    signatures, seen = _signatures(sets), set[tuple[int, int]]()

    def compare(left: Sequence[int], right: Sequence[int]) -> None:
        for pair in _likely(signatures, left, right):
            i, j = (distinct[k] for k in pair)
            if pair not in seen and root(i) != root(j):
                seen.add(pair)
                if _jaccard(*(sets[k] for k in pair)) >= SIMILARITY:
                    join(i, j)

    for members in _buckets(signatures):
        compare([members[0]] * (len(members) - 1), members[1:])
        others = [k for k in members[1:] if root(distinct[k]) != root(distinct[members[0]])]
        for step in range(1, min(len(others), NEAR + 1)):
            compare(others[:-step], others[step:])
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(i), len(numbers)) for i in range(len(texts))]


def _ngrams(form: str) -> Grams:
    """The set of n-grams as sorted 64-bit hashes; a shorter text is one gram."""
    letters = np.frombuffer(form.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    size = min(NGRAM, len(letters))
    factors = np.random.default_rng(0).integers(1, 1 << 63, size=NGRAM, dtype=np.uint64)
    hashes = np.zeros(len(letters) - size + 1, dtype=np.uint64)
    for place in range(size):
        hashes += letters[place : len(hashes) + place] * factors[place]
    # The sum is linear in the letters; mixing makes what is drawn from it independent.
    hashes = (hashes ^ (hashes >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
    return np.unique(hashes ^ (hashes >> np.uint64(29)))


def _jaccard(a: Grams, b: Grams) -> float:
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _signatures(sets: Sequence[Grams]) -> NDArray[np.uint32]:
    """MinHash signatures, (N, BANDS * HASHES)."""
    rng = np.random.default_rng(1)
    scale = rng.integers(1, 1 << 63, size=BANDS * HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    shift = rng.integers(0, 1 << 63, size=BANDS * HASHES, dtype=np.uint64)
    result = np.empty((len(sets), BANDS * HASHES), dtype=np.uint32)
    for i, grams in enumerate(sets):
        result[i] = ((grams[:, None] * scale + shift) >> np.uint64(32)).min(0)
    return result


def _buckets(signatures: NDArray[np.uint32]) -> Iterator[list[int]]:
    """The texts that share a band of their signatures, two or more."""
    for band in range(BANDS):
        found: dict[bytes, list[int]] = {}
        for i, part in enumerate(signatures[:, band * HASHES : (band + 1) * HASHES]):
            found.setdefault(part.tobytes(), []).append(i)
        yield from (members for members in found.values() if len(members) > 1)


def _likely(signatures: NDArray[np.uint32], left: Sequence[int], right: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The pairs that agree in enough hashes to be worth comparing exactly."""
    agreement = (signatures[list(left)] == signatures[list(right)]).mean(1)
    yield from ((left[k], right[k]) for k in np.flatnonzero(agreement >= LIKELY).tolist())
