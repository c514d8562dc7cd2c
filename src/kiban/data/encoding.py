"""Which encoding a text file is in, and its lines, each with its place in bytes.

Japanese tables come as UTF-8, as cp932 (Excel), as EUC-JP (older systems) and as UTF-16 (Excel's "Unicode text").
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import AnyStr, BinaryIO, NamedTuple

MAX_LINE_BYTES = 16 * 2**20
BLOCK_BYTES = 2**20
SAMPLE_BYTES = 256 * 2**10
SHOWN = 1000  # of a line that is too long to keep
BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# Kana, kanji, full-width forms and the symbols that Japanese text uses.
JAPANESE = re.compile(
    r"[\u3000-\u30ff\u3200-\u33ff\u4e00-\u9fff\uf900-\ufaff\uff01-\uff60\uffe0-\uffe6\u2010-\u27bf×÷°±´¨]"
)
HALF_WIDTH = re.compile(r"[｡-ﾟ]{2,}")
NOT_ASCII = re.compile(r"[^\x00-\x7f]")
LONE_KANJI = re.compile(r"(?<=[A-Za-z])[\u4e00-\u9fff](?=[A-Za-z])")  # an accented letter of a Western encoding
UNFIT = re.compile(r"[\0\ud800-\udfff]")  # NUL, and half a character of UTF-16


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
    for _, raw, _ in _raw_lines(path):
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
        good += len(JAPANESE.findall(text)) - 0.4 * _rare(text) - len(LONE_KANJI.findall(text))
        # A little less than 1: kanji in EUC-JP that could be half-width kana are more often kanji.
        good += 0.95 * sum(map(len, HALF_WIDTH.findall(text)))
    return good / max(total, 1.0)


def _rare(text: str) -> int:
    """Number of kanji beyond the first level of JIS X 0208, which Japanese text seldom holds."""
    return sum("\u4e00" <= c <= "\u9fff" and not b"\xb0" <= c.encode("euc_jp", "replace") < b"\xd0" for c in text)


def text_lines(path: Path, encoding: str) -> Iterator[Line]:
    """The lines of a text file. One that cannot be decoded, holds a NUL or passes MAX_LINE_BYTES comes with its why."""
    lines = _utf16_lines(path, encoding) if encoding.startswith("utf-16") else _byte_lines(path, encoding)
    for line, too_long in lines:
        if too_long:
            why = f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB"
            line = line._replace(why=why, at=line.offset)
        yield line


def _byte_lines(path: Path, encoding: str) -> Iterator[tuple[Line, bool]]:
    codec = encoding.removesuffix("-sig")
    for number, (offset, raw, too_long) in enumerate(_raw_lines(path, has_mark=codec == "utf-8"), 1):
        why, at = "", 0
        try:
            text = raw.decode(codec)
        except UnicodeDecodeError as error:
            text, why, at = raw.decode(codec, "backslashreplace"), f"is not {codec}", offset + error.start
        if "\0" in text and not why:
            text, why, at = text.replace("\0", "\\0"), "holds a NUL byte", offset + raw.index(0)
        yield Line(number, offset, text, why, at), too_long


def _raw_lines(path: Path, *, has_mark: bool = False) -> Iterator[tuple[int, bytes, bool]]:
    with path.open("rb") as file:
        front = len(codecs.BOM_UTF8) if has_mark and file.read(3) == codecs.BOM_UTF8 else 0
        file.seek(front)
        for offset, raw, too_long in _split(iter(partial(file.read, BLOCK_BYTES), b""), b"\n", b"\r", len):
            yield front + offset, raw, too_long


def _utf16_lines(path: Path, encoding: str) -> Iterator[tuple[Line, bool]]:
    """The lines behind the byte order mark. Half a surrogate pair makes a line bad; so does an odd last byte."""
    with path.open("rb") as file:
        file.seek(2)
        for number, (offset, raw, too_long) in enumerate(_split(_utf16(file, encoding), "\n", "\r", _utf16_size), 1):
            text, why, at = raw, "", 0
            broken = UNFIT.search(raw)
            if broken:
                text = raw.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\0")
                why = "holds a NUL" if broken[0] == "\0" else "holds half a character"
                at = offset + 2 + _utf16_size(raw[: broken.start()])
            yield Line(number, offset + 2, text, why, at), too_long


def _utf16(file: BinaryIO, encoding: str) -> Iterator[str]:
    """The text in blocks; an odd byte at the end becomes half a surrogate pair."""
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    while block := file.read(BLOCK_BYTES):
        yield decoder.decode(block)
    rest = decoder.getstate()[0]
    whole = len(rest) // 2 * 2
    yield rest[:whole].decode(encoding, "surrogatepass") + "\udc00" * (len(rest) - whole)


def _utf16_size(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass"))


def _split(
    blocks: Iterable[AnyStr], lf: AnyStr, cr: AnyStr, size: Callable[[AnyStr], int]
) -> Iterator[tuple[int, AnyStr, bool]]:
    """(offset, line without its end, too long); of a line that is too long only the beginning.

    Lines end in LF or CRLF; in CR where the first block with either holds no LF. A line and a block are kept at most.
    """
    rest, end, offset, skipping = lf[:0], lf[:0], 0, False
    for block in blocks:
        text = rest + block
        if not end and (lf in text or cr in text[:-1]):
            end = lf if lf in text else cr
        whole: list[AnyStr] = text.split(end) if end else [text]
        rest = whole.pop()
        for raw in whole:
            length = size(raw)
            if skipping:
                skipping = False
            elif length > MAX_LINE_BYTES:
                yield offset, raw[:SHOWN], True
            else:
                yield offset, raw.removesuffix(cr), False
            offset += length + size(end)
        if skipping or size(rest) > MAX_LINE_BYTES:
            if not skipping:
                yield offset, rest[:SHOWN], True
            offset += size(rest)
            rest, skipping = lf[:0], True
    if rest:
        yield offset, rest.removesuffix(cr), False
