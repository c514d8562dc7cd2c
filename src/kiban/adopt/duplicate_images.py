"""Pictures that are copies of each other, also after they were made smaller or stored with losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kiban.data.photos import Photo

MAX_BITS = 14  # of 64, in which the hashes of two like pictures differ
MAX_DIFFERENCE = 7.0  # of 255, between their thumbnails, on average


def photo_groups(photos: Sequence[Photo]) -> list[int]:
    """For every picture the number of its group; copies and near-copies share one, through chains too.

    The hash tells which pairs are worth a look, the thumbnails decide: drawings on white have much the same long waves.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    hashes = np.asarray([photo.waves for photo in photos], dtype=np.uint64)
    thumbnails = np.stack([photo.thumbnail for photo in photos]).astype(np.int16)
    first: dict[bytes, int] = {}
    left, right = list[int](), list[int]()
    for i, photo in enumerate(photos):
        original = first.setdefault(photo.pixels, i)
        if original != i:
            left.append(original)
            right.append(i)
            continue
        near = np.flatnonzero(_bits(hashes[:i] ^ hashes[i]) <= MAX_BITS)
        same = near[np.abs(thumbnails[near] - thumbnails[i]).mean((1, 2, 3)) <= MAX_DIFFERENCE]
        left += same.tolist()
        right += [i] * len(same)
    links = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(len(photos), len(photos)))
    numbers: dict[int, int] = {}
    return [numbers.setdefault(int(root), len(numbers)) for root in connected_components(links, directed=False)[1]]


def _bits(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many bits of each are set."""
    return np.asarray(np.unpackbits(values.view(np.uint8).reshape(-1, 8), axis=1).sum(1, dtype=np.int64))
