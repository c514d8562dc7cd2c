"""Tables: what is read, and what is told about what cannot be."""

from __future__ import annotations

import csv
import io
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiban.data import encoding as lines_module
from kiban.data.tables import Table, from_frame, read_table
from kiban.errors import DatasetError

ROOT = Path(__file__).parents[2] / "examples" / "data"


def read(folder: Path, data: bytes | str, name: str = "t.csv", **options: Any) -> Table:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return read_table(path, **options)


def refused(folder: Path, data: bytes | str, name: str = "t.csv", **options: Any) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        read(folder, data, name, **options)
    return caught.value


# CSV ---------------------------------------------------------------------------------------------------------------

CELL = st.text(st.characters(codec="utf-8", exclude_characters="\r\0\ufeff"), max_size=8)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_the_csv_module_writes_is_read_back(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    width = data.draw(st.integers(2, 4))
    header = [f"列{i}" for i in range(width)]
    rows = data.draw(st.lists(st.lists(CELL, min_size=width, max_size=width), min_size=1, max_size=6))
    rows.append(["x"] * width)
    kind, delimiter = data.draw(st.sampled_from([(".csv", ","), (".csv", ";"), (".tsv", "\t"), (".txt", "\t")]))
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator=data.draw(st.sampled_from(["\n", "\r\n"]))).writerows(
        [header, *rows]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines_module, "BLOCK_BYTES", data.draw(st.integers(1, 64)))
        path = tmp_path_factory.mktemp("t") / f"t{kind}"
        path.write_bytes(out.getvalue().encode())
        table = read_table(path)
    assert table.columns == tuple(header)
    assert [list(row.values()) for row in table.rows] == [row for row in rows if any(cell.strip() for cell in row)]
    assert not table.bad_rows


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp932", "euc_jp", "utf-16"])
def test_the_example_table_is_the_same_in_every_encoding(encoding: str, tmp_path: Path) -> None:
    text = (ROOT / "debian-ja.csv").read_text("utf-8").encode(encoding, "ignore").decode(encoding)
    expected = list(csv.DictReader(io.StringIO(text, newline="")))
    table = read(tmp_path, text.encode(encoding))
    assert table.rows == expected and table.columns == ("パッケージ", "本文", "区分")
    assert table.lines[:3] == [2, 3, 4]


def test_a_european_table_has_semicolons(tmp_path: Path) -> None:
    table = read(tmp_path, 'text;"price, net"\r\nfoo, bar;1,5\r\n')
    assert table.rows == [{"text": "foo, bar", "price, net": "1,5"}]


def test_cells_of_several_lines_are_one_row(tmp_path: Path) -> None:
    table = read(tmp_path, '本文,区分\r\n"一行目\r\n二行目",甲\r\n次,乙\r\n')
    assert table.rows == [{"本文": "一行目\n二行目", "区分": "甲"}, {"本文": "次", "区分": "乙"}]
    assert table.lines == [2, 4]


def test_blank_lines_and_rows_of_delimiters_are_no_rows(tmp_path: Path) -> None:
    table = read(tmp_path, "\n\na,b\n\n1,2\n,\n  ,\n3,4\n\n")
    assert table.columns == ("a", "b") and table.lines == [5, 8]


def test_columns_without_a_name_get_one(tmp_path: Path) -> None:
    assert read(tmp_path, ",本文,,\n1,あ,,\n").columns == ("column_1", "本文", "column_3", "column_4")


def test_old_mac_lines_are_read(tmp_path: Path) -> None:
    assert read(tmp_path, "a,b\r1,2\r3,4\r").rows == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_ragged_rows_are_told_or_skipped(tmp_path: Path) -> None:
    data = '本文,区分\nあ,1\nい,2,3\nう\n"え,え",4\n'
    error = refused(tmp_path, data)
    assert (error.line, error.offset) == (3, data.encode().index("い".encode())) and "3 cells" in error.why
    table = read(tmp_path, data, on_bad_row="skip")
    assert [row["本文"] for row in table.rows] == ["あ", "え,え"]
    assert [(bad.line, bad.raw) for bad in table.bad_rows] == [(3, "い,2,3"), (4, "う")]


