"""Tables from CSV, TSV, JSONL and Parquet files, in the encodings that Japanese companies keep them in.

Every bad row is told with its line and byte. With on_bad_row="skip" the good rows are kept and the bad ones are written
to a quarantine file.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kiban.config import did_you_mean
from kiban.data.encoding import MAX_LINE_BYTES, UNFIT, Line, detect_encoding, text_lines
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
    if table.bad_rows and quarantine is not None:
        quarantine.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(bad.__dict__, ensure_ascii=False) + "\n" for bad in table.bad_rows]
        quarantine.write_text("".join(lines), encoding="utf-8")
    if not table.rows:
        raise DatasetError(path, why="holds no usable row")
    return table


def from_frame(frame: Any) -> Table:
    """A pandas or polars frame, or a list of dicts; what is missing becomes None. Raises DatasetError for anything else."""
    if isinstance(frame, Sequence) and all(isinstance(row, dict) for row in frame):
        rows = [dict(row) for row in frame]
    elif hasattr(frame, "to_dicts"):
        rows = frame.to_dicts()
    elif hasattr(frame, "to_dict") and hasattr(frame, "columns"):
        rows = frame.to_dict("records")
    else:
        raise DatasetError(
            type(frame).__name__, why="is not a table", hint="give a path, a pandas or polars frame, or dicts"
        )
    if not rows:
        raise DatasetError("frame", why="holds no row")
    return _from_rows(rows, "frame", "unicode")


def _from_rows(rows: Sequence[dict[Any, Any]], source: str, encoding: str) -> Table:
    """A table of rows that have numbers but no lines."""
    named = [{str(key): None if _is_missing(value) else value for key, value in row.items()} for row in rows]
    columns = dict.fromkeys(name for row in named for name in row)
    return Table(tuple(columns), named, list(range(1, len(named) + 1)), source, encoding)


def _is_missing(value: Any) -> bool:
    # pandas' NA and NaT answer no comparison with a plain bool; their types are not to be had without pandas.
    return (isinstance(value, float) and value != value) or type(value).__name__ in ("NAType", "NaTType")


def _read_parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        # A handle and not the path: of a path, folder names such as year=2026 would become columns.
        with path.open("rb") as file:
            found = pyarrow.parquet.ParquetFile(file).read()
        names, rows = found.column_names, found.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DatasetError(path, why=f"is not a readable Parquet file: {error}") from error
    _refuse_twice(path, names)
    return _from_rows(rows, path.name, "parquet")


class _Bad:
    """Collects bad rows, or stops at the first."""

    def __init__(self, path: Path, on_bad_row: OnBadRow) -> None:
        self.path, self.on_bad_row = path, on_bad_row
        self.rows: list[BadRow] = []

    def __call__(self, line: int, offset: int, why: str, raw: str) -> None:
        if self.on_bad_row == "stop":
            hint = "mend the row, or pass --on-bad-row skip"
            raise DatasetError(self.path, line=line, offset=offset, why=why, hint=hint)
        self.rows.append(BadRow(line, offset, why, raw))


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
                why, at = _unfit(row, line.text), line.offset
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


def _unfit(row: Any, line: str) -> str:
    """Why a JSON value cannot be a row; empty if it can."""
    if not isinstance(row, dict):
        return "is not a JSON object"
    if "\\u" in line:  # only an escape brings such characters in
        for name, value in row.items():
            if any(UNFIT.search(text) for text in _texts([name, value])):
                return f"{name.encode('utf-8', 'backslashreplace').decode()!r} holds a NUL or half a surrogate pair"
    return ""


def _texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value if isinstance(value, list) else itertools.chain(*value.items()):
            yield from _texts(part)


class _Source:
    """The lines of a file for the csv module, remembering those of the row that is being read."""

    def __init__(self, path: Path, encoding: str) -> None:
        self.lines: Iterator[Line] = text_lines(path, encoding)
        self.again: deque[Line] = deque()  # lines that are read once more, before those that follow
        self.row: list[Line] = []

    def __iter__(self) -> Iterator[str]:
        while True:
            line = self.again.popleft() if self.again else next(self.lines, None)
            if line is None:
                return
            self.row.append(line)
            yield line.text + "\n"


def _read_csv(path: Path, on_bad_row: OnBadRow) -> Table:
    encoding, bad = detect_encoding(path), _Bad(path, on_bad_row)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(path, encoding)
    header: list[str] = []
    rows, lines = list[dict[str, Any]](), list[int]()
    for cells, spoilt, first, raw in _csv_rows(path, encoding, delimiter):
        if spoilt and not header:
            _Bad(path, "stop")(*spoilt, raw)  # no row can be read without the header
        elif spoilt:
            bad(*spoilt, raw)
        elif not any(cell.strip() for cell in cells):
            continue
        elif not header:
            header = [name.strip() or f"column_{i}" for i, name in enumerate(cells, 1)]
            _refuse_twice(path, header, first.number)
        elif len(cells) != len(header):
            bad(first.number, first.offset, f"has {len(cells)} cells, the header has {len(header)}", raw)
        else:
            rows.append(dict(zip(header, cells, strict=True)))
            lines.append(first.number)
    return Table(tuple(header), rows, lines, path.name, encoding, tuple(bad.rows))


def _csv_rows(
    path: Path, encoding: str, delimiter: str
) -> Iterator[tuple[list[str], tuple[int, int, str] | None, Line, str]]:
    """(cells, what spoils them: line, byte and why; the first line; the row as it was)."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    source = _Source(path, encoding)
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    while True:
        source.row.clear()
        try:
            cells, why = next(reader), ""
        except StopIteration:
            return
        except csv.Error as error:
            cells, why = [], f"is not CSV: {error}"
        first, broken = source.row[0], next((line for line in source.row if line.why), None)
        spoilt = None
        if broken is not None and not why:
            # A line that cannot be read spoils the row that it belongs to, and no other.
            spoilt = broken.number, broken.at, broken.why
        elif why:
            spoilt = (first.number, first.at, first.why) if first.why else (first.number, first.offset, why)
            # A stray quote swallows the lines behind it; they are read again without it.
            source.again.extendleft(reversed(source.row[1:]))
            del source.row[1:]
            reader = csv.reader(source, delimiter=delimiter, strict=True)
        yield cells, spoilt, first, "\n".join(line.text for line in source.row)


def _refuse_twice(path: Path, names: Sequence[str], line: int | None = None) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DatasetError(path, line=line, field=twice, why="two columns have this name", hint="rename one")


def _delimiter(path: Path, encoding: str) -> str:
    """The mark that the header line holds most of, outside quotes."""
    header = next((line.text for line in text_lines(path, encoding) if line.text.strip()), "")
    bare = "".join(header.split('"')[::2])
    return max(",\t;", key=lambda mark: (bare.count(mark), mark == ","))
