"""Tokenised corpora on disk: token ids of many documents, read through the memory map, with a sha256 for every file.

A folder holds `tokens-N.bin` (uint16 or uint32, little-endian), `documents-N.bin` (int64 pairs: where each document ends in
its shard, in tokens, and how many characters it had), `tokenizer/` and the manifest `kiban.json`. Every document begins
with the end-of-text token, which ends the one before it and is what the first token of a text is predicted from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kiban.config import from_dict
from kiban.errors import DatasetError, FormatError
from kiban.files import MANIFEST, inside, read_json, staged_folder, verify_folder, write_manifest

KIND = "tokens"
SHARD_TOKENS = 2**26


@dataclass(frozen=True)
class Document:
    """Token ids without the end-of-text token, and the number of characters of the text they came from."""

    ids: Sequence[int]
    characters: int


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """What the manifest tells about a tokenised corpus. characters are Unicode code points of the documents' texts."""

    dtype: str
    vocab_size: int
    eos_id: int
    shards: int
    documents: int
    tokens: int
    characters: int


def write_shards(
    folder: Path,
    documents: Iterable[Document],
    *,
    vocab_size: int,
    eos_id: int,
    tokenizer: Mapping[str, str | bytes],
    shard_tokens: int = SHARD_TOKENS,
) -> ShardFacts:
    """Write a corpus whole or not at all; the same documents give the same bytes. tokenizer: the files it is opened from.

    Raises DatasetError if there is nothing to write, KibanError if the folder exists or cannot be written.
    """
    dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
    counts = {"shards": 0, "documents": 0, "tokens": 0, "characters": 0}
    with staged_folder(folder) as staged:
        tokens: list[NDArray[np.unsignedinteger]] = []
        ends: list[tuple[int, int]] = []
        size = 0

        def close() -> None:
            number = counts["shards"]
            np.concatenate(tokens).tofile(staged / f"tokens-{number:05d}.bin")
            np.asarray(ends, dtype="<i8").tofile(staged / f"documents-{number:05d}.bin")
            counts["shards"] += 1

        for document in documents:
            tokens.append(np.asarray([eos_id, *document.ids], dtype=dtype))
            size += len(tokens[-1])
            ends.append((size, document.characters))
            counts["documents"] += 1
            counts["tokens"] += len(tokens[-1])
            counts["characters"] += document.characters
            if size >= shard_tokens:
                close()
                tokens, ends, size = [], [], 0
        if tokens:
            close()
        if not counts["documents"]:
            raise DatasetError(folder, why="no document is left to write", hint="look at the filters' manifest")
        for name, content in tokenizer.items():
            path = inside(staged, f"tokenizer/{name}", source=folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        facts = ShardFacts(dtype=dtype.str, vocab_size=vocab_size, eos_id=eos_id, **counts)
        write_manifest(staged, {"kind": KIND, **facts.__dict__})
    return facts


class Shards:
    """A tokenised corpus. Tokens are read when they are asked for and never copied as a whole."""

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        """verify: compare every file with its sha256. Raises FormatError or IntegrityError."""
        values = read_json(folder / MANIFEST)
        if values.get("kind") != KIND:
            raise FormatError(folder, why="is not a tokenised corpus", hint="make one with `kiban data tokenize`")
        if verify:
            verify_folder(folder)
        self.folder = folder
        self.facts = from_dict(ShardFacts, {name: values.get(name) for name in ShardFacts.__dataclass_fields__})
        numbers = range(self.facts.shards)
        self._tokens = [
            np.memmap(folder / f"tokens-{n:05d}.bin", dtype=np.dtype(self.facts.dtype), mode="r") for n in numbers
        ]
        documents = [np.fromfile(folder / f"documents-{n:05d}.bin", dtype="<i8").reshape(-1, 2) for n in numbers]
        starts = np.cumsum([0, *(len(part) for part in self._tokens)])
        self._starts = starts  # (shards + 1,) of the shards in the whole stream
        self.ends = np.concatenate([part[:, 0] + start for part, start in zip(documents, starts[:-1], strict=True)])
        self.characters = np.concatenate([part[:, 1] for part in documents])
        if int(starts[-1]) != self.facts.tokens or len(self.ends) != self.facts.documents:
            raise FormatError(folder, why="holds other numbers of tokens or documents than its manifest says")

    @classmethod
    def is_one(cls, folder: Path) -> bool:
        """Whether a folder is a tokenised corpus."""
        path = folder / MANIFEST
        try:
            return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("kind") == KIND
        except (ValueError, AttributeError):
            return False

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Where each document begins in the whole stream."""
        return np.concatenate([[0], self.ends[:-1]]).astype(np.int64)

    def __len__(self) -> int:
        return self.facts.documents

    def read(self, start: int, end: int) -> NDArray[np.int64]:
        """Tokens [start, end) of the whole stream."""
        parts = []
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < end:
            stop = min(end, int(self._starts[shard + 1]))
            parts.append(self._tokens[shard][start - self._starts[shard] : stop - self._starts[shard]])
            start, shard = stop, shard + 1
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)

    def document(self, index: int) -> NDArray[np.int64]:
        """The tokens of one document, the end-of-text token before it included."""
        return self.read(int(self.starts[index]), int(self.ends[index]))
