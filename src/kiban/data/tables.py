"""Tables from CSV, TSV, JSONL and Parquet files, in the encodings that Japanese companies keep them in.

Every bad row is told with its line and byte. With on_bad_row="skip" the good rows are kept and the bad ones are written
to a quarantine file.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kiban.config import did_you_mean
from kiban.errors import DatasetError, LimitError

OnBadRow = Literal["stop", "skip"]
MAX_LINE_BYTES = 16 * 2**20
BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
GUESSES = ("utf-8", "cp932", "euc_jp")


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read. line counts from 1, offset is in bytes."""

    line: int
    offset: int
    why: str
    raw: str


@dataclass(frozen=True)
class Table:
    """Rows by column name; lines holds the place of each row in the file, counted from 1 without a header."""

    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    source: str
    encoding: str
    bad_rows: tuple[BadRow, ...] = field(default=())

    def column(self, name: str) -> list[Any]:
        """The values of a column. Raises DatasetError with the closest name."""
        if name not in self.columns:
            raise DatasetError(self.source, field=name, why="no such column", hint=did_you_mean(name, self.columns))
        return [row.get(name) for row in self.rows]


def read_table(path: Path, *, on_bad_row: OnBadRow = "stop", quarantine: Path | None = None) -> Table:
    """Read a table by its extension: .csv, .tsv, .txt, .jsonl, .ndjson, .parquet.

    Raises DatasetError at the first bad row, or skips them and writes them to quarantine (JSON lines).
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(path, why="no such file")
    if path.stat().st_size == 0:
        raise DatasetError(path, why="is empty")
    kind = path.suffix.lower()
    if kind == ".parquet":
        table = _read_parquet(path)
    elif kind in (".jsonl", ".ndjson"):
        table = _read_jsonl(path, on_bad_row)
    elif kind in (".csv", ".tsv", ".txt"):
        table = _read_csv(path, on_bad_row)
    else:
        hint = "CSV, TSV, JSONL and Parquet files are read; save a spreadsheet as CSV"
        raise DatasetError(path, why=f"has the unknown extension {kind!r}", hint=hint)
    if not table.rows:
        raise DatasetError(path, why="holds no usable row")
    if table.bad_rows and quarantine is not None:
        quarantine.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(bad.__dict__, ensure_ascii=False) + "\n" for bad in table.bad_rows]
        quarantine.write_text("".join(lines), encoding="utf-8")
    return table


def from_frame(frame: Any) -> Table:
    """A pandas or polars frame, or a list of dicts. Raises DatasetError for anything else."""
    if isinstance(frame, Sequence) and frame and all(isinstance(row, dict) for row in frame):
        rows = [dict(row) for row in frame]
    elif hasattr(frame, "to_dicts"):
        rows = frame.to_dicts()
    elif hasattr(frame, "to_dict") and hasattr(frame, "columns"):
        rows = frame.to_dict("records")
    else:
        raise DatasetError(
            type(frame).__name__, why="is not a table", hint="give a path, a pandas or polars frame, or dicts"
        )
    rows = [{str(key): None if _is_nan(value) else value for key, value in row.items()} for row in rows]
    if not rows:
        raise DatasetError("frame", why="holds no row")
    return Table(tuple(rows[0]), rows, "frame", "unicode")


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value


def _read_parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DatasetError(path, why=f"is not a Parquet file: {error}") from error
    return Table(tuple(rows[0]) if rows else (), rows, path.name, "parquet")


class _Bad:
    """Collects bad rows, or stops at the first."""

    def __init__(self, path: Path, on_bad_row: OnBadRow) -> None:
        self.path, self.on_bad_row = path, on_bad_row
        self.rows: list[BadRow] = []

    def __call__(self, line: int, offset: int, why: str, raw: str) -> None:
        if self.on_bad_row == "stop":
            hint = "mend the row, or pass --on-bad-row skip"
            raise DatasetError(self.path, line=line, offset=offset, why=why, hint=hint)
        self.rows.append(BadRow(line, offset, why, raw[:1000]))


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(line number, byte offset, line without its end). Raises LimitError for a line without end."""
    offset = 0
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES:
                why = f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB"
                raise LimitError(
                    path, line=number, offset=offset, why=why, hint="is this one JSON array? one object a line"
                )
            yield number, offset, raw.rstrip(b"\r\n")
            offset += len(raw)


