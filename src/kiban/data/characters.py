"""What kinds of characters a text is made of: kana, kanji, letters, digits and marks, counted fast."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SPACE, CONTROL, HIRAGANA, KATAKANA, KANJI, HANGUL, LATIN, OTHER, DIGIT, MARK, SYMBOL = range(11)
NAMES = ("space control hiragana katakana kanji hangul latin other digit mark symbol").split()
BASIC = 0x10000
# Of the classes by Unicode category; letters are told apart by range.
CATEGORIES = {"L": OTHER, "M": OTHER, "N": SYMBOL, "P": MARK, "S": SYMBOL, "Z": SPACE, "C": CONTROL}
RANGES = (
    (0x3041, 0x309F, HIRAGANA),
    (0x30A1, 0x30FF, KATAKANA),
    (0x31F0, 0x31FF, KATAKANA),
    (0xFF66, 0xFF9F, KATAKANA),
    (0x3400, 0x4DBF, KANJI),
    (0x4E00, 0x9FFF, KANJI),
    (0xF900, 0xFAFF, KANJI),
    (0x3005, 0x3007, KANJI),  # 々〆〇
    (0x1100, 0x11FF, HANGUL),
    (0x3130, 0x318F, HANGUL),
    (0xAC00, 0xD7AF, HANGUL),
)


class Counts(NamedTuple):
    """Characters of each kind. mark: punctuation of any script; other: letters and combining marks of other scripts."""

    space: int
    control: int
    hiragana: int
    katakana: int
    kanji: int
    hangul: int
    latin: int
    other: int
    digit: int
    mark: int
    symbol: int

    @property
    def kana(self) -> int:
        return self.hiragana + self.katakana

    @property
    def cjk(self) -> int:
        """Characters of scripts that are written without spaces: kana and kanji."""
        return self.kana + self.kanji

    @property
    def letters(self) -> int:
        return self.cjk + self.hangul + self.latin + self.other

    @property
    def visible(self) -> int:
        """All but spaces and control characters."""
        return self.letters + self.digit + self.mark + self.symbol


def code_points(text: str) -> NDArray[np.uint32]:
    """The characters as numbers, (len(text),)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def classes(points: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """The class of each code point."""
    table = _table()
    found = table[np.minimum(points, BASIC - 1)]
    if len(points) and int(points.max()) >= BASIC:
        beyond = points >= BASIC
        # Beyond the basic plane: kanji in planes 2 and 3; else emoji and other symbols, letters being very rare.
        found[beyond] = np.where((points[beyond] >> 16 == 2) | (points[beyond] >> 16 == 3), KANJI, SYMBOL)
    return found


def count(text: str | NDArray[np.uint8]) -> Counts:
    """How many characters of each class a text, or the classes of one, have."""
    found = classes(code_points(text)) if isinstance(text, str) else text
    return Counts(*np.bincount(found, minlength=len(NAMES)).tolist())


@cache
def _table() -> NDArray[np.uint8]:
    """The class of every code point of the basic plane."""
    table = np.empty(BASIC, dtype=np.uint8)
    for point in range(BASIC):
        character = chr(point)
        category = unicodedata.category(character)
        table[point] = DIGIT if category == "Nd" else CATEGORIES[category[0]]
        if category[0] == "L" and (point < 0x250 or 0x1E00 <= point < 0x1F00 or 0xFF21 <= point <= 0xFF5A):
            table[point] = LATIN
    for first, last, kind in RANGES:
        table[first : last + 1] = kind
    table[[ord(c) for c in "\t\n\r\v\f"]] = SPACE
    table[0x30FB] = MARK  # ・, in the midst of the katakana
    table[0x300:0x370] = OTHER
    table.setflags(write=False)
    return table
