"""Texts from files and folders: what is read, what is told about what cannot be, and how little memory it takes."""

from __future__ import annotations

import csv
import gzip
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiban.data import corpus, sources
from kiban.data.corpus import CorpusReader, Text, read_texts
from kiban.data.seen import SeenHashes
from kiban.errors import DatasetError, LimitError

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"


def zstd(data: bytes) -> bytes:
    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}


def descriptions(number: int = 50) -> list[str]:
    with (EXAMPLES / "debian-ja.csv").open(encoding="utf-8") as file:
        return [row["本文"] for row in csv.DictReader(file)][:number]


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def texts(path: Path | list[Path], **options: Any) -> list[str]:
    return [text.text for text in read_texts(path, **options)]


def refused(path: Path | list[Path], **options: Any) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        texts(path, **options)
    return caught.value


def quarantined(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# Formats -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("kind", [".jsonl", ".ndjson", ".txt", ".md", ".JSONL"])
def test_every_text_format_is_read_packed_or_not(kind: str, packing: str, tmp_path: Path) -> None:
    rows = descriptions()
    path = tmp_path / f"文書{kind}{packing}"
    lines = kind.lower() in (".jsonl", ".ndjson")
    path.write_bytes(PACK[packing](jsonl([{"text": row} for row in rows]) if lines else "\n\n".join(rows).encode()))
    found = list(read_texts(path))
    if lines:
        assert [text.text for text in found] == rows
        assert found[4] == Text(f"{path.name}:5", rows[4], path, 5)
    else:
        assert found == [Text(f"{path.name}:1", "\n\n".join(rows), path, 1)]


def test_parquet_is_read_whatever_its_kind_of_strings(tmp_path: Path) -> None:
    rows = descriptions(200)
    kinds = [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())]
    for i, kind in enumerate(kinds):
        columns = {"n": list(range(200)), "本文": pyarrow.array(rows).cast(kind), "id": [f"d{n}" for n in range(200)]}
        path = tmp_path / f"{i}.parquet"
        pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=70)
        found = list(read_texts(path, field="本文"))
        assert [text.text for text in found] == rows
        assert found[199] == Text("d199", rows[199], path, 200)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp932", "euc_jp", "utf-16"])
@pytest.mark.parametrize("packing", PACK)
def test_plain_text_may_be_in_any_japanese_encoding(encoding: str, packing: str, tmp_path: Path) -> None:
    text = "\n".join(descriptions()).encode(encoding, "ignore").decode(encoding)
    (tmp_path / f"t.txt{packing}").write_bytes(PACK[packing](text.encode(encoding)))
    assert texts(tmp_path) == [text]


@pytest.mark.parametrize("data", [b"a", b"ab", b"abc", "あ".encode(), b"\xef\xbb\xbfa"])
@pytest.mark.parametrize("packing", PACK)
def test_the_shortest_files(data: bytes, packing: str, tmp_path: Path) -> None:
    (tmp_path / f"t.txt{packing}").write_bytes(PACK[packing](data))
    assert texts(tmp_path) == [data.decode("utf-8-sig")]


def test_members_of_a_gzip_and_frames_of_a_zstd_file_follow_each_other(tmp_path: Path) -> None:
    parts = [jsonl([{"text": text}]) for text in descriptions(3)]
    for name, pack in (("a.jsonl.gz", gzip.compress), ("b.jsonl.zst", zstd)):
        (tmp_path / name).write_bytes(b"".join(map(pack, parts)))
    assert texts(tmp_path) == descriptions(3) * 2


def test_a_large_plain_file_is_cut_at_blank_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "SPLIT_CHARACTERS", 3000)
    rows = [f"{i}番\n{text}" for i, text in enumerate(descriptions())]
    (tmp_path / "t.txt").write_text("\n" + "\n\n \n".join(rows) + "\n", "utf-8")
    found = list(read_texts(tmp_path))
    assert [text.text.rstrip() for text in found] == rows
    assert [text.line for text in found] == [2 + 4 * i for i in range(50)]


def test_a_large_plain_file_without_blank_lines_is_cut_at_line_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "SPLIT_CHARACTERS", 3000)
    rows = descriptions()
    (tmp_path / "t.txt").write_text("\n".join(rows), "utf-8")
    found = texts(tmp_path)
    assert len(found) > 1 and max(map(len, found)) < 3000 + 2 * max(map(len, rows))
    assert "\n".join(found).split("\n") == rows


# Files and folders ---------------------------------------------------------------------------------------------------


