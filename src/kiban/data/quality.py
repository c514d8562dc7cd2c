"""Rules that tell text worth training on from the rest, made for Japanese as for English.

After MassiveText (Rae et al. 2021, appendix A), C4 (Raffel et al. 2020) and the Swallow corpus (Okazaki et al. 2024).
Deviations: two kana or kanji weigh as one word where others count words; shares are taken by class of character and never
by `isalpha`; thresholds are looser than those for the open web, so that manuals and short descriptions pass.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kiban.data.characters import LATIN, SPACE, classes, code_points, count
from kiban.data.language import identify
from kiban.data.personal import mask, num_adult
from kiban.errors import ConfigError

# Japanese in UTF-8 read as cp932: every kana gives one of these, of which ordinary text has hardly any.
GARBLED = "縺繧繝\ufffd"
GARBLED_PAIRS = re.compile(
    "[､･][｡-ﾟ]"  # EUC-JP read as cp932
    "|[‚ƒ][\x80-\xff‘-”–-™Œœ]"  # cp932 read as cp1252
    "|[ÃÂãâ][\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"  # UTF-8 read as cp1252
)
PAIR_STARTS = "､･‚ƒÃÂãâ"
SENTENCE_MARKS = "。！？!?．｡"
FULL_STOP = re.compile(r"\.(?=[\s\"'”’)\]]|$)")
ELLIPSES = ("…", "...", "・・・", "。。。", "続きを読む", "もっと見る", "Read more", "read more")
BULLET = re.compile(r"\s*(?:[-*+•‣◦●○■□◆◇▪▶►・]|\d{1,3}[.)．）])\s*")
LATIN_WORD = re.compile(r"[A-Za-z]+")
STOP_WORDS = frozenset("the be to of and that have with a in is for it you this or on are".split())
STOP_WORD_SAMPLE = 4000  # characters that are searched for them
RUN = 10  # equal characters
MIN_LINES = 5  # shares of lines tell nothing about fewer
PASSAGE = 10  # words
TEXTS = ("languages", "adult", "personal_data")  # settings that are no numbers
MIN_PASSAGES = 10  # a title that the first sentence repeats is no fault


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Thresholds of the rules. Shares are of visible characters; max_bullets is of lines.

    min_words: two kana or kanji are a word. max_sentence: words to a sentence end, on average, in Japanese and English.
    min_hiragana: of kana and kanji, in Japanese; min_stop_words: different ones in English; word_length: mean letters of
    English words, between. max_repeated_lines and _passages: characters in lines, or in passages of 10 words, that stood
    before in the text. languages: ISO codes to keep; empty keeps all. max_adult: words of adult sites that adult="drop"
    lets pass.
    """

    languages: tuple[str, ...] = ()
    min_words: float = 20
    min_letters: float = 0.6
    max_symbols: float = 0.12
    max_digits: float = 0.3
    max_mojibake: float = 0.015
    max_runs: float = 0.2
    max_repeated_lines: float = 0.3
    max_repeated_passages: float = 0.4
    max_ellipses: float = 0.3
    max_bullets: float = 0.9
    max_sentence: float = 100
    min_hiragana: float = 0.05
    min_stop_words: int = 2
    word_length: tuple[float, float] = (2.5, 10.0)
    adult: Literal["keep", "drop"] = "keep"
    max_adult: int = 2
    personal_data: Literal["keep", "mask", "drop"] = "keep"

    def __post_init__(self) -> None:
        for name, known in (("adult", ("keep", "drop")), ("personal_data", ("keep", "mask", "drop"))):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError("Rules", field=name, why=f"is {value!r}", hint=f"known: {', '.join(known)}")
        if not isinstance(self.languages, tuple) or not all(isinstance(code, str) for code in self.languages):
            raise ConfigError("Rules", field="languages", why=f"is {self.languages!r}", hint="for example [ja, en]")
        if not isinstance(self.word_length, tuple) or len(self.word_length) != 2:
            raise ConfigError(
                "Rules", field="word_length", why=f"is {self.word_length!r}", hint="for example [2.5, 10]"
            )
        for field in dataclasses.fields(self):
            numbers = getattr(self, field.name)
            for value in numbers if field.name == "word_length" else [numbers]:
                if field.name not in TEXTS and not (type(value) in (int, float) and 0 <= value < float("inf")):
                    raise ConfigError("Rules", field=field.name, why=f"is {value!r}", hint="a number from 0")


