"""Pairs of passages are what they say they are, and the same every time."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kiban.data.corruption import WordMasking
from kiban.data.loader import Loader
from kiban.data.next_sentence import Row, SentencePairs, collate
from kiban.errors import ConfigError, DatasetError
from kiban.inputs.sentences import sentences

CLS, SEP, PAD, MASK = 1, 2, 0, 3
VOCAB = 150_000


def masking(rate: float = 0.15) -> WordMasking:
    none = torch.zeros(VOCAB, dtype=torch.bool)
    special = none.clone()
    special[:4] = True
    return WordMasking(none, special, MASK, rate)


def documents(count: int = 60, seed: int = 0) -> list[list[list[int]]]:
    """Every token of the corpus is another one, so a passage tells where it is from."""
    rng, fresh = np.random.default_rng(seed), iter(range(10, VOCAB))
    return [
        [[next(fresh) for _ in range(rng.integers(3, 25))] for _ in range(rng.integers(4, 20))] for _ in range(count)
    ]


def build(texts: list[list[list[int]]] | None = None, **changes: Any) -> SentencePairs:
    settings = {"cls_id": CLS, "sep_id": SEP, "max_len": 64, "seed": 7, **changes}
    return SentencePairs(texts or documents(), settings.pop("masking", masking()), **settings)


def passages(row: Row) -> tuple[list[int], list[int]]:
    """A and B as they were before words were hidden."""
    whole = [label if label != -100 else id for id, label in zip(row.tokens, row.labels, strict=True)]
    assert whole[0] == CLS
    assert whole.count(SEP) == 2
    assert whole[-1] == SEP
    middle = whole.index(SEP)
    assert row.segments == [0] * (middle + 1) + [1] * (len(whole) - middle - 1)
    return whole[1:middle], whole[middle + 1 : -1]


def test_a_second_passage_follows_the_first_or_is_of_another_document() -> None:
    texts = documents()
    home = {id: number for number, document in enumerate(texts) for sentence in document for id in sentence}
    ends = {sentence[-1] for document in texts for sentence in document}
    pairs = build(texts)
    for row in pairs:
        a, b = passages(row)
        assert a
        assert b
        assert len(row.tokens) == len(a) + len(b) + 3 <= 64
        assert a == list(range(a[0], a[-1] + 1))  # one piece of text
        assert b == list(range(b[0], b[-1] + 1))
        if row.random_next:
            assert home[a[0]] != home[b[0]]
        else:
            assert home[a[0]] == home[b[0]]
            between = set(range(a[-1], b[0]))
            assert between & ends  # a sentence ends between them
            assert len(between) == 1 or len(row.tokens) == 64  # what lies between was cut to fit


def test_half_of_the_second_passages_are_random() -> None:
    pairs = build(documents(400), num_epochs=3)
    share = pairs.pairs[:, 4].mean()
    # Rows of one sentence, at the ends of documents, are random on top of the half.
    assert len(pairs) > 3000
    assert 0.5 < share < 0.62
    long = [[[id] for id in range(start, start + 4000)] for start in (10, 5000, 10_000)]
    assert build(long, num_epochs=20).pairs[:, 4].mean() == pytest.approx(0.5, abs=0.025)


def test_all_text_is_used_and_rows_are_full() -> None:
    texts = documents()
    used = {id for row in build(texts, short=0.0) for id in passages(row)[0]}
    used |= {id for row in build(texts, short=0.0) if not row.random_next for id in passages(row)[1]}
    total = sum(len(sentence) for document in texts for sentence in document)
    assert len(used) > 0.85 * total  # the rest was cut, or ended a row before a random passage
    lengths = [len(row.tokens) for row in build(texts, short=0.0)]
    assert np.mean([length == 64 for length in lengths]) > 0.7


def test_some_documents_have_short_rows() -> None:
    texts = documents(200)
    lengths = {short: np.mean([len(row.tokens) for row in build(texts, short=short)]) for short in (0.0, 0.1, 1.0)}
    assert lengths[0.0] > lengths[0.1] > lengths[1.0]


def test_a_row_depends_on_seed_epoch_and_place_alone() -> None:
    one, other = build(num_epochs=2), build(num_epochs=2)
    wanted = [one[i] for i in range(len(one))]
    for i in reversed(range(len(other))):  # in whatever order
        assert other[i] == wanted[i]
    assert [build()[i] for i in range(20)] == wanted[:20]  # more epochs change nothing in the first
    second = [one[one.epochs[1] + i] for i in range(20)]
    assert second != wanted[:20]
    assert [build(seed=8)[i] for i in range(20)] != wanted[:20]


def test_words_are_hidden_anew_in_each_epoch() -> None:
    """Two documents of one sentence each, so the pairs are the same every time."""
    texts = [[list(range(10, 40))], [list(range(50, 80))]]
    pairs = build(texts, num_epochs=5, short=0.0)
    assert len(pairs) == 10
    hidden = [tuple(row.labels) for row in pairs]
    assert len(set(hidden)) == 10
    assert {sum(id != -100 for id in labels) for labels in hidden} == {9}  # round(0.15 * 60)
    assert pairs.hidden_per_row == pytest.approx(9.0)


def test_hidden_tokens_per_row_are_foreseen() -> None:
    pairs = build(documents(200))
    found = np.mean([sum(id != -100 for id in row.labels) for row in pairs])
    assert pairs.hidden_per_row == pytest.approx(found, rel=0.02)  # budgets are whole words


def test_a_batch_is_padded_in_every_part_through_a_loader() -> None:
    pairs = build()
    loader = Loader(pairs, partial(collate, pad_id=PAD), batch_size=4, seed=0)
    ids = loader.next_ids()
    batch: dict[str, Tensor] = loader.batch(ids)
    assert set(batch) == {"tokens", "mask", "segments", "labels", "random_next"}
    for i, number in enumerate(ids):
        row, size = pairs[number], len(pairs[number].tokens)
        assert batch["tokens"][i, :size].tolist() == row.tokens
        assert batch["segments"][i, :size].tolist() == row.segments
        assert batch["labels"][i, :size].tolist() == row.labels
        assert int(batch["random_next"][i]) == row.random_next
        assert batch["mask"][i].sum() == size
        assert (batch["tokens"][i, size:] == PAD).all()
        assert (batch["labels"][i, size:] == -100).all()


def test_japanese_and_english_texts_become_pairs() -> None:
    texts = ["今日は晴れた。明日は雨だろう。傘を持って行く。", "It rained. We stayed at home. Nobody came."]
    split = [[[ord(c) for c in sentence] for sentence in sentences(text)] for text in texts]
    assert [len(document) for document in split] == [3, 3]
    pairs = build([document * 5 for document in split], num_epochs=3)
    followed = ["".join(map(chr, passages(row)[0])) for row in pairs if not row.random_next]
    assert any(text.startswith("今日は") for text in followed)


def test_what_cannot_be_paired_is_told() -> None:
    with pytest.raises(DatasetError, match="two documents"):
        build([[[5, 6]], [[]], []])
    with pytest.raises(ConfigError, match="max_len"):
        build(max_len=4)
    assert all(len(row.tokens) == 5 for row in build(max_len=5))