def _not_a_number(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _read_jsonl(path: Path, on_bad_row: OnBadRow) -> Table:
    bad, rows = _Bad(path, on_bad_row), []
    columns: dict[str, None] = {}
    for line, offset, raw in _lines(path):
        if line == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        if not raw.strip():
            continue
        shown = raw.decode("utf-8", "replace")
        try:
            row = json.loads(raw.decode("utf-8"), parse_constant=_not_a_number)
        except UnicodeDecodeError as error:
            bad(line, offset + error.start, "is not UTF-8", shown)
            continue
        except (ValueError, RecursionError) as error:
            bad(line, offset + getattr(error, "pos", 0), f"is not one JSON object: {error}", shown)
            continue
        if not isinstance(row, dict):
            bad(line, offset, "is not a JSON object", shown)
        elif _unfit(row):
            bad(line, offset, _unfit(row), shown)
        else:
            columns.update(dict.fromkeys(row))
            rows.append(row)
    return Table(tuple(columns), rows, path.name, "utf-8", tuple(bad.rows))


def _unfit(row: dict[str, Any]) -> str:
    """Why the values of a row cannot be used; empty if they can."""
    for name, value in row.items():
        if isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
            return f"{name!r} holds a NUL or half a surrogate pair"
    return ""


def detect_encoding(path: Path) -> str:
    """By byte order mark, else the first of UTF-8, cp932 and EUC-JP that decodes the whole file."""
    with path.open("rb") as file:
        start = file.read(4)
    for mark, name in BOMS:
        if start.startswith(mark):
            return name
    for name in GUESSES:
        decoder = codecs.getincrementaldecoder(name)()
        try:
            with path.open("rb") as file:
                while part := file.read(2**20):
                    decoder.decode(part)
                decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            continue
        return name
    return "utf-8"  # broken UTF-8: each bad line is told


def _read_csv(path: Path, on_bad_row: OnBadRow) -> Table:
    encoding, bad = detect_encoding(path), _Bad(path, on_bad_row)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(path, encoding)
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(_decoded(path, encoding, bad), delimiter=delimiter, strict=True)
    header: list[str] = []
    rows: list[dict[str, Any]] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            bad(line, _offset_of(path, line), f"is not CSV: {error}", "")
            continue
        if not header:
            header = [name.strip() for name in cells]
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise DatasetError(path, line=line, field=twice, why="two columns have this name", hint="rename one")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            why = f"has {len(cells)} cells, the header has {len(header)}"
            bad(line, _offset_of(path, line), why, delimiter.join(cells))
        else:
            rows.append(dict(zip(header, cells, strict=True)))
    return Table(tuple(header), rows, path.name, encoding, tuple(sorted(bad.rows, key=lambda row: row.line)))


def _decoded(path: Path, encoding: str, bad: _Bad) -> Iterator[str]:
    """Lines as text, with their ends. A line that cannot be decoded, or that holds a NUL, is bad by itself."""
    if encoding == "utf-16":
        with path.open(encoding=encoding, newline="") as file:
            yield from file
        return
    codec = "utf-8" if encoding == "utf-8-sig" else encoding
    for line, offset, raw in _lines(path):
        if line == 1 and encoding == "utf-8-sig":
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            text = raw.decode(codec)
        except UnicodeDecodeError as error:
            bad(line, offset + error.start, f"is not {codec}", raw.decode(codec, "replace"))
            yield "\r\n"
            continue
        if "\0" in text:
            bad(line, offset + raw.index(b"\0"), "holds a NUL byte", text)
            yield "\r\n"
            continue
        yield text + "\r\n"


def _offset_of(path: Path, line: int) -> int:
    return next((offset for number, offset, _ in _lines(path) if number == line), path.stat().st_size)


def _delimiter(path: Path, encoding: str) -> str:
    """The mark that the header line holds most of, outside quotes."""
    with path.open("rb") as file:
        first = file.read(64 * 1024).decode(encoding, "replace")
    header = io.StringIO(first).readline()
    bare = "".join(header.split('"')[::2])
    return max(",\t;", key=lambda mark: (bare.count(mark), mark == ","))
