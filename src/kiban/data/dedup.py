"""Duplicates left out, and splits that no duplicate straddles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiban.data.growing import Growing, growing_folder
from kiban.data.near_duplicates import ROW, SIMILARITY, groups, signatures
from kiban.data.prepare import (
    DROPPED,
    SAMPLES,
    SHOWN,
    Block,
    Compression,
    Inputs,
    Means,
    Parts,
    Pass,
    json_line,
    purpose,
)
from kiban.data.seen import hash64
from kiban.data.sources import KIND
from kiban.errors import ConfigError, DatasetError

SIGNATURES, KEYS = "signatures.bin", "keys.bin"
EXACT, NEAR = "duplicate", "near_duplicate"

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Signing:
    """The work on a block: signatures of its texts, and a 64-bit key of each id and text."""

    seed: int

    def __call__(self, block: Block) -> tuple[bytes, bytes]:
        keys = np.asarray([hash64(f"{self.seed}\0{id}\0{text}") for id, text in block], dtype="<u8")
        return signatures([text for _, text in block]).tobytes(), keys.tobytes()


def dedup(
    inputs: Inputs,
    out: Path,
    *,
    similarity: float = SIMILARITY,
    compress: Compression = None,
    means: Means | None = None,
) -> dict[str, Any]:
    """Write the first of every group of copies and near-copies; returns the manifest.

    similarity: Jaccard of runs of five words or kanji, from which texts count as near-copies; 1 drops exact copies only.
    Raises DatasetError for bad rows (unless they are skipped), KibanError if out exists.
    """
    settings = {"similarity": _checked(similarity), "compress": compress}
    means = means or Means()
    with growing_folder(out, purpose("dedup", inputs, settings)) as folder:
        first, exact, _ = _grouped(folder, inputs, similarity, 0, means)
        stage = Pass("writing", folder, inputs, Means(watch=means.watch, commit_blocks=means.commit_blocks))
        totals, parts = stage.counts, Parts(folder, stage.counts, compress=compress)
        for name in ("place", "kept", "characters"):
            totals.setdefault(name, 0)
        dropped = totals.setdefault("dropped", {EXACT: 0, NEAR: 0})

        def handle(block: Block) -> None:
            lines = []
            _check_place(totals["place"] + len(block), first)
            for place, (id, text) in enumerate(block, totals["place"]):
                if first[place] == place:
                    lines.append(json_line({"id": id, "text": text}))
                    totals["characters"] += len(text)
                    continue
                rule = EXACT if exact[place] == exact[first[place]] else NEAR
                dropped[rule] += 1
                if dropped[rule] <= SAMPLES:
                    row = {"rule": rule, "id": id, "copy_of_document": int(first[place]) + 1, "text": text[:SHOWN]}
                    folder.append(DROPPED, json_line(row))
            parts.append(b"".join(lines))
            totals["kept"] += len(lines)
            totals["place"] += len(block)

        stage.run(_as_it_is, handle)
        rows = stage.account(totals["kept"], {rule: number for rule, number in dropped.items() if number})
        facts = {"characters": totals["characters"], **inputs.facts(), "settings": settings}
        folder.manifest = {"kind": KIND, "made_by": "dedup", **rows, **facts}
        _remove_work(folder)
    return folder.manifest


def split(
    inputs: Inputs,
    out: Path,
    *,
    shares: Mapping[str, float],
    seed: int = 0,
    similarity: float = SIMILARITY,
    compress: Compression = None,
    means: Means | None = None,
) -> dict[str, Any]:
    """Write each document into a folder of out, `train` for example; returns the manifest.

    A hash of id, text and seed decides, so documents stay where they are when others are added or put in another order;
    copies and near-copies all go where the one with the least hash goes. Raises ConfigError for shares that do not sum to
    1, DatasetError if a share gets no document.
    """
    names, bounds = list(shares), _bounds(shares)
    settings = {
        "shares": dict(shares),
        "seed": seed,
        "similarity": _checked(similarity),
        "compress": compress,
    }
    means = means or Means()
    with growing_folder(out, purpose("split", inputs, settings)) as folder:
        first, _, keys = _grouped(folder, inputs, similarity, seed, means)
        least = keys.copy()
        np.minimum.at(least, first, keys)
        where = np.searchsorted(bounds, least[first].astype(np.float64) / 2.0**64, side="right")
        stage = Pass("writing", folder, inputs, Means(watch=means.watch, commit_blocks=means.commit_blocks))
        totals = stage.counts
        parts = [Parts(folder, stage.counts, where=f"{name}/", compress=compress) for name in names]
        splits = totals.setdefault("splits", {name: {"documents": 0, "characters": 0} for name in names})
        totals.setdefault("place", 0)

        def handle(block: Block) -> None:
            lines: list[list[bytes]] = [[] for _ in names]
            _check_place(totals["place"] + len(block), first)
            for number, (id, text) in zip(where[totals["place"] :], block, strict=False):
                lines[number].append(json_line({"id": id, "text": text}))
                splits[names[number]]["documents"] += 1
                splits[names[number]]["characters"] += len(text)
            for part, mine in zip(parts, lines, strict=True):
                part.append(b"".join(mine))
            totals["place"] += len(block)

        stage.run(_as_it_is, handle)
        rows = stage.account(sum(part["documents"] for part in splits.values()), {})
        for name, part in splits.items():
            if not part["documents"]:
                raise DatasetError(name, why="gets no document", hint="give it a larger share, or more documents")
        facts = {"splits": splits, **inputs.facts(), "settings": settings}
        folder.manifest = {"kind": KIND, "made_by": "split", **rows, **facts}
        _remove_work(folder)
    return folder.manifest


def _grouped(
    folder: Growing, inputs: Inputs, similarity: float, seed: int, means: Means
) -> tuple[Ints, NDArray[np.uint64], NDArray[np.uint64]]:
    """For each document the place of the first of its group, a hash of its text, and its key."""
    stage = Pass("comparing", folder, inputs, means)

    def handle(done: tuple[bytes, bytes]) -> None:
        folder.append(SIGNATURES, done[0])
        folder.append(KEYS, done[1])

    if stage.name not in stage.finished:
        stage.run(Signing(seed), handle)
        stage.finish()
    folder.flush()
    rows = np.memmap(folder.path / SIGNATURES, dtype=ROW, mode="r")
    keys = np.fromfile(folder.path / KEYS, dtype="<u8")
    return groups(rows, similarity), np.array(rows["exact"]), keys


def _remove_work(folder: Growing) -> None:
    for name in (SIGNATURES, KEYS):
        folder.remove(name)


def _as_it_is(block: Block) -> Block:
    return block


def _check_place(end: int, first: Ints) -> None:
    if end > len(first):
        raise DatasetError("corpus", why="changed while it was read", hint="run it again")


def _checked(similarity: float) -> float:
    if not 0.5 <= similarity <= 1:
        raise ConfigError("similarity", why=f"is {similarity}", hint="from 0.5 to 1")
    return similarity


def _bounds(shares: Mapping[str, float]) -> NDArray[np.float64]:
    """Where each share but the last ends. Raises ConfigError if they are not shares of a whole."""
    for name, share in shares.items():
        if not name.isidentifier():
            raise ConfigError("shares", field=name, why="is not a name for a folder", hint="for example train")
        if not 0 < share <= 1:
            raise ConfigError("shares", field=name, why=f"is {share}", hint="more than 0, at most 1")
    if not shares or abs(sum(shares.values()) - 1) > 1e-6:
        raise ConfigError("shares", why=f"sum to {sum(shares.values()):g}, not to 1", hint="train=0.98,validation=0.02")
    return np.cumsum(list(shares.values()))[:-1]
