"""What tables say of pictures: rows of JSONL, CSV and Parquet as records, and which columns mean what."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kiban.config import did_you_mean
from kiban.data.encoding import UNFIT, text_lines
from kiban.data.sources import FREE_BYTES, MAX_RATIO
from kiban.data.tables import read_table
from kiban.errors import DatasetError, LimitError

IMAGE = ("file_name", "image", "image_path", "path")
CAPTION = ("captions", "caption", "text")
LABEL = ("label", "class")
LANGUAGE = r"[a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*"
BY_LANGUAGE = re.compile(rf"(?:captions?|text)_({LANGUAGE})")  # caption_ja
PARQUET_ROWS = 8  # read at once; each may hold a picture


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes within a file: where they begin and how many."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Record:
    """A row as it was read. image: a path as text or as found, or bytes. why says what is wrong with it, raw what it was.

    source: the file that the row is about, where that is not the one that is read.
    """

    name: str = ""
    image: str | Path | Stored | bytes = b""
    captions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    label: str | None = None
    row: Mapping[str, Any] = field(default_factory=dict)
    line: int | None = None
    offset: int | None = None
    why: str = ""
    raw: str = ""
    source: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns that are meant. None: the usual names are looked for, captions also as caption_ja and caption_en.

    caption: a column, or a mapping from language to column.
    """

    image: str | None = None
    caption: str | Mapping[str, str] | None = None
    label: str | None = None

    def image_of(self, names: list[str]) -> str | None:
        """The column of the picture among these."""
        return _one(self.image, IMAGE, names)

    def label_of(self, names: list[str]) -> str | None:
        """The column of the class among these."""
        return _one(self.label, LABEL, names)

    def captions_of(self, names: list[str]) -> dict[str, str]:
        """Column -> language, "" for one that tells the language itself or has none."""
        if isinstance(self.caption, Mapping):
            return {column: language for language, column in self.caption.items() if column in names}
        found = _one(self.caption, CAPTION, names)
        if found is not None or self.caption is not None:
            return {} if found is None else {found: ""}
        matches = {name: BY_LANGUAGE.fullmatch(name) for name in names}
        return {name: match[1] for name, match in matches.items() if match}

    def missing(self, names: list[str]) -> tuple[str, str]:
        """(a column, what is wrong) if a picture or a column that was named is not among these; else empty texts."""
        captions = self.caption.values() if isinstance(self.caption, Mapping) else [self.caption]
        for name in (self.image, self.label, *captions):
            if name is not None and name not in names:
                return name, f"no such column ({did_you_mean(name, names)})"
        return ("", "") if self.image_of(names) else (IMAGE[0], f"no column of pictures; there are {', '.join(names)}")


def _one(named: str | None, usual: tuple[str, ...], names: list[str]) -> str | None:
    return next((name for name in ((named,) if named is not None else usual) if name in names), None)


def captions_in(value: Any, language: str = "") -> tuple[dict[str, tuple[str, ...]], str]:
    """(language -> captions, what is wrong): of a text, a list of texts, or a mapping from language to either.

    What is null is not there; a text that is empty is wrong.
    """
    if value is None:
        return {}, ""
    if isinstance(value, str | list) and not _is_map(value):
        texts = [value] if isinstance(value, str) else value
        for number, text in enumerate(texts, 1):
            where = f"caption {number}{f' in {language!r}' if language else ''}"
            if not isinstance(text, str):
                return {}, f"{where} is {'null' if text is None else 'a ' + type(text).__name__}, not text"
            if not text.strip():
                return {}, f"{where} is empty"
            if UNFIT.search(text):
                return {}, f"{where} holds a NUL or half a surrogate pair"
        return ({language: tuple(text.strip() for text in texts)} if texts else {}), ""
    if language or not isinstance(value, dict | list):
        return {}, f"the caption is a {type(value).__name__}, not text"
    found: dict[str, tuple[str, ...]] = {}
    for name, texts in value.items() if isinstance(value, dict) else value:
        if not isinstance(name, str) or not re.fullmatch(LANGUAGE, name):
            return {}, f"{str(name)[:40]!r} is not a language such as 'ja'"
        part, why = captions_in(texts, name)
        if why:
            return {}, why
        found |= part
    return found, ""


