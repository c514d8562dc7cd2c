"""Japanese for a byte-level BPE that was made for another language: merges that go before its own.

The new merges first join the bytes of a Japanese character, then characters. Each needs bytes that only stand in such
characters, so they touch no other text; and since they come first, the odd pieces that the old ones make of Japanese (one
character and the first bytes of the next) no longer get in the way.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from kiban.config import Progress, silent
from kiban.errors import ConfigError
from kiban.inputs.backends import Fast
from kiban.inputs.learn.bpe import SETTINGS, as_symbols
from kiban.inputs.learn.counts import Count, count_words
from kiban.inputs.learn.merges import Merge, learn_merges
from kiban.inputs.learn.words import japanese_runs
from kiban.inputs.tokenizer import Tokenizer

COVERAGE = 0.9995  # of Japanese characters; the rest stay bytes


def more_bpe(tokenizer: Tokenizer, texts: Iterable[str], *, num_new: int, progress: Progress = silent) -> Tokenizer:
    """tokenizer with at most num_new Japanese tokens behind its own, whose ids stay.

    A text without kana and kanji keeps its ids. Runs of hiragana, katakana and kanji become words of their own; half of
    the new tokens at most are single characters. Raises ConfigError if it is not a byte-level BPE.
    """
    assert isinstance(tokenizer.backend, Fast)
    values = json.loads(tokenizer.backend.open.to_str())
    if "ByteLevel" not in json.dumps(values["pre_tokenizer"]):
        raise ConfigError(
            "expand", why="this BPE tokenizer is not byte-level", hint="begin with one that is, or WordPiece"
        )
    runs = japanese_runs(space=True)
    counts = count_words(map(re.compile(runs).findall, texts), progress=progress)
    progress("learn merges", 0, None)
    model = values["model"]
    # An added token must be in the vocabulary too, or the library numbers it anew behind the new tokens.
    vocabulary: dict[str, int] = model["vocab"] | {token["content"]: token["id"] for token in values["added_tokens"]}
    merges, new = _merges(counts, vocabulary, num_new)
    first = max(vocabulary.values()) + 1
    model["vocab"] = vocabulary | {token: first + i for i, token in enumerate(new)}
    old = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    model["merges"] = [list(merge) for merge in dict.fromkeys([*merges, *old])]
    split = {"type": "Split", "pattern": {"Regex": runs}, "behavior": "Isolated", "invert": False}
    values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, values["pre_tokenizer"]]}
    return tokenizer.changed(values, {**tokenizer.settings, **SETTINGS})


def _merges(counts: Sequence[Count], vocabulary: dict[str, int], num_new: int) -> tuple[list[Merge], list[str]]:
    """Merges in order, and the tokens they make that vocabulary lacks."""
    merges, new = _characters(counts, vocabulary, limit=num_new // 2)
    known = {left + right for left, right in merges} | set(as_symbols(" "))
    spelt = [(word, count) for word, count in counts if all(as_symbols(c) in known for c in word)]
    if not spelt:
        return merges, new
    have = {*vocabulary, *new}
    # Some of what is learned the old vocabulary holds already, and it costs no new token.
    _, pairs = learn_merges(spelt, vocab_size=len(known) + 2 * num_new)
    for pair in pairs:
        left, right = map(as_symbols, pair)
        if left + right not in have:
            if len(new) == num_new:
                break
            new.append(left + right)
            have.add(left + right)
        merges.append((left, right))
    return merges, new


def _characters(counts: Sequence[Count], vocabulary: dict[str, int], *, limit: int) -> tuple[list[Merge], list[str]]:
    """The merges that join the bytes of frequent characters from the left, and the tokens they make."""
    found: Counter[str] = Counter()
    for word, count in counts:
        for character in word.lstrip(" "):
            found[character] += count
    merges: dict[Merge, None] = {}
    new: dict[str, None] = {}
    seen, wanted = 0, COVERAGE * found.total()
    for character, count in found.most_common():
        symbols = as_symbols(character)
        steps = [(symbols[:i], symbols[i]) for i in range(1, len(symbols))]
        missing = [token for token in map("".join, steps) if token not in vocabulary and token not in new]
        if seen >= wanted or len(new) + len(missing) > limit:
            break
        seen += count
        merges |= dict.fromkeys(steps)
        new |= dict.fromkeys(missing)
    return list(merges), list(new)
