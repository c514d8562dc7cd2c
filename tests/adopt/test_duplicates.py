"""Copies and near-copies end up in one group, others do not; against a comparison of all pairs."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiban.adopt.duplicates import NGRAM, SIMILARITY, groups, normal_form
from kiban.data.tables import read_table


def ngrams(text: str) -> set[str]:
    form = normal_form(text)
    return {form[i : i + NGRAM] for i in range(max(1, len(form) - NGRAM + 1))}


def similarity(a: str, b: str) -> float:
    """Jaccard of the sets of n-grams, by the book."""
    return len(ngrams(a) & ngrams(b)) / len(ngrams(a) | ngrams(b))


def by_all_pairs(texts: Sequence[str]) -> list[int]:
    """Groups without any shortcut."""
    number, sets = list(range(len(texts))), [ngrams(text) for text in texts]
    for i, j in itertools.combinations(range(len(texts)), 2):
        if number[i] != number[j] and len(sets[i] & sets[j]) >= SIMILARITY * len(sets[i] | sets[j]):
            old = number[j]
            number = [number[i] if n == old else n for n in number]
    seen: dict[int, int] = {}
    return [seen.setdefault(n, len(seen)) for n in number]


def changed(text: str, rng: random.Random, share: float) -> str:
    """text with a share of its characters, at its end, replaced."""
    keep = round(len(text) * (1 - share))
    return text[:keep] + "".join(rng.choice("あいうえおabcde漢字") for _ in range(len(text) - keep))


def test_width_case_and_spaces_make_no_difference() -> None:
    texts = ["ﾃﾞｰﾀベース ＡＢＣ", "データベースabc", "データ\u3000ベースＡｂＣ\n", "データベースabd"]
    assert groups(texts) == [0, 0, 0, 1]


@pytest.mark.parametrize("name", ["debian-ja.csv", "debian-en.csv"])
def test_real_texts_are_grouped_as_by_comparing_all_pairs(name: str) -> None:
    table = read_table(Path(__file__).parents[2] / "examples" / "data" / name)
    texts = [row[table.columns[1]] for row in table.rows[:150]]
    rng = random.Random(1)
    texts += [changed(text, rng, rng.uniform(0, 0.3)) for text in texts[:100]]
    rng.shuffle(texts)
    assert groups(texts) == by_all_pairs(texts)


def test_chains_make_one_group() -> None:
    rng = random.Random(0)
    chain = ["".join(rng.choice("いろはにほへとちりぬるを") for _ in range(200))]
    for _ in range(6):
        chain.append(chain[-1][14:] + "".join(rng.choice("わかよたれそつねならむ") for _ in range(14)))
    assert similarity(chain[0], chain[-1]) < SIMILARITY <= min(map(similarity, chain, chain[1:]))
    assert groups(chain) == [0] * len(chain)
    assert len(set(groups(chain[::3]))) == 3


def test_boilerplate_does_not_join_texts_nor_hide_copies() -> None:
    rng = random.Random(0)
    word = lambda n: "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(n))  # noqa: E731
    template = " ".join(word(6) for _ in range(30))
    texts = [f"{template} {' '.join(word(6) for _ in range(12))}" for _ in range(300)]
    texts += [text[:-12] + word(12) for text in texts[:100]]
    numbers = groups(texts)
    assert 0.5 < similarity(texts[0], texts[1]) < 0.7
    assert len(set(numbers)) == 300
    assert [numbers.index(numbers[300 + i]) for i in range(100)] == list(range(100))


@given(st.lists(st.text(max_size=12), max_size=12))
@settings(max_examples=100, deadline=None)
def test_any_text_has_a_group_and_equal_texts_the_same(texts: list[str]) -> None:
    numbers = groups([*texts, *texts])
    assert numbers[: len(texts)] == numbers[len(texts) :]
    assert sorted(set(numbers)) == list(range(len(set(numbers))))
    assert numbers[: len(texts)] == by_all_pairs(texts)


def test_five_thousand_texts_take_seconds_even_if_all_are_alike(small_rows: list[tuple[str, str]]) -> None:
    texts = [f"{small_rows[i % 150][0]}。番号{i * i}の品です。" for i in range(2500)]
    texts += [f"ご注文ありがとうございました。商品の発送が完了しましたのでお知らせいたします。{i}" for i in range(2500)]
    start = time.process_time()
    numbers = groups(texts)
    assert time.process_time() - start < 8
    assert len(set(numbers[2500:])) == 1
