"""Which files hold texts, and their bytes, decompressed as a stream that a small file cannot make endless."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from kiban.errors import DatasetError, FormatError, LimitError
from kiban.files import MANIFEST, read_json

PLAIN, JSON, PARQUET = (".txt", ".md"), (".jsonl", ".ndjson"), ".parquet"
KIND = "corpus"  # in the manifest of a folder that `kiban data` wrote
PARTS = "part-*.jsonl*"  # its documents, among samples and quarantine
SUFFIXES = (".gz", ".zst")
# Text shrinks to a fifth, logs and tables of one value to a hundredth; a bomb of gzip to 1/1,000, of zstd to 1/30,000.
MAX_RATIO = 250
FREE_BYTES = 8 * 2**20  # that any file may hold


def kind_of(path: Path) -> str:
    """The extension without that of the compression, in lower case: corpus.JSONL.gz is .jsonl."""
    name = path.with_suffix("") if path.suffix.lower() in SUFFIXES else path
    return name.suffix.lower()


def find_files(paths: Sequence[Path]) -> dict[Path, str]:
    """Every file to read, in order, with its name within the folder that was given.

    Raises DatasetError for a path that does not exist, a file that is not read, and a folder without one that is.
    """
    found: dict[Path, str] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inside = _inside(path)
            if not inside:
                raise DatasetError(path, why="holds no file of text", hint=f"read are {_known()}")
            found |= {file: file.relative_to(path).as_posix() for file in inside}
        elif not path.is_file():
            raise DatasetError(path, why="is not a file" if path.exists() else "no such file or folder")
        elif not _is_read(path):
            raise DatasetError(path, why=f"has the unknown extension {path.suffix!r}", hint=f"read are {_known()}")
        else:
            found[path] = path.name
    if not found:
        raise DatasetError("corpus", why="no file was given")
    return found


def _inside(folder: Path) -> list[Path]:
    """The files of a folder that are read: of one that kiban wrote its documents, else all but hidden ones."""
    try:
        is_ours = (folder / MANIFEST).is_file() and read_json(folder / MANIFEST).get("kind") == KIND
    except FormatError:
        is_ours = False
    files = folder.rglob(PARTS if is_ours else "*")
    shown = [f for f in files if not any(part.startswith(".") for part in f.relative_to(folder).parts)]
    return sorted((f for f in shown if _is_read(f) and f.is_file()), key=lambda f: f.relative_to(folder).as_posix())


def _is_read(path: Path) -> bool:
    kind = kind_of(path)
    return kind in (*PLAIN, *JSON) or path.suffix.lower() == PARQUET


def _known() -> str:
    return f"{', '.join((*PLAIN, *JSON))}, each also with {' or '.join(SUFFIXES)}, and {PARQUET}"


class Source:
    """A file as `encoding.text_lines` opens one, by open("rb"); done tells how many of its bytes have been read."""

    def __init__(self, path: Path) -> None:
        self.path, self.done = path, 0

    def open(self, mode: str = "rb") -> BinaryIO:
        """The text's bytes from their beginning. Raises DatasetError or LimitError while they are read."""
        assert mode == "rb"
        if self.path.suffix.lower() not in SUFFIXES:
            return _buffered(_Counted(self))
        return _buffered(_Bounded(self, lambda: _unpacked(self)))

    def as_path(self) -> Path:
        """This, for functions that do nothing with a path but open it."""
        return cast(Path, self)


def _buffered(file: io.RawIOBase) -> BinaryIO:
    return io.BufferedReader(cast(io.FileIO, file), 2**18)


def _unpacked(source: Source) -> BinaryIO:
    file = _Counted(source)
    if source.path.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=_buffered(file)))
    import pyarrow  # its zstd takes frames one after the other, refuses truncated ones and windows beyond 128 MiB

    return cast(BinaryIO, pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd"))


class _Counted(io.RawIOBase):
    """The file as it is, counting what is read of it."""

    def __init__(self, source: Source) -> None:
        self.source, source.done = source, 0
        try:
            self.file = source.path.open("rb", buffering=0)
        except OSError as error:
            raise DatasetError(source.path, why=f"cannot be read: {error.strerror}") from error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, place: int, whence: int = 0) -> int:
        return self.file.seek(place, whence)

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        try:
            count = self.file.readinto(buffer) or 0
        except OSError as error:
            raise DatasetError(self.source.path, why=f"cannot be read: {error.strerror}") from error
        self.source.done += count
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


class _Bounded(io.RawIOBase):
    """What comes out of a decompressor, as long as it stands in proportion to what went in."""

    def __init__(self, source: Source, reopen: Callable[[], BinaryIO]) -> None:
        self.source, self.reopen, self.stream, self.given = source, reopen, reopen(), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.given

    def seek(self, place: int, whence: int = 0) -> int:
        """Anew to the beginning; the buffer in front of this moves within itself without asking."""
        assert whence == 0, "text is read from the front"
        self.stream.close()
        self.stream, self.given = self.reopen(), 0
        while self.given < place and self.readinto(bytearray(place - self.given)):
            pass
        return self.given

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        path = self.source.path
        try:
            data = self.stream.read(len(buffer))
        except (OSError, EOFError, zlib.error) as error:
            raise DatasetError(path, why=f"cannot be decompressed: {error}", hint="copy the file again") from error
        self.given += len(data)
        if self.given > max(FREE_BYTES, MAX_RATIO * self.source.done):
            why = f"grows to more than {MAX_RATIO} times its size"
            raise LimitError(path, why=why, hint="decompress it yourself if you trust it")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.stream.close()
        super().close()
