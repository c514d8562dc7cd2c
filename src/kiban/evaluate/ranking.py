"""Search by words, and how high the right passage stands: BM25 and the mean reciprocal rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from kiban.errors import ConfigError
from kiban.inputs.japanese_bert import mecab_words


def search_words(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text in lower case, without punctuation: MeCab's for Japanese, between signs for English."""
    return [
        [word.lower() for word in words if any(character.isalnum() for character in word)]
        for words in mecab_words(list(texts))
    ]


class Bm25:
    """Okapi BM25 (Robertson & Zaragoza 2009, eq. 3.15) over documents, each a sequence of words.

    score = sum over the query's words of idf * tf (k1 + 1) / (tf + k1 (1 - b + b * length / mean length)), with
    idf = ln(1 + (N - n + 1/2) / (n + 1/2)). Deviation: the 1 in the logarithm (Lucene's) keeps the weight of words that
    stand in more than half of the documents above 0. A word that a query repeats counts as often.

    Raises ConfigError if there is no document, k1 is below 0 or b is not from 0 to 1.
    """

    def __init__(self, documents: Sequence[Sequence[str]], *, k1: float = 1.2, b: float = 0.75) -> None:
        if not documents or k1 < 0 or not 0 <= b <= 1:
            raise ConfigError("BM25", why="needs documents, k1 of at least 0 and b from 0 to 1")
        lengths = np.array([len(document) for document in documents], dtype=np.float64)
        self.num_documents, self.k1 = len(documents), k1
        self.norms = k1 * (1 - b + b * lengths / max(float(lengths.mean()), 1e-9))
        postings: dict[str, list[tuple[int, int]]] = {}
        for place, document in enumerate(documents):
            for word, count in Counter(document).items():
                postings.setdefault(word, []).append((place, count))
        self.postings = {word: np.array(found, dtype=np.int64) for word, found in postings.items()}

    def scores(self, query: Iterable[str]) -> NDArray[np.float64]:
        """Score of every document, (N,)."""
        total = np.zeros(self.num_documents)
        for word, times in Counter(query).items():
            found = self.postings.get(word)
            if found is None:
                continue
            places, counts = found.T
            idf = np.log1p((self.num_documents - len(places) + 0.5) / (len(places) + 0.5))
            total[places] += times * idf * counts * (self.k1 + 1) / (counts + self.norms[places])
        return total

    def top(self, query: Iterable[str], num: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The num best documents, best first, the earlier of two equal ones first, and their scores."""
        scores = self.scores(query)
        places = np.argsort(-scores, kind="stable")[:num]
        return places, scores[places]


def reciprocal_ranks(
    rankings: Sequence[Sequence[int] | NDArray[np.int64]], relevant: Sequence[int], *, depth: int = 10
) -> NDArray[np.float64]:
    """1 / place of the relevant document in each ranking (best first), 0 below depth: (N,). Their mean is MRR@depth.

    Voorhees 1999; depth 10 as MS MARCO has it.
    """
    found = np.zeros(len(relevant))
    for row, (ranking, wanted) in enumerate(zip(rankings, relevant, strict=True)):
        places = np.flatnonzero(np.asarray(ranking)[:depth] == wanted)
        if len(places):
            found[row] = 1 / (places[0] + 1)
    return found
