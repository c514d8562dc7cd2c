"""Whole words are hidden, as many as promised, in English and in Japanese."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kiban.data.corruption import WordMasking, continues
from kiban.errors import ConfigError
from kiban.inputs.japanese import words
from kiban.inputs.tokenizer import Tokenizer

# 0 to 4 are special, 5 to 11 begin words, 12 to 19 go on with one.
VOCAB, MASK = 20, 4
IDS = torch.arange(VOCAB)
MASKING = WordMasking(continues=IDS >= 12, special=IDS < 5, mask_id=MASK)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def words_of(row: list[int]) -> list[list[int]]:
    """Places of each word, one token after the other."""
    words: list[list[int]] = []
    for place, id in enumerate(row):
        if id < 5:
            continue
        if id >= 12 and place and row[place - 1] >= 5:
            words[-1].append(place)
        else:
            words.append([place])
    return words


rows = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(rows, st.floats(0.05, 0.9), st.integers(0, 2**32))
def test_each_row_hides_its_share_of_whole_words_and_nothing_else(
    drawn: list[list[int]], rate: float, seed: int
) -> None:
    length = max(map(len, drawn))
    tokens = torch.tensor([row + [0] * (length - len(row)) for row in drawn])
    hidden, labels = WordMasking(MASKING.continues, MASKING.special, MASK, rate)(tokens, generator(seed))
    for before, after, label in zip(tokens.tolist(), hidden.tolist(), labels.tolist(), strict=True):
        chosen = [place for place, id in enumerate(label) if id != -100]
        words = words_of(before)
        whole = [word for word in words if word[0] in chosen]
        assert sorted(place for word in whole for place in word) == chosen
        assert len(whole) == min(len(words), max(1, round(rate * len(words))))
        assert all(label[place] == before[place] for place in chosen)
        assert all(after[i] == before[i] for i in range(length) if i not in chosen)
        assert all(after[i] == MASK or after[i] >= 5 for i in chosen)


def test_eighty_ten_ten() -> None:
    tokens = torch.randint(5, VOCAB, (200, 100), generator=generator())
    hidden, labels = MASKING(tokens, generator(1))
    chosen = labels != -100
    total = int(chosen.sum())
    masked, same = int((hidden == MASK).sum()) / total, int((hidden == tokens)[chosen].sum()) / total
    random = hidden[chosen & (hidden != MASK) & (hidden != tokens)]
    # A random token is the same one in 1 of 15; three standard deviations of 3,000 draws.
    assert masked == pytest.approx(0.8, abs=0.022)
    assert same == pytest.approx(0.1 + 0.1 / 15, abs=0.018)
    assert len(random) / total == pytest.approx(0.1 * 14 / 15, abs=0.016)
    assert random.unique().tolist() == list(range(5, VOCAB))


def test_long_words_and_every_place_are_hidden_as_often_as_any() -> None:
    row = torch.tensor([[1, 5, 12, 13, 14, 6, 7, 12, 8, 9, 10, 11, 5, 6, 7, 2]]).expand(20_000, -1)
    _, labels = MASKING(row, generator(2))
    share = (labels != -100).float().mean(0)
    ordinary = share[1:-1]
    assert float(share[0]) == float(share[-1]) == 0.0
    assert (ordinary - 2 / 10).abs().max() < 0.012  # round(0.15 * 10) of 10 words


def test_a_generator_repeats_and_rows_differ() -> None:
    tokens = torch.randint(5, 12, (8, 60), generator=generator())
    first, again, other = (MASKING(tokens, generator(seed))[1] for seed in (3, 3, 4))
    assert (first == again).all()
    assert not (first == other).all()
    alike = MASKING(tokens[:1].expand(8, -1), generator(3))[1]
    assert len({tuple(row) for row in alike.tolist()}) > 1


def test_a_row_without_words_stays_as_it_is() -> None:
    tokens = torch.tensor([[1, 2, 0, 0]])
    hidden, labels = MASKING(tokens, generator())
    assert (hidden == tokens).all()
    assert (labels == -100).all()


def hidden_texts(tokenizer: Tokenizer, text: str, seeds: range) -> set[str]:
    """What is hidden of a text of which one word in seven is."""
    masking = WordMasking.of(tokenizer, rate=0.1)
    tokens = torch.tensor([tokenizer.encode(text)])

    def decoded(labels: Tensor) -> str:
        return tokenizer.decode(labels[labels != -100].tolist())

    return {decoded(masking(tokens, generator(seed))[1]) for seed in seeds}


def test_english_words_of_a_real_vocabulary(tiny_bert_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(tiny_bert_folder)
    text = "the installer configures uncommonly spelled filesystems"
    assert len(tokenizer.encode(text)) > 8  # pieces
    assert hidden_texts(tokenizer, text, range(60)) == set(text.split())
    masking = WordMasking.of(tokenizer)
    assert masking.special.nonzero().squeeze(1).tolist() == sorted(tokenizer.backend.control_tokens().values())


@pytest.fixture
def japanese(tmp_path: Path) -> Tokenizer:
    pieces = ["美", "##しい", "フォル", "##ダー", "を", "使", "##っ", "た", "。"]
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "##", *pieces]) + "\n", "utf-8"
    )
    settings = '{"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab", "subword_tokenizer_type": '
    settings += (
        '"wordpiece", "mecab_kwargs": {"mecab_dic": "unidic_lite"}, "mask_token": "[MASK]", "pad_token": "[PAD]"}'
    )
    (tmp_path / "tokenizer_config.json").write_text(settings, "utf-8")
    return Tokenizer.from_folder(tmp_path)


def test_japanese_words_are_those_of_mecab(japanese: Tokenizer) -> None:
    assert continues(japanese).nonzero().squeeze(1).tolist() == [7, 9, 12]  # and not "##" itself
    text = "美しいフォルダーを使った。"
    assert len(japanese.encode(text, add_special=False)) == 9
    found = hidden_texts(japanese, text, range(60))
    assert found == {word.surface for word in words(text)} == {"美しい", "フォルダー", "を", "使っ", "た", "。"}


def test_a_tokenizer_that_is_not_wordpiece_is_refused(byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"\[MASK\]"):
        WordMasking.of(byte_tokenizer)
    with pytest.raises(ConfigError, match="WordPiece"):
        continues(byte_tokenizer)
    with pytest.raises(ConfigError, match="rate"):
        WordMasking(MASKING.continues, MASKING.special, MASK, rate=1.0)