def _is_map(value: Any) -> bool:
    """Whether this is a map as pyarrow gives one, a list of pairs."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, tuple) for item in value)


def label_in(value: Any) -> tuple[str | None, str]:
    """(class, what is wrong): a text, or a whole number as text."""
    if value is None or value == "":
        return None, ""
    if isinstance(value, bool) or not isinstance(value, str | int) or UNFIT.search(str(value)):
        return None, f"the class is a {type(value).__name__}, not text or a whole number"
    return str(value), ""


def record_of(values: dict[str, Any], columns: Columns, **place: Any) -> Record:
    """The record of a row that is a mapping. place: line, offset and raw of the record."""
    names = list(values)
    name, why = columns.missing(names)
    if why:
        return Record(why=f"{name!r}: {why}", **place)
    image_column = columns.image_of(names)
    assert image_column is not None
    image, path = values[image_column], ""
    if isinstance(image, dict):  # Hugging Face's image: bytes, or the path of a file
        path = image.get("path") or ""
        image = image.get("bytes") or path or None
    if not isinstance(image, str | bytes) or not image or (isinstance(image, str) and UNFIT.search(image)):
        return Record(why=f"{image_column!r} is not the path of a picture, or bytes", **place)
    captions, label, why = said_of(values, columns)
    known = {image_column, *columns.captions_of(names), columns.label_of(names)}
    row = {key: value for key, value in values.items() if key not in known}
    name = image if isinstance(image, str) else path or str(place.get("line"))
    return Record(name, image, captions, label, row, why=why, **place)


def said_of(values: dict[str, Any], columns: Columns) -> tuple[dict[str, tuple[str, ...]], str | None, str]:
    """(captions, class, what is wrong) of a row."""
    names, captions = list(values), dict[str, tuple[str, ...]]()
    for column, language in columns.captions_of(names).items():
        part, why = captions_in(values[column], language)
        if why:
            return {}, None, why
        captions |= part
    label_column = columns.label_of(names)
    label, why = label_in(values[label_column]) if label_column else (None, "")
    return captions, label, why


def table_records(path: Path, columns: Columns) -> Iterator[Record]:
    """The rows of a .jsonl, .ndjson, .csv, .tsv or .parquet file. Raises DatasetError for the file as a whole."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _parquet(path, columns)
    return _jsonl(path, columns) if kind in (".jsonl", ".ndjson") else _csv(path, columns)


def _jsonl(path: Path, columns: Columns) -> Iterator[Record]:
    decode = json.JSONDecoder(parse_constant=_not_json).decode
    for line in text_lines(path, "utf-8"):
        if not line.text.strip() and not line.why:
            continue
        values, why, at = None, line.why, line.at
        if not why:
            try:
                values, at = decode(line.text), line.offset
                why = "" if isinstance(values, dict) else "is not a JSON object"
            except json.JSONDecodeError as error:
                why, at = f"is not one JSON object: {error.msg}", line.byte_of(error.pos)
            except (ValueError, RecursionError) as error:
                why, at = f"is not one JSON object: {error}", line.offset
        place: dict[str, Any] = {"line": line.number, "offset": at, "raw": line.text}
        if why:
            yield Record(why=why, **place)
        else:
            assert isinstance(values, dict)
            yield record_of(values, columns, **place)


def _not_json(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _csv(path: Path, columns: Columns) -> Iterator[Record]:
    table = read_table(path, on_bad_row="skip")
    _check(path, columns, list(table.columns))
    spoilt = [(bad.line, Record(line=bad.line, offset=bad.offset, why=bad.why, raw=bad.raw)) for bad in table.bad_rows]
    # An empty cell is none: a table says nothing more plainly.
    good = (
        (line, record_of({key: value or None for key, value in row.items()}, columns, line=line, raw=str(row)))
        for line, row in zip(table.lines, table.rows, strict=True)
    )
    for _, record in sorted(itertools.chain(good, spoilt), key=lambda item: item[0]):
        yield record


def _check(path: Path, columns: Columns, names: list[str]) -> None:
    name, why = columns.missing(names)
    if why:
        raise DatasetError(path, field=name, why=why)


def _parquet(path: Path, columns: Columns) -> Iterator[Record]:
    """Rows in small groups. Of binary columns only the picture's is read."""
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as file:
            table = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
            schema = table.schema_arrow
            twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
            if twice is not None:
                raise DatasetError(path, field=twice, why="two columns have this name")
            _check(path, columns, schema.names)
            image = columns.image_of(schema.names)
            wanted = [f.name for f in schema if f.name == image or "binary" not in str(f.type)]
            number = given = 0
            for batch in table.iter_batches(PARQUET_ROWS, columns=wanted, use_threads=False):
                for index in range(batch.num_rows):
                    number += 1
                    try:
                        values = {name: batch.column(name)[index].as_py() for name in batch.schema.names}
                    except UnicodeDecodeError:
                        yield Record(line=number, why="holds a text that is not UTF-8")
                        continue
                    raw = str({name: value for name, value in values.items() if name != image})
                    record = record_of(values, columns, line=number, raw=raw)
                    given += len(raw) + (len(record.image) if isinstance(record.image, bytes) else 0)
                    yield record
                if given > max(FREE_BYTES, MAX_RATIO * path.stat().st_size):
                    raise LimitError(path, why=f"grows to more than {MAX_RATIO} times its size")
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DatasetError(path, why=f"is not a readable Parquet file: {error}") from error