class Document:
    """A text and what the rules ask about it, found when first asked."""

    def __init__(self, text: str) -> None:
        self.text, self.points = text, code_points(text)
        self.classes = classes(self.points)
        self.counts = count(self.classes)
        self.visible = max(1, self.counts.visible)

    @cached_property
    def language(self) -> str:
        return identify(self.text, self.counts)

    @cached_property
    def lines(self) -> list[str]:
        """Without blank ones, and without spaces at their ends."""
        return [line for line in map(str.strip, self.text.split("\n")) if line]

    @cached_property
    def latin_words(self) -> int:
        """Runs of Latin letters."""
        latin = self.classes == LATIN
        return int(latin[:1].sum()) + int((latin[1:] & ~latin[:-1]).sum())

    @cached_property
    def words(self) -> float:
        """Its size in words, two kana or kanji being one."""
        others = self.counts.letters - self.counts.cjk - self.counts.latin
        return self.counts.cjk / 2 + (len(self.text.split()) if others else self.latin_words)

    @property
    def sentence_ends(self) -> int:
        return sum(map(self.text.count, SENTENCE_MARKS)) + len(FULL_STOP.findall(self.text))

    @property
    def garbled(self) -> int:
        """Characters, or pairs of them, that hardly occur but where text was decoded wrongly."""
        pairs = any(start in self.text for start in PAIR_STARTS)
        return sum(map(self.text.count, GARBLED)) + (len(GARBLED_PAIRS.findall(self.text)) if pairs else 0)

    @property
    def in_runs(self) -> int:
        """Visible characters in runs of ten and more equal ones."""
        ends = np.flatnonzero(np.append(self.points[1:] != self.points[:-1], True)) + 1
        lengths = np.diff(ends, prepend=0)
        return int(lengths[(lengths >= RUN) & (self.classes[ends - 1] != SPACE)].sum()) if len(self.points) else 0

    @cached_property
    def personal(self) -> Counter[str]:
        return mask(self.text)[1]

    def broken_off(self) -> float:
        """Share of the characters in lines that end in an ellipsis."""
        return sum(len(line) for line in self.lines if line.endswith(ELLIPSES)) / self.visible

    def bullets(self) -> float:
        """Share of the lines that begin with a bullet or number."""
        return sum(bool(BULLET.match(line)) for line in self.lines) / max(1, len(self.lines))

    def repeated_lines(self) -> float:
        """Share of the characters in lines that stood before."""
        if len(self.lines) < MIN_LINES:
            return 0.0
        times = Counter(self.lines)
        return sum(len(line) * (n - 1) for line, n in times.items()) / sum(map(len, self.lines))

    def repeated_passages(self) -> float:
        """Share of the characters in passages of ten words (20 kana or kanji, 60 letters) that stood before."""
        size = 2 * PASSAGE if self.counts.cjk > 0.1 * self.counts.letters else 6 * PASSAGE
        return repeated_share(self.points, size)


def repeated_share(points: NDArray[np.uint32], size: int) -> float:
    """Share of the places that lie in a window of so many characters which occurred before."""
    if len(points) < MIN_PASSAGES * size:
        return 0.0
    # Polynomial hashes of all windows: differences of one running sum, brought to the same power; all modulo 2**64.
    base = np.uint64(0x9E3779B97F4A7C15)
    powers = np.full(len(points) + 1, base)
    powers[0] = 1
    powers = np.cumprod(powers)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum((points.astype(np.uint64) + np.uint64(1)) * powers[:-1])])
    windows = (sums[size:] - sums[:-size]) * powers[len(points) - size :: -1]
    ordered = np.sort(windows)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(twice):
        return 0.0
    starts = np.flatnonzero(np.isin(windows, twice))
    # Of equal windows all but the first; of those that overlap with it, too: a run of one word repeats itself.
    starts = np.delete(starts, np.unique(windows[starts], return_index=True)[1])
    steps = np.zeros(len(points) + 1, dtype=np.int64)
    steps[starts] += 1
    steps[starts + size] -= 1
    return float((np.cumsum(steps[:-1]) > 0).mean())


Rule = Callable[[Document, Rules], bool]


def _sentences(d: Document, r: Rules) -> bool:
    return d.language in ("ja", "en") and d.words > r.max_sentence * (1 + d.sentence_ends)


def _word_length(d: Document, r: Rules) -> bool:
    if d.language != "en":
        return False
    low, high = r.word_length
    return not low <= d.counts.latin / max(1, d.latin_words) <= high


def _stop_words(d: Document, r: Rules) -> bool:
    if d.language != "en":
        return False
    return len(STOP_WORDS.intersection(LATIN_WORD.findall(d.text[:STOP_WORD_SAMPLE].lower()))) < r.min_stop_words


# Each tells whether a document breaks it. The first that is broken gives a dropped document its reason, so the exact and
# cheap ones come first.
RULES: Mapping[str, Rule] = {
    "mojibake": lambda d, r: d.garbled > r.max_mojibake * d.visible,
    "too_short": lambda d, r: d.words < r.min_words,
    "language": lambda d, r: bool(r.languages) and d.language not in r.languages,
    "placeholder": lambda d, r: "orem ipsum" in d.text,
    "symbols": lambda d, r: d.counts.symbol > r.max_symbols * d.visible,
    "digits": lambda d, r: d.counts.digit > r.max_digits * d.visible,
    "few_letters": lambda d, r: d.counts.letters < r.min_letters * d.visible,
    "runs": lambda d, r: d.in_runs > r.max_runs * d.visible,
    "few_hiragana": lambda d, r: d.language == "ja" and d.counts.hiragana < r.min_hiragana * d.counts.cjk,
    "few_stop_words": _stop_words,
    "word_length": _word_length,
    "few_sentences": _sentences,
    "ellipses": lambda d, r: len(d.lines) >= MIN_LINES and d.broken_off() > r.max_ellipses,
    "bullets": lambda d, r: len(d.lines) >= MIN_LINES and d.bullets() > r.max_bullets,
    "repeated_lines": lambda d, r: d.repeated_lines() > r.max_repeated_lines,
    "repeated_passages": lambda d, r: d.repeated_passages() > r.max_repeated_passages,
    "adult": lambda d, r: r.adult == "drop" and num_adult(d.text) > r.max_adult,
    "personal_data": lambda d, r: r.personal_data == "drop" and bool(d.personal),
}


def broken_rule(document: Document, rules: Rules) -> str | None:
    """The name of the first rule that a document breaks; None if it may be kept."""
    return next((name for name, breaks in RULES.items() if breaks(document, rules)), None)
