"""Count the words of a corpus of any size in bounded memory: what does not fit is sorted onto disk and merged."""

from __future__ import annotations

import heapq
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TextIO

from kiban.config import Progress, silent
from kiban.errors import DatasetError

IN_MEMORY = 2_000_000  # distinct words, about 0.4 GB
KEPT = 1_000_000
BLOCK = 10_000

Count = tuple[str, int]


def count_words(
    cut: Iterable[Iterable[str]],
    *,
    keep: int = KEPT,
    in_memory: int = IN_MEMORY,
    progress: Progress = silent,
) -> list[Count]:
    """The most frequent words and how often each stands in the texts, exactly; most frequent first, then by code points.

    cut: the words of each text. keep: how many words to return. in_memory: distinct words held at once; the rest wait in
    a temporary folder (TMPDIR). progress counts words. Raises DatasetError if there is none.
    """
    counts: Counter[str] = Counter()
    done = 0
    with tempfile.TemporaryDirectory(prefix="kiban-counts-") as name:
        runs: list[Path] = []
        for words in cut:
            found = list(words)
            counts.update(found)
            done += len(found)
            progress("count words", done, None)
            if len(counts) > in_memory:
                runs.append(_spill(counts, Path(name) / f"{len(runs)}.run"))
                counts.clear()
        merged: Iterable[Count] = counts.items()
        if runs:
            runs.append(_spill(counts, Path(name) / f"{len(runs)}.run"))
            counts.clear()
            merged = _merged(runs)
        best = heapq.nsmallest(keep, merged, key=lambda item: (-item[1], item[0]))
    if not best:
        raise DatasetError("texts", why="hold no word to learn from")
    return best


def in_proportion(counts: Sequence[Count], total: int) -> list[Count]:
    """The counts, made smaller alike if they are more than total in sum; words left with less than a half are left out."""
    scale = min(1.0, total / sum(count for _, count in counts))
    smaller = ((word, round(count * scale)) for word, count in counts)
    return [(word, count) for word, count in smaller if count]


def _spill(counts: Counter[str], path: Path) -> Path:
    items = sorted(counts.items())
    with path.open("w", encoding="ascii") as file:
        for start in range(0, len(items), BLOCK):
            file.write(json.dumps(items[start : start + BLOCK]) + "\n")
    return path


def _read(file: TextIO) -> Iterator[Count]:
    for line in file:
        yield from map(tuple, json.loads(line))


def _merged(runs: list[Path]) -> Iterator[Count]:
    files = [path.open(encoding="ascii") for path in runs]
    try:
        ordered = heapq.merge(*map(_read, files))
        for word, group in groupby(ordered, key=lambda item: item[0]):
            yield word, sum(count for _, count in group)
    finally:
        for file in files:
            file.close()
