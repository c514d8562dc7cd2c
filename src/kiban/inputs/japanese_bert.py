"""What makes Japanese BERT's tokenizer fast: words of many texts through MeCab at once, and their pieces remembered."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain

from kiban.inputs.mecab import Cut, mecab

MAX_WORD = 100  # characters; WordPiece calls a longer word unknown
PREFIX = "##"  # of pieces that do not begin a word
REMEMBERED = 2**17  # words, about 30 MB
NFKC = partial(unicodedata.normalize, "NFKC")
SHORT = 64  # bytes; longer words hardly come again


class Subwords(dict[bytes, tuple[int, ...]]):
    """The ids of a word, by its UTF-8 bytes; found when first asked for, and remembered."""

    def __init__(self, vocabulary: Mapping[str, int], *, unk: int, characters: bool, lower: bool) -> None:
        super().__init__()
        self.vocabulary, self.unk, self.characters, self.lower = vocabulary, unk, characters, lower

    def __missing__(self, word: bytes) -> tuple[int, ...]:
        text = word.decode("utf-8")
        ids = tuple(id for id, _, _ in self.pieces(text.lower() if self.lower else text))
        if len(word) <= SHORT:
            if len(self) >= REMEMBERED:
                self.clear()
            self[word] = ids
        return ids

    def pieces(self, word: str) -> list[tuple[int, int, int]]:
        """(id, start, end) inside one word: its characters, or the longest pieces from the left (Wu et al. 2016)."""
        if self.characters:
            return [(self.vocabulary.get(c, self.unk), i, i + 1) for i, c in enumerate(word)]
        found, at = [], 0
        for part in word.split():  # MeCab takes line separators and the like for symbols; BERT's WordPiece does not
            at = word.index(part, at)
            found += [(id, at + start, at + end) for id, start, end in self._longest(part)]
            at += len(part)
        return found

    def _longest(self, word: str) -> list[tuple[int, int, int]]:
        unknown = [(self.unk, 0, len(word))]
        if len(word) > MAX_WORD:
            return unknown
        pieces, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                id = self.vocabulary.get((PREFIX if start else "") + word[start:end])
                if id is not None:
                    pieces.append((id, start, end))
                    start = end
                    break
            else:
                return unknown
        return pieces


def mecab_surfaces(text: str) -> list[str]:
    """The words of a normalised text."""
    with mecab().cut() as cut:
        return _bytes(cut, text).decode("utf-8").split(" ")


def mecab_words(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text, which need not be normalised."""
    return mecab().map(lambda cut, text: _bytes(cut, _normalised(text)).decode("utf-8").split(), texts)


def mecab_ids(texts: Sequence[str], subwords: Subwords) -> list[list[int]]:
    """The ids of the words of each text, which need not be normalised."""
    known = subwords.__getitem__

    def wordpiece(cut: Cut, text: str) -> list[int]:
        return list(chain.from_iterable(map(known, _bytes(cut, _normalised(text)).split())))

    def characters(cut: Cut, text: str) -> list[int]:
        # A carriage return is a word to MeCab, and then a character that the vocabulary lacks.
        return list(chain.from_iterable(map(known, _bytes(cut, _normalised(text)).split(b" "))))

    return mecab().map(characters if subwords.characters else wordpiece, texts)


def _bytes(cut: Cut, text: str) -> bytes:
    return cut(text.replace("\0", " ").encode("utf-8"))  # MeCab ends at a NUL; it stands for no word


def _normalised(text: str) -> str:
    """NFKC. Python's takes the slow way for all of a text that needs it anywhere; nothing joins across a line end."""
    return "\n".join(map(NFKC, text.split("\n")))
