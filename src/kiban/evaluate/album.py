"""All pictures of a folder as embeddings, kept on disk so that the next search of the folder begins at once.

What is kept of a picture is bound to its content, and read without looking at it again while its name, size and time stay
the same. What is kept is made anew if it is damaged, and lost at no cost but time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiban.config import Progress, silent
from kiban.data.photos import PICTURES
from kiban.errors import ConfigError, DatasetError, KibanError
from kiban.evaluate.pictures import Seeing, embed_pixels, fingerprint, read_pixels, width
from kiban.files import staged_file
from kiban.inputs.image import MAX_BYTES
from kiban.weights.safetensors import read_safetensors, tensor_bytes

BATCH = 32
KEEP_SECONDS = 30
SETTLING = 2 * 10**9  # nanoseconds; a file changed twice within it may keep its time, on some systems
UNSETTLED = bytes(32)


@dataclass(frozen=True)
class Album:
    """Pictures and their embeddings, (N, E) float32 of length 1, row by row; and why others were left out."""

    paths: tuple[Path, ...]
    vectors: Tensor
    left_out: tuple[KibanError, ...]

    def nearest(self, query: NDArray[np.float32], *, most: int) -> list[tuple[Path, float]]:
        """The pictures most like a query (E,) of length 1, best first, with cosines. Raises ConfigError if most < 1."""
        if most < 1:
            raise ConfigError("top", field=str(most), why="is not 1 or more")
        found = (self.vectors @ torch.from_numpy(query)).topk(min(most, len(self.paths)))
        return [(self.paths[int(i)], float(x)) for x, i in zip(found.values, found.indices, strict=True)]


def picture_files(folder: Path) -> list[Path]:
    """The pictures of a folder and of those in it, sorted, hidden ones left out.

    Raises DatasetError if it is no folder that can be read, or holds none.
    """
    if not folder.is_dir():
        why = "is not a folder" if folder.exists() else "no such folder"
        raise DatasetError(folder, why=why, hint="give the folder that the pictures lie in")
    try:
        inner = ((path, path.relative_to(folder).parts) for path in folder.rglob("*"))
        found = [
            path
            for path, parts in inner
            if path.suffix.lower() in PICTURES and not any(p.startswith(".") for p in parts) and path.is_file()
        ]
    except OSError as error:
        raise DatasetError(folder, why=f"cannot be read: {error.strerror}", hint="check its permissions") from error
    if not found:
        raise DatasetError(folder, why="holds no picture", hint=f"kiban reads {', '.join(PICTURES)}")
    return sorted(found)


def open_album(model: Seeing, folder: Path, *, store: Path, progress: Progress = silent) -> Album:
    """Every picture of a folder that can be read; store: the folder that embeddings are kept in.

    Raises DatasetError if there is none.
    """
    paths = picture_files(folder)
    place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    shelf = _Shelf(store / f"{fingerprint(model)[:32]}-{place[:16]}.safetensors", width(model))
    left_out: list[KibanError] = []
    written = time.monotonic()
    try:
        for start in range(0, len(paths), BATCH):
            _embed(model, paths[start : start + BATCH], shelf, left_out)
            if time.monotonic() - written > KEEP_SECONDS:  # a kill loses no more
                shelf.write(whole=False)
                written = time.monotonic()
            progress("pictures", min(start + BATCH, len(paths)), len(paths))
    except BaseException:  # of a search that is broken off, what was done is kept beside what was there
        shelf.write(whole=False)
        raise
    shelf.write(whole=True)
    good = [path for path in paths if path in shelf.seen]
    if not good:
        why = f"holds no picture that can be read; {left_out[0]}"
        raise DatasetError(folder, why=why)
    vectors = torch.stack([shelf.vectors[shelf.seen[path].digest] for path in good])
    return Album(tuple(good), vectors, tuple(left_out))


def _embed(model: Seeing, paths: Sequence[Path], shelf: _Shelf, left_out: list[KibanError]) -> None:
    """Put pictures on the shelf, those that are not there through the model."""
    fresh: dict[bytes, Tensor] = {}
    for path in paths:
        try:
            facts = _facts(path)
            digest = shelf.digests.get(facts)
            if digest is None:
                data = _read(path)
                digest = hashlib.sha256(data).digest()
                if digest not in shelf.vectors and digest not in fresh:
                    fresh[digest] = read_pixels(model, data, name=str(path))
        except DatasetError as error:
            left_out.append(error)
        else:
            shelf.seen[path] = _Row(facts, digest)
    if fresh:
        shelf.vectors |= zip(fresh, embed_pixels(model, torch.stack(list(fresh.values()))), strict=True)


def _facts(path: Path) -> bytes:
    """The sha256 of what the system tells of a file; UNSETTLED if a change might not show in it."""
    try:
        known = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    if time.time_ns() - known.st_mtime_ns < SETTLING:
        return UNSETTLED
    told = b"%s\0%d %d %d" % (os.fsencode(path.absolute()), known.st_size, known.st_mtime_ns, known.st_ctime_ns)
    return hashlib.sha256(told).digest()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DatasetError:
    return DatasetError(path, why=f"cannot be read: {error.strerror}", hint="check its permissions")


class _Row(NamedTuple):
    """What is known of a file: sha256 of what the system tells of it, and of its content."""

    facts: bytes
    digest: bytes


class _Shelf:
    """The embeddings of a folder's pictures, by their content; read from a file of three tensors and a checksum."""

    def __init__(self, file: Path, dim: int) -> None:
        self.file = file
        self.kept, vectors = _load(file, dim)
        self.vectors = {row.digest: vector for row, vector in zip(self.kept, vectors, strict=True)}
        self.digests = {row.facts: row.digest for row in self.kept if row.facts != UNSETTLED}
        self.seen: dict[Path, _Row] = {}

    def write(self, *, whole: bool) -> None:
        """Keep what was seen, if it is new; not whole: and all that was there. A place that cannot be written is left."""
        rows = list(self.seen.values()) if whole else list(dict.fromkeys([*self.seen.values(), *self.kept]))
        if rows == self.kept or not rows:
            return
        names = torch.frombuffer(bytearray(b"".join(row.facts + row.digest for row in rows)), dtype=torch.uint8)
        tensors = {"files": names.view(-1, 64), "vectors": torch.stack([self.vectors[row.digest] for row in rows])}
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with staged_file(self.file) as staged:
                staged.write_bytes(tensor_bytes({**tensors, "checksum": _checksum(tensors)}))


def _load(file: Path, dim: int) -> tuple[list[_Row], Tensor]:
    """What a shelf's file holds; nothing if it is not there, or not as it was written."""
    nothing = list[_Row](), torch.empty(0, dim)
    if not file.is_file():
        return nothing
    try:
        found = read_safetensors(file)
    except KibanError:
        return nothing
    if set(found) != {"files", "vectors", "checksum"}:
        return nothing
    tensors = {name: found[name] for name in ("files", "vectors")}
    if not torch.equal(found["checksum"], _checksum(tensors)):
        return nothing
    data = tensors["files"].numpy().tobytes()
    rows = [_Row(data[at : at + 32], data[at + 32 : at + 64]) for at in range(0, len(data), 64)]
    return rows, tensors["vectors"].clone()


def _checksum(tensors: Mapping[str, Tensor]) -> Tensor:
    """sha256 of files and vectors, with their shapes and types, (32,) uint8."""
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return torch.frombuffer(bytearray(found.digest()), dtype=torch.uint8)
