"""Which pairs of a parallel corpus to learn from: licensed, unseen by the tests, once each, and no source drowns others."""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

MIN_JA, MIN_EN = 8, 16  # characters of a text that is looked for inside others; shorter ones are everyone's words
MIN_TEST_JA, MIN_TEST_WORDS = 10, 4  # a test pair must be long enough to be told from others


@dataclass(frozen=True)
class Pair:
    """A text in both languages. strings: a message of a program, or an entry of a dictionary, not running text."""

    ja: str
    en: str
    source: str
    licence: str
    machine: bool = False
    strings: bool = False


@dataclass(frozen=True)
class Selection:
    """train is in random order. removed: pairs left out, by reason."""

    train: list[Pair]
    dev: list[Pair]
    test: list[Pair]
    removed: dict[str, int]


@dataclass(frozen=True)
class Forbidden:
    """Texts that a later test uses: a pair is left out if a side is one of them or stands in one.

    begins: every place in joined at which a text could stand, by its first MIN_JA characters.
    """

    whole: frozenset[str]
    joined: str
    begins: frozenset[str]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Forbidden:
        """texts in either language."""
        keys = [key for key in map(text_key, texts) if key]
        begins = frozenset(key[i : i + MIN_JA] for key in keys for i in range(len(key) - MIN_JA + 1))
        return cls(frozenset(keys), "\0".join(keys), begins)

    def holds(self, pair: Pair) -> bool:
        """Whether either side is, or is part of, a forbidden text."""
        ja, en = text_key(pair.ja), text_key(pair.en)
        return any(
            key in self.whole or (len(key) >= least and key[:MIN_JA] in self.begins and key in self.joined)
            for key, least in ((ja, MIN_JA), (en, MIN_EN))
        )


def select(
    pairs: Iterable[Pair],
    *,
    dev: Collection[str],
    test: Collection[str],
    forbidden: Forbidden,
    cap: int,
    max_test: int = 2_000,
    seed: int = 0,
) -> Selection:
    """Split by whole sources (dev, test: their names) and thin out sources of strings to cap pairs each.

    Left out: machine translation, unknown and non-commercial licences, forbidden texts, doubles, and training pairs of
    which a side is also in dev or test. Dev and test keep pairs whose sides are both unique, at most max_test.
    """
    rng, removed = random.Random(seed), Counter[str]()
    usable = []
    for pair in pairs:
        if reason := _unusable(pair):
            removed[reason] += 1
        else:
            usable.append(pair)
    held = {
        name: questions([p for p in usable if p.source in names], most=max_test, seed=seed)
        for name, names in (("dev", dev), ("test", test))
    }
    tested = {text_key(side) for p in usable if p.source in {*dev, *test} for side in (p.ja, p.en)}
    seen, by_source = set[tuple[str, str]](), dict[str, list[Pair]]()
    for pair in usable:
        key = text_key(pair.ja), text_key(pair.en)
        if pair.source in {*dev, *test}:
            continue
        if key in seen:
            removed["double"] += 1
        elif tested.intersection(key):
            removed["in dev or test"] += 1
        elif forbidden.holds(pair):
            removed["forbidden"] += 1
        else:
            by_source.setdefault(pair.source, []).append(pair)
        seen.add(key)
    train = []
    for found in by_source.values():
        kept = rng.sample(found, cap) if found[0].strings and len(found) > cap else found
        removed["over the cap"] += len(found) - len(kept)
        train += kept
    rng.shuffle(train)
    return Selection(train, held["dev"], held["test"], dict(removed))


def questions(pairs: Sequence[Pair], *, most: int, seed: int = 0) -> list[Pair]:
    """Pairs to ask for each other's sides: long enough, both sides unique, at most so many in random order."""
    ja, en = (Counter(text_key(side) for side in sides) for sides in ([p.ja for p in pairs], [p.en for p in pairs]))
    found = [
        p
        for p in pairs
        if ja[text_key(p.ja)] == 1 == en[text_key(p.en)]
        and len(p.ja) >= MIN_TEST_JA
        and len(p.en.split()) >= MIN_TEST_WORDS
    ]
    return random.Random(seed).sample(found, min(most, len(found)))


def text_key(text: str) -> str:
    """What two spellings of a text share: letters and digits, folded."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).lower() if c.isalnum())


def _unusable(pair: Pair) -> str:
    if pair.machine:
        return "machine translation"
    if pair.licence == "unknown" or "-NC" in pair.licence:
        return "licence"
    return "" if text_key(pair.ja) and text_key(pair.en) else "no words"
