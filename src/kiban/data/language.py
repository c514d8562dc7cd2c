"""Which language a text is in: by script where that decides, as for Japanese, else by `py3langid` (Lui & Baldwin 2012)."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from kiban.data.characters import Counts, count

UNKNOWN = "und"  # undetermined, as ISO 639-2 has it
SAMPLE = 1000  # characters that the classifier is shown, from the front and from the middle
MIN_LETTERS = 20  # of a text without kana or hangul; fewer tell nothing
KANJI_RUN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]+")
WORDS = re.compile(r"[a-z']+")
# Words that no other large language has; "of", "in", "is", "an", "was", "for" and "to" are Dutch, German or Danish too.
ENGLISH = frozenset("the and that with which this from are been would their you your it not by they has what".split())
# What the classifier may answer; of many more, in small print, it would find some in lists of English names.
LANGUAGES = (
    "en de fr es pt it nl sv da no fi pl cs sk hu ro bg hr sr sl mk sq et lv lt el ru uk be tr az kk ar fa ur he "
    "hi bn mr ne gu pa ta te kn ml si th lo km my vi id ms tl sw af is ga cy eu ca gl ka hy am mn eo la"
).split()


def identify(text: str, counts: Counts | None = None) -> str:
    """The ISO 639-1 code of the language that most of a text is in; "und" for one of too few letters.

    A tenth of kana and kanji makes Japanese, since a kanji weighs as much as a short word, if a twentieth of those is kana.
    """
    counts = counts or count(text)
    letters = counts.letters
    if counts.hangul > max(counts.cjk, 0.1 * letters):
        return "ko"
    if counts.cjk and counts.cjk >= 0.1 * letters:
        if counts.kana >= 0.05 * counts.cjk:
            return "ja"
        return _kanji_only(text, counts)
    if letters < MIN_LETTERS:
        return UNKNOWN
    sample = _sample(text)
    if counts.latin >= 0.9 * letters and _is_english(sample):
        return "en"
    return _classified(sample)


def _kanji_only(text: str, counts: Counts) -> str:
    """Chinese, unless all kanji are in Japanese use and the text is short, or fits neither kind of Chinese."""
    kanji = "".join(KANJI_RUN.findall(text))
    if not _fits(kanji, "cp932"):
        return "zh"
    return "zh" if counts.cjk >= MIN_LETTERS and (_fits(kanji, "gb2312") or _fits(kanji, "big5")) else "ja"


def _fits(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _sample(text: str) -> str:
    middle = len(text) // 2
    return text if len(text) <= 2 * SAMPLE else text[:SAMPLE] + "\n" + text[middle : middle + SAMPLE]


def _is_english(sample: str) -> bool:
    """Whether a tenth of the words are English for sure; asking the classifier takes twenty times as long."""
    words = WORDS.findall(sample.lower())
    return len(words) >= 10 and sum(word in ENGLISH for word in words) >= 0.1 * len(words)


def _classified(sample: str) -> str:
    code: str = _classifier().classify(sample)[0]
    return code


@cache
def _classifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

    classifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    classifier.set_languages(LANGUAGES)
    return classifier
