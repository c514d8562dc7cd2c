"""Tables from CSV, TSV, JSONL and Parquet files, in the encodings that Japanese companies keep them in.

Every bad row is told with its line and byte. With on_bad_row="skip" the good rows are kept and the bad ones are written
to a quarantine file.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kiban.config import did_you_mean
from kiban.data.encoding import MAX_LINE_BYTES, SURROGATE, Line, detect_encoding, text_lines
from kiban.errors import DatasetError

OnBadRow = Literal["stop", "skip"]


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read. line counts from 1, offset is in bytes."""

    line: int
    offset: int
    why: str
    raw: str


@dataclass(frozen=True)
class Table:
    """Rows by column name. lines: where each row begins in a text file, else its number; both count from 1."""

    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    lines: list[int]
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
    return Table(tuple(rows[0]), rows, _numbers(rows), "frame", "unicode")


def _numbers(rows: Sequence[Any]) -> list[int]:
    return list(range(1, len(rows) + 1))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value


def _read_parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DatasetError(path, why=f"is not a Parquet file: {error}") from error
    return Table(tuple(rows[0]) if rows else (), rows, _numbers(rows), path.name, "parquet")


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


def _not_a_number(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _read_jsonl(path: Path, on_bad_row: OnBadRow) -> Table:
    """One object a line, in UTF-8 (the standard allows no other)."""
    bad, rows, lines = _Bad(path, on_bad_row), list[dict[str, Any]](), list[int]()
    columns: dict[str, None] = {}
    for line in text_lines(path, "utf-8"):
        if not line.text.strip() and not line.why:
            continue
        why, at, row = line.why, line.at, None
        if not why:
            try:
                row = json.loads(line.text, parse_constant=_not_a_number)
                why, at = _unfit(row), line.offset
            except json.JSONDecodeError as error:
                why, at = f"is not one JSON object: {error.msg}", line.byte_of(error.pos)
            except (ValueError, RecursionError) as error:
                why, at = f"is not one JSON object: {error}", line.offset
        if why:
            bad(line.number, at, why, line.text)
        else:
            assert row is not None
            columns.update(dict.fromkeys(row))
            rows.append(row)
            lines.append(line.number)
    return Table(tuple(columns), rows, lines, path.name, "utf-8", tuple(bad.rows))


def _unfit(row: Any) -> str:
    """Why a JSON value cannot be a row; empty if it can."""
    if not isinstance(row, dict):
        return "is not a JSON object"
    for name, value in row.items():
        if isinstance(value, str) and ("\0" in value or SURROGATE.search(value)):
            return f"{name!r} holds a NUL or half a surrogate pair"
    return ""


class _Source:
    """The lines of a file for the csv module, with their ends, remembering those of the row that is being read."""

    def __init__(self, path: Path, encoding: str) -> None:
        self.lines: Iterator[Line] = text_lines(path, encoding)
        self.row: list[Line] = []

    def again(self, lines: Sequence[Line]) -> None:
        """Give these lines once more before those that follow."""
        self.lines = itertools.chain(lines, self.lines)

    def __iter__(self) -> Iterator[str]:
        while (line := next(self.lines, None)) is not None:
            self.row.append(line)
            yield line.text + "\r\n"


def _read_csv(path: Path, on_bad_row: OnBadRow) -> Table:
    encoding, bad = detect_encoding(path), _Bad(path, on_bad_row)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(path, encoding)
    csv.field_size_limit(MAX_LINE_BYTES)
    source, header = _Source(path, encoding), list[str]()
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    rows, lines = list[dict[str, Any]](), list[int]()
    while True:
        source.row.clear()
        try:
            cells, why = next(reader), ""
        except StopIteration:
            break
        except csv.Error as error:
            cells, why = [], f"is not CSV: {error}"
        first, broken = source.row[0], next((line for line in source.row if line.why), None)
        if broken is not None:
            # A line that cannot be read spoils the row that it belongs to, and no other.
            bad(broken.number, broken.at, broken.why, "\n".join(line.text for line in source.row))
        elif why:
            bad(first.number, first.offset, why, first.text)
            # A stray quote swallows the lines behind it; they are read again without it.
            source.again(source.row[1:])
            reader = csv.reader(source, delimiter=delimiter, strict=True)
        elif not header:
            header = _header(path, cells, first.number)
        elif not any(cell.strip() for cell in cells):
            continue
        elif len(cells) != len(header):
            why = f"has {len(cells)} cells, the header has {len(header)}"
            bad(first.number, first.offset, why, delimiter.join(cells))
        else:
            rows.append(dict(zip(header, cells, strict=True)))
            lines.append(first.number)
    return Table(tuple(header), rows, lines, path.name, encoding, tuple(bad.rows))


def _header(path: Path, cells: Sequence[str], line: int) -> list[str]:
    header = [name.strip() for name in cells]
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise DatasetError(path, line=line, field=twice, why="two columns have this name", hint="rename one")
    return header


def _delimiter(path: Path, encoding: str) -> str:
    """The mark that the header line holds most of, outside quotes."""
    header = next((line.text for line in text_lines(path, encoding)), "")
    bare = "".join(header.split('"')[::2])
    return max(",\t;", key=lambda mark: (bare.count(mark), mark == ","))