def test_folders_are_read_to_the_bottom_in_order(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "b/10.txt", "a.txt", "c/d/e.md", ".hidden/x.txt", "b/.x.txt", "b/notes.docx", "c/x.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jsonl([{"text": name}]) if name.endswith("jsonl") else name.encode())
    assert texts(tmp_path) == ["a.txt", "b/10.txt", "b/2.jsonl", "c/d/e.md"]
    assert [text.id for text in read_texts(tmp_path)] == ["a.txt:1", "b/10.txt:1", "b/2.jsonl:1", "c/d/e.md:1"]
    assert texts([tmp_path / "c", tmp_path / "a.txt", tmp_path]) == ["c/d/e.md", "a.txt", "b/10.txt", "b/2.jsonl"]


def test_of_a_folder_that_kiban_wrote_only_the_documents_are_read(tmp_path: Path) -> None:
    (tmp_path / "kiban.json").write_text('{"kind": "corpus"}', "utf-8")
    for name in ("part-00000.jsonl", "train/part-00000.jsonl", "dropped-samples.jsonl", "quarantine.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jsonl([{"id": name, "text": name}]))
    assert [text.id for text in read_texts(tmp_path)] == ["part-00000.jsonl", "train/part-00000.jsonl"]


def test_what_is_not_there_or_not_read_is_told_at_once(tmp_path: Path) -> None:
    assert "no such file" in str(refused(tmp_path / "x.jsonl"))
    assert "no file of text" in str(refused(tmp_path))
    (tmp_path / "x.docx").write_bytes(b"x")
    assert ".jsonl" in str(refused(tmp_path / "x.docx"))
    assert "no file was given" in str(refused([]))
    (tmp_path / "p.parquet.gz").write_bytes(b"x")
    assert ".parquet" in str(refused(tmp_path / "p.parquet.gz"))


def test_the_first_call_raises_before_anything_is_read_for_use(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": 1}\n')
    with pytest.raises(DatasetError):
        read_texts(tmp_path)


def test_ids_are_the_rows_own_or_tell_the_place(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "id": "x"},
        {"text": "b", "id": 7},
        {"text": "c"},
        {"text": "d", "id": None},
        {"text": "e", "id": ""},
    ]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    assert [text.id for text in read_texts(tmp_path)] == ["x", "7", "a.jsonl:3", "a.jsonl:4", "a.jsonl:5"]
    error = refused(tmp_path, id_field="id")
    assert error.line == 3 and "'id'" in error.why


def test_progress_reaches_the_sum_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(jsonl([{"text": text} for text in descriptions()])))
    (tmp_path / "b.txt").write_text("b", "utf-8")
    table = pyarrow.table({"text": descriptions()})
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
    reader, seen = CorpusReader(tmp_path), []
    for _ in reader:
        seen.append(reader.bytes_done)
    assert seen == sorted(seen) and seen[0] > 0 and reader.bytes_done == reader.bytes_total
    assert reader.documents == 101
    told: list[tuple[str, int, int | None]] = []
    list(read_texts(tmp_path, progress=lambda *now: told.append(now)))
    assert [done for _, done, _ in told] == seen and {total for *_, total in told} == {reader.bytes_total}


# Bad rows (reliability, cases 7 and 8) -------------------------------------------------------------------------------

DEFECTS: list[bytes] = [
    b'{"text": "\xff\xfe"}',
    b'{"text": "\\ud800"}',
    b'{"text": NaN}',
    b'{"text": "a',
    b'{"text": "a"} {"text": "b"}',
    b'\xef\xbb\xbf{"text": "a"}',
    b'{"text": "a\0"}',
    b'{"text": "a\\u0000"}',
    b'["text"]',
    b'{"text": null}',
    b'{"text": 5}',
    b'{"txt": "a"}',
    b"{" * 200_000,
    b'{"text": ' + b"9" * 5000 + b"}",
]


def defective(path: Path, num_lines: int, num_defects: int) -> list[int]:
    """A file with defects at places that are returned; some good lines end in CRLF."""
    draw = random.Random(0)
    places = sorted(draw.sample(range(1, num_lines), num_defects))
    bad = set(places)
    with path.open("wb") as file:
        for i in range(num_lines):
            if i in bad:
                file.write(DEFECTS[i % len(DEFECTS)] + b"\n")
            else:
                file.write(json.dumps({"text": f"{i} 番目の行です"}).encode() + (b"\r\n" if i % 7 == 0 else b"\n"))
        file.write(b'{"text": "cut o')  # the tail
    return [*places, num_lines]


def check_defects(folder: Path, num_lines: int, num_defects: int) -> None:
    path, quarantine = folder / "a.jsonl", folder / "q" / "quarantine.jsonl"
    bad = defective(path, num_lines, num_defects)
    error = refused(path)
    with path.open("rb") as file:
        begin = sum(len(next(file)) for _ in range(bad[0]))
        end = begin + len(next(file))
    assert error.line == bad[0] + 1 and error.offset is not None and begin <= error.offset < end
    assert "--on-bad-row skip" in error.hint
    reader = CorpusReader(path, on_bad_row="skip", quarantine=quarantine)
    kept = sum(text.text.endswith("番目の行です") for text in reader)
    assert kept == reader.documents == num_lines + 1 - len(bad) and reader.bad_rows == len(bad)
    rows = quarantined(quarantine)
    assert [row["line"] for row in rows] == [i + 1 for i in bad]
    assert all(row["why"] and row["source"] == str(path) for row in rows)


def test_defects_are_told_or_put_aside(tmp_path: Path) -> None:
    check_defects(tmp_path, 3000, 100)


@pytest.mark.slow
def test_a_hundred_defects_in_a_million_lines(tmp_path: Path) -> None:
    check_defects(tmp_path, 1_000_000, 100)


@pytest.mark.parametrize("defect", DEFECTS, ids=range(len(DEFECTS)))
def test_every_defect_is_one(defect: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + defect + b"\n" + b'{"text": "b"}\n')
    assert refused(tmp_path).line == 2
    assert texts(tmp_path, on_bad_row="skip") == ["a", "b"]


def check_long_line(folder: Path, size: int) -> None:
    path = folder / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "a"}\n{"text": "')
        for _ in range(size >> 20):
            file.write(b"x" * 2**20)
        file.write(b'"}\n{"text": "b"}\n')
    assert "16 MiB" in refused(path).why
    tracemalloc.start()
    assert texts(path, on_bad_row="skip") == ["a", "b"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120 * 2**20
    plain = path.rename(folder / "a.txt")
    assert "16 MiB" in refused(plain).why


def test_a_line_beyond_the_limit(tmp_path: Path) -> None:
    check_long_line(tmp_path, 40 * 2**20)


@pytest.mark.slow
def test_a_line_of_a_gigabyte(tmp_path: Path) -> None:
    check_long_line(tmp_path, 2**30)


def test_files_without_a_usable_row(tmp_path: Path) -> None:
    for name, data, why in (
        ("empty.jsonl", b"", "is empty"),
        ("blank.jsonl", b"\n \n", "holds no row"),
        ("blank.txt", b" \n", "holds no row"),
        ("bad.jsonl", b"{}\n[]\n", "has no 'text'"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        assert why in refused(path).why
        error = refused(path, on_bad_row="skip")
        assert error.why == "holds no usable row" and why in error.hint


def test_wrong_columns_name_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"texts": "a", "title": "b"}]))
    assert "'texts'" in str(refused(tmp_path))
    pyarrow.parquet.write_table(pyarrow.table({"texts": ["a"], "n": [1]}), tmp_path / "b.parquet")
    assert "'texts'" in str(refused(tmp_path / "b.parquet"))
    error = refused(tmp_path / "b.parquet", field="n")
    assert "int64" in error.why and error.field == "n"


