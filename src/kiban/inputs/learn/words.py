"""Where a tokenizer that learns cuts text into words: runs of one script, never longer than a cap.

Japanese writes no spaces. A pattern made for English takes a whole sentence for a word, and a page without punctuation for
one word of a million characters; counting and merging those is what exhausts the memory of trainers.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable
from functools import cache

MARKS = "\u30fc\u3099\u309a"  # the long sound and the combining voicing marks belong to both kana
HIRAGANA = f"\u3041-\u3096\u309d\u309e{MARKS}"
KATAKANA = f"\u30a1-\u30fa\u30fd-\u30ff\u31f0-\u31ff\uff66-\uff9f{MARKS}"
HAN = "\u3005\u3006\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
JAPANESE = HIRAGANA + KATAKANA + HAN
SPACES = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # `re` and Oniguruma differ on \s
MAX_RUN = 16  # characters of Japanese in one word
MAX_WORD = 32  # letters of other scripts


def japanese_runs(*, space: bool) -> str:
    """A pattern, for Python and Oniguruma alike, of runs of hiragana, katakana or kanji; space: with one in front."""
    front = " ?" if space else ""
    return "|".join(f"{front}[{script}]{{1,{MAX_RUN}}}" for script in (HIRAGANA, KATAKANA, HAN))


def word_pattern(
    *,
    digits: int,
    letter: str = r"[\p{L}\p{M}]",
    other: str = rf"[^{SPACES}\p{{L}}\p{{M}}\p{{N}}]",
    number: str = r"\p{N}",
) -> str:
    """A pattern that cuts any text, all of it, into words for byte-level BPE: a word takes the space before it.

    digits: how many may stand in one word. letter, other and number: character classes, in Oniguruma's spelling.
    """
    parts = [
        "'(?:[sdmt]|ll|ve|re)",
        japanese_runs(space=True),
        f" ?(?:(?![{JAPANESE}]){letter}){{1,{MAX_WORD}}}",
        f"{number}{{1,{digits}}}",
        f" ?{other}{{1,{MAX_RUN}}}",
        rf"[{SPACES}]{{0,{MAX_RUN}}}[\r\n]{{1,{MAX_RUN}}}",
        rf"[{SPACES}]{{1,{MAX_RUN}}}(?![^{SPACES}])",
        f"[{SPACES}]{{1,{MAX_RUN}}}",
    ]
    return "|".join(parts)


def python_word_pattern(*, digits: int) -> re.Pattern[str]:
    """`word_pattern` for `re`, which does not know the classes of Unicode by name; it is four times as fast."""
    letters, numbers = _members("LM"), _members("N")
    return re.compile(
        word_pattern(
            digits=digits, letter=f"[{letters}]", other=f"[^{SPACES}{letters}{numbers}]", number=f"[{numbers}]"
        )
    )


@cache
def _members(kinds: str) -> str:
    """The inside of a character class: all characters of some general categories."""
    return as_class(chr(i) for i in range(sys.maxunicode + 1) if unicodedata.category(chr(i))[0] in kinds)


def as_class(characters: Iterable[str]) -> str:
    """The inside of a character class that holds characters, as ranges. They must be none of `]^-\\`."""
    codes = sorted(map(ord, characters))
    starts = [code for code, before in zip(codes, [-2, *codes]) if code != before + 1]
    ends = [code for code, after in zip(codes, [*codes[1:], -2]) if code != after - 1]
    return "".join(chr(a) if a == b else f"{chr(a)}-{chr(b)}" for a, b in zip(starts, ends, strict=True))
