"""Japanese text: normalisation that remembers where each character came from, and words with offsets."""

from __future__ import annotations

import re
import threading
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

Engine = Literal["mecab", "sudachi"]

# Dashes and tildes that Japanese systems exchange for each other; NFKC leaves them apart.
VARIANTS = str.maketrans({"〜": "～", "−": "-", "‐": "-", "–": "-", "—": "―", "‾": "￣"})


SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Word:
    """A word, and where it stands in the text that was given: text[start:end]."""

    surface: str
    start: int
    end: int


def normalise(text: str, *, variants: bool = False) -> str:
    """NFKC, as Japanese BERT does: half-width katakana become full, full-width letters and digits half.

    variants: also unify the dashes and tildes that systems confuse.
    """
    return unicodedata.normalize("NFKC", text.translate(VARIANTS) if variants else text)


def normalise_aligned(text: str) -> tuple[str, list[tuple[int, int]]]:
    """NFKC, and for every character of the result the (start, end) of its source in text."""
    if unicodedata.is_normalized("NFKC", text):
        return text, [(i, i + 1) for i in range(len(text))]
    result: list[str] = []
    spans: list[tuple[int, int]] = []
    start = 0
    while start < len(text):
        end = start + 1
        while end < len(text) and _joins(text[end]):
            end += 1
        piece = unicodedata.normalize("NFKC", text[start:end])
        result.append(piece)
        spans.extend([(start, end)] * len(piece))
        start = end
    return "".join(result), spans


@lru_cache(maxsize=65536)
def _joins(character: str) -> bool:
    """Whether NFKC may compose this character with one before it, or move it: marks, vowels and finals of hangul."""
    first = unicodedata.normalize("NFKD", character)[0]
    return unicodedata.category(first)[0] == "M" or "\u1160" <= first <= "\u11ff"


def without_surrogates(text: str) -> str:
    """text with U+FFFD for each lone surrogate, which UTF-8 has no bytes for."""
    return SURROGATE.sub("\ufffd", text)


def words(text: str, *, engine: Engine = "mecab", mode: Literal["A", "B", "C"] = "C") -> list[Word]:
    """The words of text by MeCab (unidic-lite, as Japanese BERT v3) or Sudachi (mode A short to C long).

    Text is normalised first; offsets are into the text as given. Spaces are in no word.
    """
    clean, spans = normalise_aligned(without_surrogates(text))
    surfaces = _mecab_surfaces(clean) if engine == "mecab" else _sudachi_surfaces(clean, mode)
    result, at = [], 0
    for surface in surfaces:
        if not surface.strip():
            continue
        start = clean.index(surface, at)
        at = start + len(surface)
        result.append(Word(surface, spans[start][0], spans[at - 1][1]))
    return result


_local = threading.local()  # neither tagger may be shared by threads


def _mecab_surfaces(text: str) -> list[str]:
    if not hasattr(_local, "mecab"):
        import fugashi
        import unidic_lite

        _local.mecab = fugashi.GenericTagger(f'-d "{unidic_lite.DICDIR}" -r "{unidic_lite.DICDIR}/mecabrc"')
    # MeCab ends at a NUL; it stands for no word.
    return [str(word.surface) for word in _local.mecab(text.replace("\0", " "))]


def _sudachi_surfaces(text: str, mode: str) -> list[str]:
    if not hasattr(_local, "sudachi"):
        from sudachipy import dictionary

        _local.sudachi = dictionary.Dictionary().create()
    from sudachipy import SplitMode

    split: Any = {"A": SplitMode.A, "B": SplitMode.B, "C": SplitMode.C}[mode]
    surfaces: list[str] = []
    for piece in _pieces(text, 8000):  # Sudachi takes at most 49,149 bytes at once
        surfaces += [str(morpheme.surface()) for morpheme in _local.sudachi.tokenize(piece, split)]
    return surfaces


def _pieces(text: str, size: int) -> list[str]:
    """Parts of at most size characters, cut after a sentence or line end where there is one."""
    pieces = []
    while len(text) > size:
        cut = max(text.rfind(mark, 0, size) for mark in "。\n！？") + 1 or size
        pieces.append(text[:cut])
        text = text[cut:]
    return [*pieces, text]


@lru_cache(maxsize=8192)
def _script(character: str) -> str:
    """kana, han, latin, other letters, or none."""
    if "\u3040" <= character <= "\u30ff" or "\uff66" <= character <= "\uff9f":
        return "kana"
    if "\u4e00" <= character <= "\u9fff" or "\u3400" <= character <= "\u4dbf":
        return "han"
    if not character.isalpha():
        return "none"
    return "latin" if ord(character) < 0x250 or "Ａ" <= character <= "ｚ" else "other"


def detect_language(text: str) -> Literal["ja", "en", "other"]:
    """By script: a fifth of kana or kanji makes Japanese; kanji without any kana in a long text does not.

    Every text in Latin letters is "en".
    """
    counts = Counter(map(_script, text))
    letters = counts.total() - counts["none"]
    japanese = counts["kana"] + counts["han"]
    if letters and japanese / letters >= 0.2 and (counts["kana"] or (len(text) < 20 and _in_japan(text))):
        return "ja"
    return "en" if counts["latin"] and counts["latin"] >= 0.8 * letters else "other"


def _in_japan(text: str) -> bool:
    """Whether the kanji of a text are all in Japanese use; the simplified ones of China are not."""
    try:
        "".join(character for character in text if _script(character) == "han").encode("cp932")
    except UnicodeEncodeError:
        return False
    return True
