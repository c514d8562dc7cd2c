"""Tokenised corpora on disk: token ids of many documents, read through the memory map, with a sha256 for every file.

A folder holds `tokens-N.bin` (uint16 or uint32, little-endian), `documents-N.bin` (int64 pairs: where each document ends in
its shard, in tokens, and how many characters it had), `tokenizer/` and the manifest `kiban.json`. Every document begins
with the end-of-text token, which ends the one before it and is what the first token of a text is predicted from.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiban.config import from_dict
from kiban.errors import DatasetError, FormatError, IntegrityError, LimitError
from kiban.files import MANIFEST, inside, read_json, staged_folder, verify_folder, write_manifest

KIND = "tokens"
TOKENIZER = "tokenizer"  # the folder in it
SHARD_TOKENS = 2**26
BATCH = 256  # documents that are written at once


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


class ShardWriter:
    """Cuts a stream of documents into shards, the same ones however the stream comes in.

    append(name, data) writes at the end of a file. counts may be those of another writer, which this one goes on from.
    """

    def __init__(
        self,
        append: Callable[[str, bytes], None],
        *,
        vocab_size: int,
        eos_id: int,
        shard_tokens: int = SHARD_TOKENS,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        if not 0 <= eos_id < vocab_size:
            raise FormatError("tokenizer", field="eos_id", why=f"is {eos_id}, with {vocab_size} tokens")
        self.append, self.vocab_size, self.eos_id, self.shard_tokens = append, vocab_size, eos_id, shard_tokens
        self.dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
        # open: tokens in the last shard, while it takes more.
        self.counts = {"shards": 0, "documents": 0, "tokens": 0, "characters": 0, "open": 0, **(counts or {})}

    def add(self, tokens: NDArray[Any], lengths: NDArray[np.int64], characters: NDArray[np.int64]) -> None:
        """Documents one after the other: their tokens without the end-of-text token, (sum of lengths,), and their sizes.

        Raises FormatError for an id that the vocabulary lacks.
        """
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocab_size:
            raise FormatError("tokenizer", why=f"gives an id beyond its {self.vocab_size} tokens")
        tokens = np.insert(tokens.astype(self.dtype), np.cumsum(lengths) - lengths, self.eos_id)  # in front of each
        ends = np.cumsum(lengths + 1)  # (documents,)
        done, begun = 0, 0  # documents and tokens that are written
        while done < len(ends):
            if not self.counts["open"]:
                self.counts["shards"] += 1
            # As many documents as it takes to fill the shard.
            fill = begun + self.shard_tokens - self.counts["open"]
            last = min(int(np.searchsorted(ends, fill)), len(ends) - 1) + 1
            places = np.stack([ends[done:last] - begun + self.counts["open"], characters[done:last]], axis=1)
            number, stop = self.counts["shards"] - 1, int(ends[last - 1])
            for name, data in zip(_names(number), (tokens[begun:stop], places.astype("<i8")), strict=True):
                self.append(name, data.tobytes())
            self.counts["documents"] += last - done
            self.counts["tokens"] += stop - begun
            self.counts["characters"] += int(characters[done:last].sum())
            size = self.counts["open"] + stop - begun
            self.counts["open"] = 0 if size >= self.shard_tokens else size
            done, begun = last, stop

    def facts(self) -> ShardFacts:
        """What has been written."""
        counts = {name: self.counts[name] for name in ("shards", "documents", "tokens", "characters")}
        return ShardFacts(dtype=self.dtype.str, vocab_size=self.vocab_size, eos_id=self.eos_id, **counts)


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
    with staged_folder(folder) as staged:

        def append(name: str, data: bytes) -> None:
            with (staged / name).open("ab") as file:
                file.write(data)

        writer = ShardWriter(append, vocab_size=vocab_size, eos_id=eos_id, shard_tokens=shard_tokens)
        stream = iter(documents)
        while batch := list(itertools.islice(stream, BATCH)):
            tokens = np.asarray([id for document in batch for id in document.ids], dtype=np.int64)
            lengths = np.asarray([len(document.ids) for document in batch])
            writer.add(tokens, lengths, np.asarray([document.characters for document in batch]))
        if not writer.counts["documents"]:
            raise DatasetError(folder, why="no document is left to write", hint="look at the filters' manifest")
        for name, content in tokenizer.items():
            path = inside(staged, f"{TOKENIZER}/{name}", source=folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        write_manifest(staged, {"kind": KIND, **writer.facts().__dict__})
    return writer.facts()


class Shards:
    """A tokenised corpus. Tokens are read when they are asked for and never copied as a whole."""

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        """verify: compare every file with its sha256. Raises FormatError or IntegrityError."""
        values = read_json(folder / MANIFEST)
        if values.get("kind") != KIND:
            raise FormatError(folder, why="is not a tokenised corpus", hint="make one with `kiban data tokenize`")
        self.folder, self.facts = folder, _facts(folder / MANIFEST, values)
        if verify:
            verify_folder(folder)
            self._check_listed(values)
        parts = [self._open(number) for number in range(self.facts.shards)]
        self._tokens = [tokens for tokens, _ in parts]
        self._starts = np.cumsum([0, *map(len, self._tokens)])  # (shards + 1,) of the shards in the whole stream
        self.ends = np.concatenate([d[:, 0] + start for (_, d), start in zip(parts, self._starts[:-1], strict=True)])
        self.characters = np.concatenate([documents[:, 1] for _, documents in parts])
        found = (int(self._starts[-1]), len(self.ends), int(self.characters.sum()))
        if found != (self.facts.tokens, self.facts.documents, self.facts.characters):
            raise FormatError(folder, why="holds other numbers of tokens or documents than its manifest says")

    def _check_listed(self, values: Mapping[str, Any]) -> None:
        """Raises IntegrityError for a file that is opened though the manifest has no sha256 of it."""
        for number in range(self.facts.shards):
            for name in _names(number):
                if name not in values.get("files", {}):
                    raise IntegrityError(self.folder / name, why=f"is not one of the files that {MANIFEST} lists")

    def _open(self, number: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The tokens of a shard, mapped, and its documents (N, 2)."""
        dtype, files = np.dtype(self.facts.dtype), []
        for name, size in zip(_names(number), (dtype.itemsize, 16), strict=True):
            path = inside(self.folder, name, source=self.folder / MANIFEST)
            if not path.is_file():
                raise FormatError(path, why="is missing", hint="copy the folder again")
            if not path.stat().st_size or path.stat().st_size % size:
                raise FormatError(path, why=f"has {path.stat().st_size} bytes, which are not whole entries of {size}")
            files.append(path)
        try:
            tokens = np.memmap(files[0], dtype=dtype, mode="r")
            documents = np.fromfile(files[1], dtype="<i8").reshape(-1, 2)
        except (OSError, ValueError) as error:
            raise FormatError(files[0], why=f"cannot be read: {error}") from error
        lengths = np.diff(documents[:, 0], prepend=0)
        if lengths.min() < 1 or documents[-1, 0] != len(tokens) or documents[:, 1].min() < 0:
            raise FormatError(files[1], why=f"does not fit the {len(tokens)} tokens of the shard")
        return tokens, documents

    @classmethod
    def is_one(cls, folder: Path) -> bool:
        """Whether a folder is a tokenised corpus."""
        path = folder / MANIFEST
        try:
            return path.is_file() and read_json(path).get("kind") == KIND
        except (FormatError, LimitError):
            return False

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Where each document begins in the whole stream."""
        return np.concatenate([[0], self.ends[:-1]]).astype(np.int64)

    def __len__(self) -> int:
        return self.facts.documents

    def read(self, start: int, end: int) -> NDArray[np.int64]:
        """Tokens [start, end) of the whole stream, (end - start,)."""
        assert 0 <= start <= end <= self.facts.tokens, "there are no such tokens"
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


def _names(number: int) -> tuple[str, str]:
    """The files of a shard."""
    return f"tokens-{number:05d}.bin", f"documents-{number:05d}.bin"


def _facts(path: Path, values: Mapping[str, Any]) -> ShardFacts:
    """The facts of a manifest, checked as far as they can be without the files."""
    for field in dataclasses.fields(ShardFacts):
        value = values.get(field.name)
        if field.name == "dtype":
            fits = value in ("<u2", "<u4")
        else:
            low = 0 if field.name in ("eos_id", "characters") else 1
            fits = isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**62
        if not fits:
            raise FormatError(path, field=field.name, why=f"is {value!r}", hint="make the corpus again")
    facts = from_dict(ShardFacts, {field.name: values[field.name] for field in dataclasses.fields(ShardFacts)})
    if facts.eos_id >= facts.vocab_size or facts.vocab_size > 2 ** (8 * np.dtype(facts.dtype).itemsize):
        raise FormatError(path, field="vocab_size", why=f"{facts.vocab_size} does not fit eos_id and dtype")
    return facts
