"""Texts from files and folders of files, one after the other, in bounded memory.

Read are .txt and .md (a document a file), .jsonl and .ndjson (a document a line) and .parquet (a document a row); all but
the last also as .gz or .zst. Encodings, broken lines and quarantine are as for tables (`kiban.data.tables`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kiban.config import Progress, did_you_mean, silent
from kiban.data.bad_rows import BadRows
from kiban.data.encoding import MAX_LINE_BYTES, UNFIT, Line, detect_encoding, text_lines
from kiban.data.seen import SeenHashes, hash64
from kiban.data.sources import FREE_BYTES, JSON, MAX_RATIO, PLAIN, Source, find_files, kind_of
from kiban.data.tables import OnBadRow
from kiban.errors import DatasetError, LimitError

SPLIT_CHARACTERS = 4 * 2**20  # a plain file beyond this is many documents, with blank lines between them
PARQUET_ROWS = 64  # read at once


class Text(NamedTuple):
    """A document. line counts from 1: where it begins in its file, or its row of a Parquet file.

    id: the row's own "id" if it has one, else the file's name within the folder that was given, and the line.
    """

    id: str
    text: str
    source: Path
    line: int


def read_texts(
    paths: Sequence[Path] | Path,
    *,
    field: str = "text",
    id_field: str | None = None,
    on_bad_row: OnBadRow = "stop",
    quarantine: Path | None = None,
    progress: Progress = silent,
) -> Iterator[Text]:
    """The documents of files and of folders (recursive, sorted). progress counts bytes of the files.

    Raises DatasetError at once if there is no file or no usable row, and at the first bad row; on_bad_row="skip" leaves
    bad rows out and writes them to quarantine (JSON lines). LimitError for what is compressed beyond belief.
    """
    reader = CorpusReader(paths, field=field, id_field=id_field, on_bad_row=on_bad_row, quarantine=quarantine)

    def told() -> Iterator[Text]:
        for text in reader:
            progress("reading", reader.bytes_done, reader.bytes_total)
            yield text

    texts = told()
    return itertools.chain([next(texts)], texts)


class CorpusReader(BadRows):
    """The documents of files and folders, and how far the reading is.

    field: the column of the text in JSONL and Parquet. id_field: a column that names each document; it must be in every
    row, and differ. Raises DatasetError if there is no file; iterating raises it if there is no usable row.
    """

    def __init__(
        self,
        paths: Sequence[Path] | Path,
        *,
        field: str = "text",
        id_field: str | None = None,
        on_bad_row: OnBadRow = "stop",
        quarantine: Path | None = None,
    ) -> None:
        paths = [paths] if isinstance(paths, str | Path) else list(paths)
        self.files = find_files(paths)
        super().__init__(on_bad_row, quarantine)
        self.field, self.id_field = field, id_field
        self.bytes_total = sum(path.stat().st_size for path in self.files)
        self.documents = self._bytes_before = 0
        self._source: Source | None = None

    @property
    def bytes_done(self) -> int:
        """Bytes of the files, as they lie on the disk, that have been read."""
        return self._bytes_before + (self._source.done if self._source else 0)

    def __iter__(self) -> Iterator[Text]:
        self.documents = self._bytes_before = 0
        self._begin()
        seen = SeenHashes()
        for path, name in self.files.items():
            self._source = Source(path)
            try:
                for text in self._texts(self._source, name):
                    if self.id_field is not None and not seen.add(hash64(text.id)):
                        self._bad(path, text.line, None, f"{self.id_field} {text.id!r} stands twice", text.text)
                        continue
                    self.documents += 1
                    yield text
            except DatasetError as error:
                if self.on_bad_row == "stop" or error.what != str(path):
                    raise
                self._bad(path, error.line, error.offset, error.why, "")  # the rest of this file is lost
            self._bytes_before += path.stat().st_size
            self._source = None
        if not self.documents:
            raise DatasetError(
                next(iter(self.files)) if len(self.files) == 1 else f"{len(self.files)} files",
                why="holds no usable row",
                hint=f"the first bad one: {self._first_bad}" if self._first_bad else "",
            )

    def _texts(self, source: Source, name: str) -> Iterator[Text]:
        if source.path.stat().st_size == 0:
            self._bad(source.path, 1, 0, "is empty", "")
            return
        kind, before = kind_of(source.path), self.documents + self.bad_rows
        if kind in PLAIN:
            yield from self._plain(source, name)
        elif kind in JSON:
            yield from self._jsonl(source, name)
        else:
            yield from self._parquet(source, name)
        if self.documents + self.bad_rows == before:
            self._bad(source.path, 1, 0, "holds no row", "")

    # Plain text -----------------------------------------------------------------------------------------------------

    def _plain(self, source: Source, name: str) -> Iterator[Text]:
        """One document, or, where that would be too long, one from blank line to blank line."""
        path, pending, size, split = source.as_path(), list[Line](), 0, False
        for line in text_lines(path, detect_encoding(path)):
            if split and (not line.text.strip() or size > SPLIT_CHARACTERS):
                yield from self._document(pending, source, name)
                pending, size = [], 0
            pending.append(line)
            size += len(line.text) + 1
            if size > SPLIT_CHARACTERS and not split:
                split = True
                *whole, pending = _paragraphs(pending)
                for lines in whole:
                    yield from self._document(lines, source, name)
                size = sum(len(line.text) + 1 for line in pending)
        yield from self._document(pending, source, name)

    def _document(self, lines: list[Line], source: Source, name: str) -> Iterator[Text]:
        broken = next((line for line in lines if line.why), None)
        text = "\n".join(line.text for line in lines)
        if broken is not None:
            self._bad(source.path, broken.number, broken.at, broken.why, text)
        elif text.strip():
            front = next(i for i, line in enumerate(lines) if line.text.strip())
            number = lines[front].number
            yield Text(f"{name}:{number}", "\n".join(line.text for line in lines[front:]), source.path, number)

    # JSON lines -----------------------------------------------------------------------------------------------------

    def _jsonl(self, source: Source, name: str) -> Iterator[Text]:
        decode = json.JSONDecoder(parse_constant=_not_json).decode
        for line in text_lines(source.as_path(), "utf-8"):
            if not line.text.strip() and not line.why:
                continue
            row, why, at = None, line.why, line.at
            if not why:
                try:
                    row = decode(line.text)
                except json.JSONDecodeError as error:
                    why, at = f"is not one JSON object: {error.msg}", line.byte_of(error.pos)
                except (ValueError, RecursionError) as error:
                    why, at = f"is not one JSON object: {error}", line.offset
            if why:
                self._bad(source.path, line.number, at, why, line.text)
                continue
            why, at = self._unfit(row), line.offset
            if why:
                self._bad(source.path, line.number, at, why, line.text)
            else:
                assert row is not None
                yield Text(self._id(row, name, line.number), row[self.field], source.path, line.number)

    def _unfit(self, row: Any) -> str:
        """Why a row is no document; empty if it is one."""
        if not isinstance(row, dict):
            return "is not a JSON object"
        if self.field not in row:
            return f"has no {self.field!r} ({did_you_mean(self.field, map(str, row))})"
        text = row[self.field]
        if not isinstance(text, str):
            return f"{self.field!r} is {'null' if text is None else 'a ' + type(text).__name__}, not text"
        if UNFIT.search(text):
            return f"{self.field!r} holds a NUL or half a surrogate pair"
        if len(text) > MAX_LINE_BYTES:
            return f"{self.field!r} is longer than {MAX_LINE_BYTES} characters"
        id = None if self.id_field is None else row.get(self.id_field)
        if self.id_field is not None and (not isinstance(id, str | int) or UNFIT.search(str(id)) or id == ""):
            return f"{self.id_field!r} is missing or not a text or whole number"
        return ""

    def _id(self, row: dict[str, Any], name: str, number: int) -> str:
        own = row.get(self.id_field or "id")
        fits = isinstance(own, str | int) and own != "" and not UNFIT.search(str(own))
        return str(own) if fits else f"{name}:{number}"

    # Parquet --------------------------------------------------------------------------------------------------------

    def _parquet(self, source: Source, name: str) -> Iterator[Text]:
        """Rows in small groups, without the columns that are not asked for."""
        import pyarrow
        import pyarrow.parquet

        path = source.path
        try:
            with path.open("rb") as file:
                table = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
                columns, size = table.schema_arrow.names, path.stat().st_size
                self._check_columns(path, table, columns)
                wanted = [c for c in dict.fromkeys([self.field, self.id_field or "id"]) if c in columns]
                number = given = 0
                for batch in table.iter_batches(PARQUET_ROWS, columns=wanted, use_threads=False):
                    for row in _rows(batch):
                        number += 1
                        why = self._unfit(row)
                        if why:
                            self._bad(path, number, None, why, str(row.get(self.field))[:1000])
                            continue
                        given += len(row[self.field])
                        source.done = size * number // table.metadata.num_rows
                        yield Text(self._id(row, name, number), row[self.field], path, number)
                    if given > max(FREE_BYTES, MAX_RATIO * size):
                        raise LimitError(path, why=f"grows to more than {MAX_RATIO} times its size")
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
            raise DatasetError(path, why=f"is not a readable Parquet file: {error}") from error

    def _check_columns(self, path: Path, table: Any, columns: list[str]) -> None:
        import pyarrow.types as types

        for name in (self.field, self.id_field):
            if name is not None and columns.count(name) != 1:
                why = "two columns have this name" if name in columns else "no such column"
                raise DatasetError(path, field=name, why=why, hint=did_you_mean(name, columns))
        found = table.schema_arrow.field(self.field).type
        found = found.value_type if types.is_dictionary(found) else found
        if not (types.is_string(found) or types.is_large_string(found) or types.is_string_view(found)):
            raise DatasetError(path, field=self.field, why=f"the column holds {found}, not text")


def _not_json(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _paragraphs(lines: list[Line]) -> list[list[Line]]:
    """Lines from blank line to blank line."""
    parts: list[list[Line]] = [[]]
    for line in lines:
        if not line.text.strip() and parts[-1]:
            parts.append([])
        parts[-1].append(line)
    return parts


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet batch; a text that is not UTF-8 comes as bytes."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(batch.num_rows):
            row = {}
            for name in batch.schema.names:
                value = batch.column(name)[i]
                try:
                    row[name] = value.as_py()
                except UnicodeDecodeError:
                    row[name] = value.as_buffer().to_pybytes()
            yield row