def test_a_stray_quote_spoils_its_own_row_only(tmp_path: Path) -> None:
    rows = [f"{i},本文{i}" for i in range(200)]
    rows[20] = '20,"本文'
    rows[50] = '50,"本"文'
    rows[199] = '199,"本文'
    data = "id,本文\n" + "\n".join(rows) + "\n"
    error = refused(tmp_path, data)
    assert (error.line, error.offset) == (22, data.encode().index(b'20,"'))
    table = read(tmp_path, data, on_bad_row="skip")
    assert [bad.raw for bad in table.bad_rows] == [rows[20], rows[50], rows[199]]
    assert [row["id"] for row in table.rows] == [str(i) for i in range(200) if i not in (20, 50, 199)]


def test_very_many_stray_quotes_are_no_danger(tmp_path: Path) -> None:
    data = "id,text\n" + '"a"b,c\n1,2\n' * 30_000
    table = read(tmp_path, data, on_bad_row="skip")
    assert len(table.rows) == len(table.bad_rows) == 30_000


def test_a_broken_line_spoils_the_row_that_it_belongs_to(tmp_path: Path) -> None:
    data = b'a,b\n1,"x\n' + b"\xff\n" + b'y"\n2,z\n'
    error = refused(tmp_path, data)
    assert (error.line, error.offset) == (3, 9)
    table = read(tmp_path, data, on_bad_row="skip")
    assert table.rows == [{"a": "2", "b": "z"}] and [bad.line for bad in table.bad_rows] == [3]


def test_a_broken_header_is_never_skipped(tmp_path: Path) -> None:
    for header in (b"a,\xff\n", b'a,"b\n', b"a,\0\n"):
        error = refused(tmp_path, header + b"1,2\n3,4\n", on_bad_row="skip")
        assert error.line == 1


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("", "is empty"),
        ("a,b\n", "no usable row"),
        ("a,b\n,\n\n", "no usable row"),
        ("\n\n\n", "no usable row"),
        ("本文,区分,本文\nあ,1,い\n", "two columns have this name"),
    ],
)
def test_a_table_without_use_is_refused(data: str, why: str, tmp_path: Path) -> None:
    assert why in refused(tmp_path, data).why


def test_a_missing_file_and_an_unknown_extension_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(DatasetError, match="save a spreadsheet as CSV"):
        read(tmp_path, "x", "t.xlsx")


def test_a_missing_column_is_answered_with_the_closest(tmp_path: Path) -> None:
    table = read(tmp_path, "text,label\na,b\n")
    assert table.column("label") == ["b"]
    with pytest.raises(DatasetError, match="label"):
        table.column("labels")


def test_the_limit_of_the_csv_module_is_never_lowered(tmp_path: Path) -> None:
    before = csv.field_size_limit(2**40)
    try:
        read(tmp_path, "a,b\n1,2\n")
        assert csv.field_size_limit() == 2**40
    finally:
        csv.field_size_limit(before)


# JSON lines --------------------------------------------------------------------------------------------------------

DEFECTS: dict[str, Callable[[bytes], tuple[bytes, int]]] = {
    # What a good line becomes, and where in it the fault is told.
    "bad UTF-8": lambda line: (line[:12] + b"\xe3\x81" + line[12:], 12),
    "lone surrogate": lambda line: (line.replace(b'"id"', b'"x": ["\\ud83d"], "id"'), 0),
    "escaped NUL": lambda line: (line.replace(b'"id"', b'"x\\u0000": 1, "id"'), 0),
    "NaN": lambda line: (line.replace(b'"id"', b'"x": NaN, "id"'), 0),
    "truncated": lambda line: (line[:-6], -1),
    "two objects": lambda line: (line + b" " + line, -1),
    "NUL": lambda line: (line[:9] + b"\0" + line[9:], 9),
    "an array": lambda line: (b"[" + line + b"]", 0),
    "BOM in the middle": lambda line: (b"\xef\xbb\xbf" + line, -1),
}


