"""The same text written in one way: Unicode form, line ends, invisible characters, spaces at line ends."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

NormalForm = Literal["NFC", "NFKC", "none"]
# Control characters, soft hyphens, zero-width spaces and direction marks. Joiners stay: emoji and Persian need them.
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]"
)
BLANK_LINES = re.compile(r"\n{3,}")


def tidy(text: str, form: NormalForm = "NFC") -> str:
    """The text normalised; the indentation of lines stays, at most one blank line stands between them.

    NFC keeps half-width kana and full-width letters, which NFKC changes; both change a compatibility kanji (U+F900 ff.)
    into the ordinary one.
    """
    # All that Unicode takes for the end of a line is one; form feeds and U+2028 are among them.
    text = INVISIBLE.sub("", "\n".join(text.splitlines()))
    if form != "none":
        text = unicodedata.normalize(form, text)
    return BLANK_LINES.sub("\n\n", "\n".join(map(str.rstrip, text.split("\n")))).strip("\n")
