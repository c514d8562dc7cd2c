"""BM25 by hand, against Japanese text, and the mean reciprocal rank."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kiban.errors import ConfigError
from kiban.evaluate.ranking import Bm25, reciprocal_ranks, search_words

DOCUMENTS = [["a", "b", "a"], ["b", "c"], ["c", "c", "d", "e"]]


def by_hand(query: list[str], document: list[str], k1: float, b: float) -> float:
    total, mean = 0.0, sum(map(len, DOCUMENTS)) / len(DOCUMENTS)
    for word in query:
        n = sum(word in d for d in DOCUMENTS)
        idf = math.log(1 + (len(DOCUMENTS) - n + 0.5) / (n + 0.5))
        tf = document.count(word)
        if tf == 0:
            continue
        total += idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len(document) / mean))
    return total


@pytest.mark.parametrize("k1, b", [(1.2, 0.75), (0.9, 0.4), (2.0, 0.0), (0.0, 1.0)])
def test_scores_are_the_formula(k1: float, b: float) -> None:
    engine = Bm25(DOCUMENTS, k1=k1, b=b)
    for query in (["a"], ["b", "c"], ["c", "c", "e"], ["nowhere"], []):
        expected = [by_hand(query, document, k1, b) for document in DOCUMENTS]
        np.testing.assert_allclose(engine.scores(query), expected)


def test_a_word_of_most_documents_still_counts_for_them() -> None:
    assert (Bm25([["a", "b"], ["a"], ["a", "c"], ["d"]]).scores(["a"])[:3] > 0).all()


def test_the_best_come_first_and_equal_ones_in_their_order() -> None:
    places, scores = Bm25([["x"], ["y"], ["x"], ["x", "x"]]).top(["x"], 3)
    assert places.tolist() == [3, 0, 2]
    assert scores[0] > scores[1] == scores[2] > 0


def test_empty_documents_do_no_harm() -> None:
    assert Bm25([[], []]).scores(["a"]).tolist() == [0.0, 0.0]


def test_unfit_settings_are_refused() -> None:
    for documents, k1, b in (([], 1.2, 0.75), ([["a"]], -1.0, 0.75), ([["a"]], 1.2, 1.5)):
        with pytest.raises(ConfigError, match="BM25"):
            Bm25(documents, k1=k1, b=b)


def test_words_of_japanese_and_english() -> None:
    japanese, english = search_words(["画像を編集するﾌﾟﾛｸﾞﾗﾑです。", "An IRC-client, for GNOME!"])
    assert japanese[:3] == ["画像", "を", "編集"]
    assert "プログラム" in japanese  # half-width letters are the usual ones
    assert not {"。", "!", ",", "-"} & {*japanese, *english}
    assert {"irc", "client", "gnome"} <= set(english)


def test_japanese_passages_are_found_by_their_words() -> None:
    passages = ["東京都の天気を表示する", "京都の寺を案内する", "音声を録音する道具"]
    engine = Bm25(search_words(passages))
    (query,) = search_words(["京都の案内"])
    assert engine.top(query, 1)[0].tolist() == [1]  # 東京都 holds the letters of 京都 but not the word


def test_reciprocal_ranks_end_at_the_depth() -> None:
    rankings = [np.array([4, 2, 7]), np.array([4, 2, 7]), [1, 0], np.arange(20)]
    assert reciprocal_ranks(rankings, [4, 7, 9, 10]).tolist() == [1.0, 1 / 3, 0.0, 0.0]
    assert reciprocal_ranks(rankings[3:], [10], depth=11).tolist() == [1 / 11]
