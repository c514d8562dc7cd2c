"""Kneser-Ney equals its definition, worked out with dictionaries, and is a distribution whatever was seen."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiban.errors import ConfigError, DatasetError
from kiban.evaluate.ngram import KneserNey, estimate_discounts


class Direct:
    """Chen & Goodman 1999, eq. 17-26, one n-gram at a time."""

    def __init__(self, documents: list[list[int]], vocab_size: int, order: int) -> None:
        self.vocab_size, self.order = vocab_size, order
        self.counts: list[Counter[tuple[int, ...]]] = []
        for k in range(1, order + 1):
            counts: Counter[tuple[int, ...]] = Counter()
            left = defaultdict(set)
            for document in documents:
                for i in range(len(document) - k + 1):
                    gram = tuple(document[i : i + k])
                    counts[gram] += 1
                    left[gram].add(document[i - 1] if i else None)
            self.counts.append(counts if k == order else Counter({gram: len(seen) for gram, seen in left.items()}))
        self.discounts = [self.estimate(counts) for counts in self.counts]

    @staticmethod
    def estimate(counts: Counter[tuple[int, ...]]) -> list[float]:
        n = Counter(counts.values())
        result = []
        for k, default in ((1, 0.5), (2, 1.0), (3, 1.5)):
            try:
                y = n[1] / (n[1] + 2 * n[2])
                value = k - (k + 1) * y * n[k + 1] / n[k]
            except ZeroDivisionError:
                value = -1.0
            result.append(value if 0 < value < k else default)
        return result

    def p(self, context: tuple[int, ...], token: int) -> float:
        context = context[-(self.order - 1) :] if self.order > 1 else ()
        lower = self.p(context[1:], token) if context else 1 / self.vocab_size
        counts, d = self.counts[len(context)], self.discounts[len(context)]
        behind = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == context}
        if not behind:
            return lower
        taken = sum(d[min(count, 3) - 1] for count in behind.values())
        count = behind.get(token, 0)
        own = count - d[min(count, 3) - 1] if count else 0.0
        return (own + taken * lower) / sum(behind.values())

    def log_probs(self, documents: list[list[int]]) -> list[float]:
        return [
            math.log(self.p(tuple(document[:i]), token)) for document in documents for i, token in enumerate(document)
        ]


def flat(documents: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Documents as tokens and starts."""
    starts = np.cumsum([0, *map(len, documents[:-1])])
    return np.array([token for document in documents for token in document], dtype=np.int64), starts


def fit(documents: list[list[int]], vocab_size: int, order: int) -> KneserNey:
    tokens, starts = flat(documents)
    return KneserNey.fit(tokens, vocab_size=vocab_size, order=order, starts=starts)


def distribution(model: KneserNey, context: list[int]) -> np.ndarray:
    """p(token | context) for every token of the vocabulary."""
    documents = [[*context, token] for token in range(model.vocab_size)]
    return np.exp(model.log_probs(*flat(documents))[len(context) :: len(context) + 1])


corpora = st.lists(st.lists(st.integers(0, 5), max_size=12), min_size=1, max_size=8).filter(any)