def jsonl(num_rows: int, num_defects: int, end: bytes) -> tuple[bytes, dict[int, tuple[int, int, bytes]]]:
    """A file with a BOM in front, and of each bad line its number: (offset, offset of the fault or -1, raw)."""
    generator = random.Random(0)
    places = sorted(generator.sample(range(2, num_rows), num_defects))
    kinds = list(DEFECTS.values())
    bad: dict[int, tuple[int, int, bytes]] = {}
    parts = [b"\xef\xbb\xbf"]
    offset = 3
    wanted = set(places)
    for number in range(1, num_rows + 1):
        line = f'{{"本文": "問い合わせ {number}", "id": {number}}}'.encode()
        if number in wanted:
            line, at = kinds[len(bad) % len(kinds)](line)
            bad[number] = (offset, offset + at if at >= 0 else -1, line)
        parts += [line, end]
        offset += len(line) + len(end)
    return b"".join(parts), bad


def check_jsonl(folder: Path, num_rows: int, end: bytes) -> None:
    data, bad = jsonl(num_rows, 100, end)
    first = min(bad)
    error = refused(folder, data, "t.jsonl")
    assert error.line == first and error.offset == bad[first][1]
    (folder / "t.jsonl").write_bytes(data)
    table = read_table(folder / "t.jsonl", on_bad_row="skip", quarantine=folder / "q" / "bad.jsonl")
    assert [row["id"] for row in table.rows] == [i for i in range(1, num_rows + 1) if i not in bad]
    assert table.lines == [row["id"] for row in table.rows] and table.columns == ("本文", "id")
    kept = [json.loads(line) for line in (folder / "q" / "bad.jsonl").read_text("utf-8").splitlines()]
    assert [row["line"] for row in kept] == sorted(bad)
    for row in kept:
        offset, at, raw = bad[row["line"]]
        if at >= 0:
            assert row["offset"] == at
        else:
            assert offset <= row["offset"] <= offset + len(raw)
        assert row["why"]
        shown = raw.decode("utf-8", "backslashreplace").replace("\0", "\\0")
        assert row["raw"] == shown


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_a_hundred_defects_in_many_lines_are_all_found(end: bytes, tmp_path: Path) -> None:
    check_jsonl(tmp_path, 20_000, end)


@pytest.mark.slow
def test_a_hundred_defects_in_a_million_lines_are_all_found(tmp_path: Path) -> None:
    check_jsonl(tmp_path, 1_000_000, b"\n")


@pytest.mark.parametrize("name", DEFECTS)
def test_each_defect_is_told_with_its_line_and_byte(name: str, tmp_path: Path) -> None:
    good = '{"本文": "あ", "id": 1}'.encode()
    bad, at = DEFECTS[name](good)
    error = refused(tmp_path, b"\n".join([good, bad, good]), "t.jsonl")
    assert error.line == 2 and error.offset is not None
    start = len(good) + 1
    assert error.offset == start + at if at >= 0 else start <= error.offset <= start + len(bad)


def test_the_fault_of_two_objects_is_the_second(tmp_path: Path) -> None:
    data = '{"あ": 1} {"あ": 2}\n'
    assert refused(tmp_path, data, "t.jsonl").offset == data.encode().rindex(b"{")


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 100_000, "Infinity", "-Infinity", "nul", "'a'", '"a\tb"'])
def test_what_is_not_json_is_a_bad_row(value: str, tmp_path: Path) -> None:
    assert refused(tmp_path, '{"a": 1}\n{"a": ' + value + "}\n", "t.jsonl").line == 2


def test_paired_surrogates_are_good(tmp_path: Path) -> None:
    assert read(tmp_path, '{"a": "\\ud83d\\ude00 \\u3042"}\n', "t.jsonl").rows == [{"a": "😀 あ"}]


def test_columns_of_json_lines_are_the_union(tmp_path: Path) -> None:
    table = read(tmp_path, '{"a": 1}\n\n{"b": [2]}\n', "t.ndjson")
    assert table.columns == ("a", "b") and table.lines == [1, 3]
    assert table.column("a") == [1, None] and table.column("b") == [None, [2]]


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv"])
def test_a_line_over_the_limit_is_skipped_in_bounded_memory(name: str, tmp_path: Path) -> None:
    def good(i: int) -> bytes:
        return b'{"a": "%d", "b": "x"}\n' % i if name == "t.jsonl" else b"%d,x\n" % i

    with (tmp_path / name).open("wb") as file:
        file.write((b"" if name == "t.jsonl" else b"a,b\n") + good(1))
        file.write(b'{"a": "' if name == "t.jsonl" else b"2,")
        for _ in range(80):
            file.write(b"x" * 2**20)
        file.write(b'"}\n' if name == "t.jsonl" else b"\n")
        file.write(good(3) + good(4))
    tracemalloc.start()
    try:
        table = read_table(tmp_path / name, on_bad_row="skip")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [row["a"] for row in table.rows] == ["1", "3", "4"]
    assert len(table.bad_rows) == 1 and "16 MiB" in table.bad_rows[0].why
    assert peak < 60 * 2**20


