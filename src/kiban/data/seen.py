"""Which of many texts or ids have been met before, in bounded memory."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def hash64(text: str) -> int:
    """A number of 64 bits for a text, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class SeenHashes:
    """A set of 64-bit numbers in 8 bytes each: sorted arrays of doubling size behind a small set."""

    BUFFER = 2**16

    def __init__(self) -> None:
        self.recent: set[int] = set()
        self.sorted: list[NDArray[np.uint64]] = []

    def add(self, value: int) -> bool:
        """Whether the number is new."""
        if value in self.recent:
            return False
        for part in self.sorted:
            place = int(np.searchsorted(part, np.uint64(value)))
            if place < len(part) and int(part[place]) == value:
                return False
        self.recent.add(value)
        if len(self.recent) >= self.BUFFER:
            merged = np.fromiter(self.recent, dtype=np.uint64, count=len(self.recent))
            while self.sorted and len(self.sorted[-1]) <= len(merged):
                merged = np.concatenate([self.sorted.pop(), merged])
            self.sorted.append(np.sort(merged))
            self.recent.clear()
        return True