def check_changing_type(path: Path, at: int) -> None:
    with path.open("wb") as file:
        for i in range(at):
            file.write(b'{"text": "%d"}\n' % i)
        file.write(b'{"text": 5}\n')
    error = refused(path)
    assert error.line == at + 1 and error.offset == path.stat().st_size - 12 and "'text' is a int" in error.why


def test_a_type_that_changes(tmp_path: Path) -> None:
    check_changing_type(tmp_path / "a.jsonl", 900)


@pytest.mark.slow
def test_a_type_that_changes_at_row_900_thousand(tmp_path: Path) -> None:
    check_changing_type(tmp_path / "a.jsonl", 900_000)


def test_ids_that_should_differ_must(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"id": f"x{i % 40}", "text": str(i)} for i in range(42)]))
    error = refused(tmp_path, id_field="id")
    assert error.line == 41 and "'x0' stands twice" in error.why
    found = texts(tmp_path, id_field="id", on_bad_row="skip", quarantine=tmp_path / "q.txt")
    assert found == [str(i) for i in range(40)] and [row["raw"] for row in quarantined(tmp_path / "q.txt")] == [
        "40",
        "41",
    ]
    assert len(texts(tmp_path / "a.jsonl")) == 42


def test_a_broken_line_spoils_its_plain_document_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("あ\n".encode() + b"\xff\xff\n" + "い\n".encode())
    (tmp_path / "b.txt").write_text("う", "utf-8")
    error = refused(tmp_path)
    assert (error.line, error.offset) == (2, 4) and error.what.endswith("a.txt")
    assert texts(tmp_path, on_bad_row="skip", quarantine=tmp_path / "q.jsonl") == ["う"]
    assert quarantined(tmp_path / "q.jsonl")[0]["line"] == 2