def test_a_quote_that_never_closes_keeps_memory_bounded(tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("wb") as file:
        file.write(b'a,b\n1,"open\n')
        for _ in range(40):
            file.write((b"2," + b"x" * 65_000 + b"\n") * 16)
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError) as caught:
            read_table(tmp_path / "t.csv")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.line == 2 and peak < 100 * 2**20


def test_the_quarantine_is_written_even_if_no_row_is_left(tmp_path: Path) -> None:
    quarantine = tmp_path / "q.jsonl"
    refused(tmp_path, "nope\n", "t.jsonl", on_bad_row="skip", quarantine=quarantine)
    assert json.loads(quarantine.read_text("utf-8"))["raw"] == "nope"


def test_a_bad_row_is_quarantined_whole(tmp_path: Path) -> None:
    row = "x" * 50_000 + ",1,2"
    quarantine = tmp_path / "q.jsonl"
    read(tmp_path, f"a,b\n{row}\n1,2\n", on_bad_row="skip", quarantine=quarantine)
    assert json.loads(quarantine.read_text("utf-8"))["raw"] == row


# Parquet and frames ------------------------------------------------------------------------------------------------


def parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    rows = [{"本文": f"問い合わせ{i}", "点": i / 2, "印": ["甲", "乙"], "元": {"深": {"い": i}}} for i in range(50)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return rows


def test_parquet_is_read_with_nested_columns(tmp_path: Path) -> None:
    folder = tmp_path / "year=2026"
    folder.mkdir()
    rows = parquet(folder / "t.parquet")
    table = read_table(folder / "t.parquet")
    assert table.rows == rows and table.columns == ("本文", "点", "印", "元") and table.lines[-1] == 50


def test_missing_values_of_parquet_are_none(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {"a": ["x", None, "z"], "b": [1.0, float("nan"), None]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").column("b") == [1.0, None, None]


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "t.parquet")
    data = (tmp_path / "t.parquet").read_bytes()
    for size in [*range(0, len(data) - 1, 97), len(data) - 1]:
        error = refused(tmp_path, data[:size], "t.parquet")
        assert "Parquet" in error.why or error.why == "is empty"


def test_a_parquet_file_without_rows_or_with_twins_is_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"a": pyarrow.array([], pyarrow.string())}), tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match="no usable row"):
        read_table(tmp_path / "t.parquet")
    twins = pyarrow.Table.from_arrays([pyarrow.array(["x"]), pyarrow.array(["y"])], names=["a", "a"])
    pyarrow.parquet.write_table(twins, tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match="two columns"):
        read_table(tmp_path / "t.parquet")


def test_a_polars_frame_is_a_table() -> None:
    import polars

    table = from_frame(polars.DataFrame({"本文": ["あ", None], "点": [float("nan"), 1.0], "印": [["x"], []]}))
    assert table.columns == ("本文", "点", "印") and table.lines == [1, 2]
    assert table.rows == [{"本文": "あ", "点": None, "印": ["x"]}, {"本文": None, "点": 1.0, "印": []}]


def test_dicts_are_a_table_with_the_union_of_their_keys() -> None:
    given = [{"a": 1}, {"a": float("nan"), "b": "x"}]
    table = from_frame(given)
    assert table.columns == ("a", "b") and table.column("a") == [1, None] and table.column("b") == [None, "x"]
    assert given[1]["a"] != given[1]["a"], "the caller's rows are left as they were"


@pytest.mark.parametrize("frame", [3, "abc", [1, 2], {"a": [1]}, None, [{"a": 1}, 2]])
def test_what_is_no_table_is_refused(frame: Any) -> None:
    with pytest.raises(DatasetError, match="is not a table"):
        from_frame(frame)


def test_no_dicts_are_no_table() -> None:
    with pytest.raises(DatasetError, match="no row"):
        from_frame([])
