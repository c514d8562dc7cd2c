"""Which encoding a text file is in, and its lines, each with its place in bytes.

Japanese tables come as UTF-8, as cp932 (Excel), as EUC-JP (older systems) and as UTF-16 (Excel's "Unicode text").
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MAX_LINE_BYTES = 16 * 2**20
BLOCK_BYTES = 2**20
SAMPLE_BYTES = 256 * 2**10
SHOWN_BYTES = 1000  # of a line that is too long to keep
BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# Kana, kanji, full-width forms and the symbols that Japanese text uses; half-width kana count half, for EUC-JP read as
# cp932 is full of them.
JAPANESE = re.compile(
    r"[\u3000-\u30ff\u3200-\u33ff\u4e00-\u9fff\uf900-\ufaff\uff01-\uff60\uffe0-\uffe6\u2010-\u27bf×÷°±´¨]"
)
HALF_WIDTH = re.compile(r"[\uff61-\uff9f]")
NOT_ASCII = re.compile(r"[^\x00-\x7f]")
LONE_KANJI = re.compile(r"(?<=[A-Za-z])[\u4e00-\u9fff](?=[A-Za-z])")  # an accented letter of a Western encoding
SURROGATE = re.compile(r"[\ud800-\udfff]")


class Line(NamedTuple):
    """A line without its end. number counts from 1, offset is in bytes from 0; why says what is wrong with it."""

    number: int
    offset: int
    text: str
    why: str = ""
    at: int = 0  # offset in bytes of what is wrong

    def byte_of(self, place: int) -> int:
        """Offset in the file of a character of a UTF-8 line."""
        return self.offset + len(self.text[:place].encode("utf-8", "surrogatepass"))


def detect_encoding(path: Path) -> str:
    """utf-8, utf-8-sig, utf-16-le, utf-16-be, cp932 or euc_jp: by byte order mark, else by what decodes to Japanese text.

    A file that is mostly UTF-8 is UTF-8 even where lines are broken, so that the broken lines are told.
    """
    with path.open("rb") as file:
        start = file.read(4)
    for mark, name in BOMS:
        if start.startswith(mark):
            return name
    sample = _lines_beyond_ascii(path)
    if not sample or 2 * sum(_decoded(raw, "utf-8") is not None for raw in sample) >= len(sample):
        return "utf-8"
    scores = {name: _japanese_share(sample, name) for name in ("cp932", "euc_jp")}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] >= 0.6 else "utf-8"


def _lines_beyond_ascii(path: Path) -> list[bytes]:
    """The first lines that are not ASCII, up to SAMPLE_BYTES of them."""
    sample, size = [], 0
    for _, _, raw, _ in _raw_lines(path):
        if not raw.isascii():
            sample.append(raw)
            size += len(raw)
            if size > SAMPLE_BYTES:
                break
    return sample


def _decoded(raw: bytes, encoding: str) -> str | None:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        return None


def _japanese_share(sample: list[bytes], encoding: str) -> float:
    """Share of the characters beyond ASCII that belong in Japanese text, over the lines; a broken line has none."""
    good = total = 0.0
    for raw in sample:
        text = _decoded(raw, encoding)
        if text is None:
            total += sum(byte > 127 for byte in raw) / 2
            continue
        total += len(NOT_ASCII.findall(text))
        good += len(JAPANESE.findall(text)) + 0.5 * len(HALF_WIDTH.findall(text)) - len(LONE_KANJI.findall(text))
    return good / max(total, 1.0)


def text_lines(path: Path, encoding: str) -> Iterator[Line]:
    """The lines of a text file. One that cannot be decoded, holds a NUL or passes MAX_LINE_BYTES comes with its why."""
    if encoding.startswith("utf-16"):
        yield from _utf16_lines(path, encoding)
        return
    codec = encoding.removesuffix("-sig")
    for number, offset, raw, too_long in _raw_lines(path):
        if number == 1 and raw.startswith(codecs.BOM_UTF8) and codec == "utf-8":
            raw, offset = raw[3:], offset + 3
        if too_long:
            why = f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB"
            yield Line(number, offset, raw[:SHOWN_BYTES].decode(codec, "backslashreplace"), why, offset)
            continue
        try:
            text = raw.decode(codec)
        except UnicodeDecodeError as error:
            shown = raw.decode(codec, "backslashreplace")
            yield Line(number, offset, shown, f"is not {codec}", offset + error.start)
            continue
        if "\0" in text:
            yield Line(number, offset, text.replace("\0", "\\0"), "holds a NUL byte", offset + raw.index(0))
        else:
            yield Line(number, offset, text)


def _raw_lines(path: Path) -> Iterator[tuple[int, int, bytes, bool]]:
    """(number, offset, line without its end, too long). Lines end in LF or CRLF; in CR where the file has no LF."""
    number = offset = 0
    end, rest = b"", b""
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            end = end or (b"\r" if b"\n" not in block and b"\r" in block[:-1] else b"\n")
            *whole, rest = (rest + block).split(end)
            for raw in whole:
                number += 1
                yield number, offset, raw.removesuffix(b"\r"), len(raw) > MAX_LINE_BYTES
                offset += len(raw) + 1
            if len(rest) > MAX_LINE_BYTES:
                number += 1
                yield number, offset, rest[:SHOWN_BYTES], True
                offset += len(rest)
                rest = b""
                while block := file.read(BLOCK_BYTES):
                    head, found, rest = block.partition(end)
                    offset += len(head) + len(found)
                    if found:
                        break
                # What follows the end of the long line is split with the next block; nothing is lost.
                if b"\n" in rest or b"\r" in rest:
                    file.seek(-len(rest), 1)
                    rest = b""
        if rest:
            yield number + 1, offset, rest.removesuffix(b"\r"), False


def _utf16_lines(path: Path, encoding: str) -> Iterator[Line]:
    """As text_lines. Half a surrogate pair makes a line bad; so does an odd last byte."""
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    number, offset, rest, tail = 0, 2, "", ""
    with path.open("rb") as file:
        file.seek(2)
        while True:
            block = file.read(BLOCK_BYTES)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError:
                text, tail = "", "ends in half a character"
            *whole, rest = (rest + text).split("\n")
            for raw in whole:
                number += 1
                yield _utf16_line(number, offset, raw.removesuffix("\r"))
                offset += 2 * len(raw) + 2 * sum(c > "\uffff" for c in raw) + 2
            if not block:
                break
            if 2 * len(rest) > MAX_LINE_BYTES:
                why = f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB"
                yield Line(number + 1, offset, rest[:SHOWN_BYTES], why, offset)
                return
    if rest or tail:
        line = _utf16_line(number + 1, offset, rest.removesuffix("\r"))
        yield line._replace(why=tail, at=offset) if tail else line


def _utf16_line(number: int, offset: int, text: str) -> Line:
    broken = SURROGATE.search(text)
    if broken:
        shown = text.encode("utf-8", "backslashreplace").decode("utf-8")
        return Line(number, offset, shown, "holds half a surrogate pair", offset + 2 * broken.start())
    if "\0" in text:
        return Line(number, offset, text.replace("\0", "\\0"), "holds a NUL", offset + 2 * text.index("\0"))
    return Line(number, offset, text)
