"""GGUF files, version 2 and 3. A bounded reader: no length is believed before it is held against the size of the file."""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kiban.errors import FormatError
from kiban.weights.gguf_blocks import KINDS, Kind, dequantise
from kiban.weights.safetensors import refuse_pickle

MAX_RANK = 4
MAX_NESTING = 2
MAX_STRING = 64 * 2**20
MAX_VALUES = 2**24  # in all arrays; a vocabulary has three for each token
MAX_ENTRIES = 2**20
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor; its bytes stay in the file until asked for. shape is in torch's order."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    start: int
    file: GGUF

    @property
    def block(self) -> Kind:
        """The tensor's type. Raises FormatError if it is not one that kiban reads."""
        if self.type_id not in KINDS:
            known = ", ".join(kind.name for kind in KINDS.values())
            why = f"has the type number {self.type_id}, which kiban does not read"
            raise FormatError(self.file.path, field=self.name, why=why, hint=f"known: {known}")
        return KINDS[self.type_id]

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values, of this shape."""
        size = math.prod(self.shape) // self.block.elements * self.block.bytes
        data = np.frombuffer(self.file.data, dtype=np.uint8, count=size, offset=self.start)
        return dequantise(data, self.block, self.shape, dtype)


class GGUF:
    """An open file: metadata and tensors. Close it, or use it in a `with` block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise FormatError(path, why=f"cannot be read: {error}") from error
        try:
            reader = _Reader(path, self.data)
            self.metadata, entries = reader.header()
            self.tensors = self._tensors(entries, reader.at)
        except BaseException:
            self.close()
            raise

    def _tensors(self, entries: dict[str, tuple[tuple[int, ...], int, int]], header_end: int) -> dict[str, GGUFTensor]:
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= 2**20 or alignment & (alignment - 1):
            raise FormatError(
                self.path, field="general.alignment", why=f"{alignment} is not a power of two from 8 to 2^20"
            )
        base = -(-header_end // alignment) * alignment
        tensors, spans = {}, []
        for name, (shape, type_id, offset) in entries.items():
            tensor = GGUFTensor(name, shape, type_id, base + offset, self)
            if type_id in KINDS:
                block = KINDS[type_id]
                if shape[-1] % block.elements:
                    raise FormatError(
                        self.path, field=name, why=f"rows of {shape[-1]} are not whole {block.name} blocks"
                    )
                size = math.prod(shape) // block.elements * block.bytes
            else:
                size = 1  # not readable; its place must still be in the file
            if offset % alignment or base + offset + size > len(self.data):
                raise FormatError(self.path, field=name, offset=base + offset, why="does not lie inside the file")
            spans.append((offset, offset + size, name))
            tensors[name] = tensor
        spans.sort()
        for (_, end, _), (start, _, name) in itertools.pairwise(spans):
            if start < end:
                raise FormatError(self.path, field=name, why="overlaps another tensor")
        return tensors

    def close(self) -> None:
        """Release the file."""
        with contextlib.suppress(BufferError):  # a view of the data is still alive; the file closes with it
            self.data.close()

    def __enter__(self) -> GGUF:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_gguf(path: Path) -> GGUF:
    """Open a GGUF file. Raises FormatError naming the field or byte that is wrong, UnsafeFormatError for a pickle."""
    return GGUF(path)


class _Reader:
    """Reads the header from front to back."""

    def __init__(self, path: Path, data: Any) -> None:
        self.path, self.data, self.at, self.values = path, data, 0, 0

    def fail(self, why: str, field: str | None = None) -> FormatError:
        return FormatError(self.path, field=field, offset=self.at, why=why)

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise self.fail(f"the file ends before {size} more bytes")
        part: bytes = self.data[self.at : self.at + size]
        self.at += size
        return part

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]

    def text(self) -> str:
        size = self.number("Q")
        if size > MAX_STRING:
            raise self.fail(f"a string of {size} bytes is too long")
        return self.take(size).decode("utf-8", errors="replace")  # vocabularies hold pieces of characters

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise self.fail(f"unknown kind of value {kind}")
        if depth >= MAX_NESTING:
            raise self.fail("arrays are nested too deeply")
        inner, count = self.number("I"), self.number("Q")
        self.values += count
        if self.values > MAX_VALUES:
            raise self.fail(f"arrays of {self.values} values are too long")
        if inner in NUMBERS:
            size = struct.calcsize(NUMBERS[inner])
            if count > (len(self.data) - self.at) // size:
                raise self.fail(f"an array of {count} values does not fit into the file")
            return list(struct.unpack(f"<{count}{NUMBERS[inner]}", self.take(count * size)))
        if inner not in (STRING, ARRAY):
            raise self.fail(f"unknown kind of array {inner}")
        least = 8 if inner == STRING else 12
        if count > (len(self.data) - self.at) // least:
            raise self.fail(f"an array of {count} values does not fit into the file")
        return [self.value(inner, depth + 1) for _ in range(count)]

    def header(self) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], int, int]]]:
        if self.take(4) != b"GGUF":
            refuse_pickle(self.path)
            raise FormatError(
                self.path, offset=0, why="is not a GGUF file", hint="for safetensors, give the folder with config.json"
            )
        version = self.number("I")
        if version not in (2, 3):
            raise self.fail(f"GGUF version {version} is unknown", "version")
        num_tensors, num_values = self.number("Q"), self.number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(self.bounded(num_values, 12)):
            key = self.text()
            if key in metadata:
                raise self.fail("stands twice in the metadata", key)
            metadata[key] = self.value(self.number("I"))
        entries: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(self.bounded(num_tensors, 24)):
            name, rank = self.text(), self.number("I")
            if not 1 <= rank <= MAX_RANK:
                raise self.fail(f"rank {rank} is not between 1 and {MAX_RANK}", name)
            shape = tuple(reversed([self.number("Q") for _ in range(rank)]))
            if name in entries:
                raise self.fail("stands twice", name)
            if 0 in shape or math.prod(shape) > 2**48:
                raise self.fail(f"shape {shape} is absurd", name)
            entries[name] = (shape, self.number("I"), self.number("Q"))
        return metadata, entries

    def bounded(self, count: int, least: int) -> int:
        """A count, if that many entries of at least so many bytes can follow."""
        if count > min((len(self.data) - self.at) // least, MAX_ENTRIES):
            raise self.fail(f"{count} entries do not fit into the file")
        return int(count)
