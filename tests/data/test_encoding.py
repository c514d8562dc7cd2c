"""Encodings of Japanese tables, and lines with their places in bytes."""

from __future__ import annotations

import csv
import random
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiban.data import encoding as module
from kiban.data.encoding import detect_encoding, text_lines

ROOT = Path(__file__).parents[2] / "examples" / "data"
ENCODINGS = ("utf-8", "utf-8-sig", "cp932", "euc_jp", "utf-16-le", "utf-16-be")
MARKS = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}


def descriptions() -> list[str]:
    with (ROOT / "debian-ja.csv").open(encoding="utf-8") as file:
        return [row["本文"] for row in csv.DictReader(file)]


def encoded(text: str, encoding: str) -> bytes:
    """The bytes of a file, without what the encoding lacks."""
    return MARKS.get(encoding, b"") + text.encode(encoding, "ignore")


def detected(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return detect_encoding(path)


def half_width(text: str) -> str:
    """Kana as half-width katakana."""
    table = {unicodedata.normalize("NFKC", chr(c)): chr(c) for c in range(0xFF61, 0xFF9E)}
    decomposed = unicodedata.normalize("NFD", "".join(chr(ord(c) + 0x60) if "ぁ" <= c <= "ん" else c for c in text))
    return "".join(table.get(c, {"\u3099": "ﾞ", "\u309a": "ﾟ"}.get(c, c)) for c in decomposed)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_example_table_is_recognised_in_every_encoding(encoding: str, tmp_path: Path) -> None:
    text = (ROOT / "debian-ja.csv").read_text("utf-8")
    assert detected(tmp_path / "t.csv", encoded(text, encoding)) == encoding


@pytest.mark.parametrize("num_rows", [1, 2, 5])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_few_rows_suffice(encoding: str, num_rows: int, tmp_path: Path) -> None:
    rows, draw = descriptions(), random.Random(num_rows)
    for _ in range(40):
        text = "id,本文\n" + "".join(f"{i},{row}\n" for i, row in enumerate(draw.sample(rows, num_rows)))
        assert detected(tmp_path / "t.csv", encoded(text, encoding)) == encoding, text


@pytest.mark.parametrize("encoding", ["utf-8", "cp932", "euc_jp"])
@pytest.mark.parametrize(
    "pattern", [r"[ぁ-ん]{3,}", r"[ァ-ヶー]{3,}", r"[一-龠]{3,}"], ids=["hiragana", "katakana", "kanji"]
)
def test_single_words_suffice(encoding: str, pattern: str, tmp_path: Path) -> None:
    words = [word for row in descriptions() for word in re.findall(pattern, row)]
    draw, wrong = random.Random(0), 0
    for _ in range(100):
        text = "id,word\n" + "".join(f"{i},{word}\n" for i, word in enumerate(draw.sample(words, 3)))
        wrong += detected(tmp_path / "t.csv", encoded(text, encoding)) != encoding
    assert wrong == 0


def test_half_width_kana_of_bank_data_are_cp932(tmp_path: Path) -> None:
    names = [half_width(word) for row in descriptions() for word in re.findall(r"[ァ-ヶー]{3,}", row)]
    draw = random.Random(0)
    for _ in range(50):
        text = "".join(f"{i},{name}\n" for i, name in enumerate(draw.sample(names, 10)))
        assert detected(tmp_path / "t.csv", encoded(text, "cp932")) == "cp932", text


@pytest.mark.parametrize("text", ["髙橋,①\n", "﨑,㈱\n", "全角～チルダ－\n", "№,㍉\n", "纊褜鍈\n", "㍻\n", "髙\n"])
def test_characters_of_nec_and_ibm_are_cp932(text: str, tmp_path: Path) -> None:
    assert detected(tmp_path / "t.csv", text.encode("cp932")) == "cp932"
    assert [line.text for line in text_lines(tmp_path / "t.csv", "cp932")] == [text.strip()]


@pytest.mark.parametrize("encoding", ["utf-8", "cp932", "euc_jp"])
def test_a_few_japanese_lines_behind_megabytes_of_ascii_decide(encoding: str, tmp_path: Path) -> None:
    text = "1,plain text of no encoding\n" * 60_000 + "2,お問い合わせありがとうございます\n3,返品したい\n"
    assert detected(tmp_path / "t.csv", text.encode(encoding)) == encoding


def test_ascii_is_utf8(tmp_path: Path) -> None:
    assert detected(tmp_path / "t.csv", b"a,b\n1,2\n") == "utf-8"


def test_utf8_with_many_broken_lines_stays_utf8(tmp_path: Path) -> None:
    lines = [f"{i},{row}\n".encode() for i, row in enumerate(descriptions()[:200])]
    for i in range(0, 200, 3):
        lines[i] = lines[i][:20] + b"\x83\xff" + lines[i][20:]
    assert detected(tmp_path / "t.csv", b"".join(lines)) == "utf-8"


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_western_text_is_not_taken_for_japanese(encoding: str, tmp_path: Path) -> None:
    text = "Straße,Müller\ncafé,garçon\nnaïve,Übung\nÉtat,déjà\nseñor,niño\n"
    assert detected(tmp_path / "t.csv", text.encode(encoding)) == "utf-8"


def lines_of(path: Path, data: bytes, encoding: str = "utf-8") -> list[module.Line]:
    path.write_bytes(data)
    return list(text_lines(path, encoding))


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0\ufeff"), max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(TEXT, max_size=12),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"]),
    block=st.integers(1, 40),
)
def test_lines_and_offsets_are_exact_wherever_blocks_end(
    rows: list[str], end: str, encoding: str, block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = encoded("".join(row + end for row in rows), encoding)
    codec = encoding.removesuffix("-sig")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_BYTES", block)
        found = lines_of(tmp_path_factory.mktemp("t") / "t.csv", data, encoding)
    assert [line.text for line in found] == rows
    assert not any(line.why for line in found)
    assert [line.number for line in found] == list(range(1, len(rows) + 1))
    for line in found:
        assert data[line.offset :].decode(codec).startswith(line.text + end)
        assert line.offset == len(data) - len("".join(row + end for row in rows[line.number - 1 :]).encode(codec))


def test_the_last_line_needs_no_end(tmp_path: Path) -> None:
    assert [line.text for line in lines_of(tmp_path / "t", "あ\nい".encode())] == ["あ", "い"]
    assert [line.text for line in lines_of(tmp_path / "t", "あ\nい\n".encode())] == ["あ", "い"]
    assert [line.text for line in lines_of(tmp_path / "t", "あ\n\nい\n".encode())] == ["あ", "", "い"]
    assert lines_of(tmp_path / "t", b"") == []


def test_a_defect_is_placed_at_its_byte(tmp_path: Path) -> None:
    data = "あ\n".encode() + b"ok \xff bad\n" + "い\0う\n".encode() + b"end\n"
    good, bad, nul, end = lines_of(tmp_path / "t", data)
    assert not good.why and not end.why
    assert (bad.number, bad.offset, bad.at) == (2, 4, 7) and "utf-8" in bad.why
    assert (nul.number, nul.offset, nul.at) == (3, 13, 16) and "NUL" in nul.why
    assert data[bad.at] == 0xFF and data[nul.at] == 0


@pytest.mark.parametrize("encoding", ["utf-8", "cp932", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("length", [101, 250, 2000])
def test_lines_behind_a_too_long_one_survive(
    encoding: str, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 100)
    monkeypatch.setattr(module, "BLOCK_BYTES", 64)
    monkeypatch.setattr(module, "SHOWN", 10)
    rows = ["初めの行", "長" * (length // 2) + "x" * (length % 2 + length), "次の行", "", "最後"]
    data = encoded("\n".join(rows) + "\n", encoding)
    found = lines_of(tmp_path / "t", data, encoding)
    assert [line.text for i, line in enumerate(found) if i != 1] == [rows[0], *rows[2:]]
    assert "longer" in found[1].why and found[1].at == found[1].offset and len(found[1].text) <= 40
    for line in found[2:]:
        assert data[line.offset :].decode(encoding).startswith(rows[line.number - 1] + "\n")


def test_a_too_long_last_line_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 100)
    monkeypatch.setattr(module, "BLOCK_BYTES", 64)
    found = lines_of(tmp_path / "t", b"a\n" + b"x" * 1000)
    assert [(line.number, bool(line.why)) for line in found] == [(1, False), (2, True)]


def test_half_a_character_of_utf16_is_told(tmp_path: Path) -> None:
    whole = encoded("名前\n山田\n", "utf-16-le")
    odd = lines_of(tmp_path / "t", whole + b"\x42", "utf-16-le")
    assert [bool(line.why) for line in odd] == [False, False, True] and odd[2].at == len(whole)
    lone = MARKS["utf-16-le"] + "a\nb\ud83dc\n𠮷\n".encode("utf-16-le", "surrogatepass")
    first, broken, last = lines_of(tmp_path / "t", lone, "utf-16-le")
    assert (first.text, last.text, last.why) == ("a", "𠮷", "")
    assert broken.why and lone[broken.at : broken.at + 2] == "\ud83d".encode("utf-16-le", "surrogatepass")
    pair_cut_short = MARKS["utf-16-le"] + "a\n𠮷".encode("utf-16-le")[:-1]
    assert lines_of(tmp_path / "t", pair_cut_short, "utf-16-le")[1].why