@settings(max_examples=100, deadline=None)
@given(corpora, corpora, st.integers(1, 5))
def test_it_equals_the_definition(train: list[list[int]], held_out: list[list[int]], order: int) -> None:
    model, direct = fit(train, 7, order), Direct(train, 7, order)
    assert model.discounts == pytest.approx(np.array(direct.discounts))
    for documents in (train, held_out):
        assert model.log_probs(*flat(documents)) == pytest.approx(direct.log_probs(documents), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(corpora, st.lists(st.integers(0, 6), max_size=6), st.integers(1, 5))
def test_probabilities_sum_to_one_after_any_context(train: list[list[int]], context: list[int], order: int) -> None:
    p = distribution(fit(train, 7, order), context)
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    assert (p > 0).all()


def test_two_bigrams_by_hand() -> None:
    """0 1 0 2: of bigrams 01, 10, 02 each once; no count of counts above 1, so D1 = 0.5."""
    model = fit([[0, 1, 0, 2]], 4, 2)
    # 0 follows the beginning and 1; 1 and 2 follow 0. Counts 2, 1, 1 of 4; D1 = 1 - 2 * (2/4) * (1/2), D2 by default.
    unigram = {0: (2 - 1.0) / 4, 1: (1 - 0.5) / 4, 2: (1 - 0.5) / 4, 3: 0.0}
    p1 = {token: p + (0.5 * 2 + 1.0) / 4 / 4 for token, p in unigram.items()}
    assert distribution(model, []) == pytest.approx([p1[token] for token in range(4)])
    after_0 = [0.5 * p1[0], 0.25 + 0.5 * p1[1], 0.25 + 0.5 * p1[2], 0.5 * p1[3]]
    assert distribution(model, [0]) == pytest.approx(after_0)
    assert distribution(model, [2]) == pytest.approx([p1[token] for token in range(4)])  # nothing follows 2


def test_n_grams_do_not_cross_documents() -> None:
    apart, joined = fit([[0, 1], [2, 3]], 4, 2), fit([[0, 1, 2, 3]], 4, 2)
    assert distribution(joined, [1])[2] > distribution(apart, [1])[2]
    # What was read in one document says nothing in the next.
    tokens = np.array([0, 1, 0, 1])
    assert joined.log_probs(tokens, np.array([0, 2]))[2] == joined.log_probs(tokens[:1])[0]
    assert joined.log_probs(tokens)[2] != joined.log_probs(tokens[:1])[0]


def test_discounts_are_those_of_chen_and_goodman_and_fall_back_on_small_data() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [100, 40, 20, 10, 5])
    y = 100 / 180
    assert estimate_discounts(counts) == pytest.approx((1 - 2 * y * 0.4, 2 - 3 * y * 0.5, 3 - 4 * y * 0.5))
    assert estimate_discounts(np.array([7, 7])) == (0.5, 1.0, 1.5)
    assert estimate_discounts(np.repeat([1, 2, 3, 4], [10, 1, 90, 900]))[1:] == (1.0, 1.5)  # below 0


def test_a_longer_context_predicts_text_with_long_phrases_better_up_to_its_length() -> None:
    """A cycle over 40 tokens of 3 kinds whose 4-grams are unique: order 5 is almost certain, order 1 is not."""
    rng = np.random.default_rng(0)
    cycle = rng.integers(0, 3, 40)
    tokens = np.tile(cycle, 50).astype(np.uint16)
    loss = [-KneserNey.fit(tokens, vocab_size=3, order=k).log_probs(tokens[:400]).mean() for k in (1, 2, 3, 4, 5)]
    assert all(shorter > longer for shorter, longer in pairwise(loss))
    assert loss[0] > 0.9


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.int64])
def test_every_kind_of_integer_gives_the_same(kind: type) -> None:
    tokens = np.random.default_rng(1).integers(0, 60_000, 3000)
    wanted = KneserNey.fit(tokens, vocab_size=65_536).log_probs(tokens)
    assert (KneserNey.fit(tokens.astype(kind), vocab_size=65_536).log_probs(tokens.astype(kind)) == wanted).all()


def test_what_cannot_be_counted_is_told() -> None:
    some = np.array([0, 1, 2])
    with pytest.raises(DatasetError, match="id 3 is not in a vocabulary of 3"):
        KneserNey.fit(np.array([0, 3]), vocab_size=3)
    with pytest.raises(DatasetError, match="id -1"):
        KneserNey.fit(np.array([0, -1]), vocab_size=3)
    with pytest.raises(DatasetError, match="no tokens"):
        KneserNey.fit(some[:0], vocab_size=3)
    with pytest.raises(ConfigError, match="order"):
        KneserNey.fit(some, vocab_size=3, order=0)
    for starts in ([], [1], [0, 2, 1], [0, 4]):
        with pytest.raises(DatasetError, match="starts"):
            KneserNey.fit(some, vocab_size=3, starts=np.array(starts, dtype=np.int64))
    assert KneserNey.fit(some, vocab_size=3).log_probs(some[:0]).shape == (0,)