def test_parquet_rows_that_are_no_text(tmp_path: Path) -> None:
    raw = pyarrow.array([b"a", b"\xff\xfe", None, b"\0", "良".encode()], pyarrow.binary())
    column = pyarrow.Array.from_buffers(pyarrow.string(), 5, raw.buffers(), raw.null_count)
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), path)
    assert refused(path).line == 2
    assert texts(path, on_bad_row="skip", quarantine=tmp_path / "q.jsonl") == ["a", "良"]
    assert [row["line"] for row in quarantined(tmp_path / "q.jsonl")] == [2, 3, 4]


@pytest.mark.parametrize("kind", [".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_files_cut_at_any_place(kind: str, tmp_path: Path) -> None:
    rows, path = descriptions(20), tmp_path / f"a{kind}"
    if kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": rows}), path)
    else:
        path.write_bytes(PACK[kind[6:]](jsonl([{"text": row} for row in rows])))
    whole = path.read_bytes()
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "b"}\n')
    for size in (*range(1, 40), *range(40, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:size])
        assert refused(path).what == str(path)
        found = texts(tmp_path, on_bad_row="skip")
        assert found[-1] == "b" and found[:-1] == rows[: len(found) - 1]


@pytest.mark.parametrize("kind", [".gz", ".zst", ".parquet"])
def test_flipped_bytes_raise_nothing_else(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.jsonl{kind}" if kind != ".parquet" else tmp_path / "a.parquet"
    rows = descriptions(20)
    if kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": rows}), path)
    else:
        path.write_bytes(PACK[kind](jsonl([{"text": row} for row in rows])))
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(150):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            assert all(isinstance(text, str) for text in texts(path))
        except (DatasetError, LimitError) as error:
            assert error.what == str(path)


# Bombs and memory (case 9) -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [".jsonl.gz", ".jsonl.zst", ".txt.gz", ".txt.zst"])
def test_a_bomb_is_stopped(kind: str, tmp_path: Path) -> None:
    path, line = tmp_path / f"a{kind}", b'{"text": "' + b"a" * 1000 + b'"}\n'
    path.write_bytes(PACK[path.suffix](line * 100_000))
    assert path.stat().st_size < len(line) * 100_000 // 300
    for mode in ("stop", "skip"):
        with pytest.raises(LimitError, match="250 times"):
            texts(path, on_bad_row=mode)


def test_a_parquet_bomb_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "FREE_BYTES", 2**22)
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x" * 2000] * 200_000}), path, compression="zstd")
    assert path.stat().st_size < 2000 * 200_000 / 500
    with pytest.raises(LimitError, match="250 times"):
        texts(path)


def test_repetitive_text_that_is_no_bomb_is_read(tmp_path: Path) -> None:
    rows = [{"text": f"{i} 同じような行が続く記録です。" + "状態は正常です。" * 5} for i in range(5000)]
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(jsonl(rows)))
    assert len(texts(tmp_path)) == 5000


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "txt", "parquet"])
def test_memory_does_not_grow_with_the_file(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "SPLIT_CHARACTERS", 100_000)
    path, draw = tmp_path / f"a.{kind}", random.Random(0)
    rows = ["".join(chr(draw.randrange(0x4E00, 0x9FA0)) for _ in range(200)) + "。" * 200 for _ in range(10_000)]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": rows}), path, row_group_size=500, use_dictionary=False)
    elif kind == "txt":
        path.write_text("\n\n".join(rows), "utf-8")
    else:
        path.write_bytes(PACK[kind[5:]](jsonl([{"text": row} for row in rows])))
    del rows
    tracemalloc.start()
    assert sum(1 for _ in read_texts(path)) == 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 2**20, f"{peak / 2**20:.1f} MiB for 12 MB"


def test_limits_are_those_of_real_text() -> None:
    """The best that gzip and zstd make of real text is far from the limit, and that of bombs is far beyond it."""
    data = (EXAMPLES / "debian-ja.csv").read_bytes()
    assert max(len(data) / len(pack(data)) for pack in PACK.values()) < sources.MAX_RATIO / 20


# Ids that were seen --------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 50), max_size=300))
def test_a_set_of_hashes_is_a_set(values: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SeenHashes, "BUFFER", 8)
        seen, expected = SeenHashes(), set[int]()
        for value in values:
            assert seen.add(value) == (value not in expected)
            expected.add(value)
    assert len(seen.sorted) <= 6
