"""Trained tokenizers: they give every text back, open in transformers with the same ids, and do Japanese well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiban.errors import ConfigError, DatasetError
from kiban.inputs.learn import train_bpe, train_unigram, train_wordpiece
from kiban.inputs.tokenizer import Tokenizer

SIZE = 3000
TRAINERS = {"bpe": train_bpe, "unigram": train_unigram}


def per_token(tokenizer: Tokenizer, texts: list[str]) -> float:
    """Characters a token."""
    return sum(map(len, texts)) / sum(map(len, tokenizer.encode_batch(texts, add_special=False)))


@pytest.fixture(scope="module")
def trained(japanese: list[str], english: list[str]) -> dict[str, Tokenizer]:
    return {
        "bpe": train_bpe([*japanese[:1000], *english[:500]], vocab_size=SIZE),
        "unigram": train_unigram([*japanese[:1000], *english[:500]], vocab_size=SIZE),
        "mecab": train_wordpiece(japanese[:1000], vocab_size=SIZE),
        "sudachi": train_wordpiece(japanese[:300], vocab_size=SIZE, engine="sudachi", lower=True),
    }


@pytest.mark.parametrize("kind", ["bpe", "unigram", "mecab", "sudachi"])
def test_transformers_gives_the_same_ids(
    kind: str, trained: dict[str, Tokenizer], japanese: list[str], english: list[str], hard: list[str], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = trained[kind]
    tokenizer.save(tmp_path)
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path)
    # transformers reads control tokens that a text spells.
    texts = [*japanese[1000:1200], *english[500:600], *(text for text in hard if "<" not in text and "[" not in text)]
    if kind == "sudachi":
        texts = [text for text in texts if text.strip()]
    assert tokenizer.encode_batch(texts) == [theirs(text)["input_ids"] for text in texts]
    for name, token in tokenizer.special.items():
        assert getattr(theirs, f"{name}_token") == token
        assert getattr(theirs, f"{name}_token_id") == getattr(tokenizer, f"{name}_id")
    assert theirs.vocab_size == tokenizer.vocab_size <= SIZE


@pytest.mark.parametrize("kind", ["bpe", "unigram", "mecab"])
def test_a_saved_tokenizer_is_the_same(
    kind: str, trained: dict[str, Tokenizer], japanese: list[str], hard: list[str], tmp_path: Path
) -> None:
    trained[kind].save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    texts = [*japanese[1000:1100], *hard]
    assert again.encode_batch(texts) == trained[kind].encode_batch(texts)
    assert (again.special, again.vocab_size) == (trained[kind].special, trained[kind].vocab_size)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_every_text_comes_back(kind: str, trained: dict[str, Tokenizer], hard: list[str]) -> None:
    tokenizer = trained[kind]
    characters = st.characters(codec="utf-8", exclude_characters="\u2581" if kind == "unigram" else "")

    @settings(max_examples=200, deadline=None)
    @given(text=st.text(st.one_of(st.sampled_from("あア東京ーｱ゙1 \n\t<0x0A>|"), characters), max_size=40))
    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id} & set(ids)

    check()
    for text in [*hard, "<|endoftext|><|pad|><unk><0x41>", *(f"<0x{byte:02X}>" for byte in range(256))]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_japanese_and_english_share_the_vocabulary(
    kind: str, trained: dict[str, Tokenizer], japanese: list[str], english: list[str]
) -> None:
    assert per_token(trained[kind], japanese[1000:]) > 1.4
    assert per_token(trained[kind], english[500:]) > 2.5
    digits = trained[kind].encode("1234567890")
    assert len(digits) == 10


def test_three_digits_may_be_one_token(japanese: list[str]) -> None:
    texts = [*japanese[:100], *(["7777777 1234567"] * 50)]
    for tokenizer in (
        train_bpe(texts, vocab_size=1200, digits=3),
        train_unigram(texts, vocab_size=1200, split_digits=False),
    ):
        assert [tokenizer.decode([id]) for id in tokenizer.encode("7777777")] == ["777", "777", "7"]


def test_a_unigram_model_without_bytes_knows_no_more_than_its_characters(japanese: list[str]) -> None:
    tokenizer = train_unigram(japanese[:300], vocab_size=1500, byte_fallback=False)
    assert tokenizer.unk_id in tokenizer.encode("𩸽")
    assert tokenizer.backend.token_to_id("<0x41>") is None


def test_special_tokens_come_first_and_cannot_be_spelt(japanese: list[str]) -> None:
    special = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>"}
    controls = ["<|im_start|>", "<|im_end|>"]
    for train in TRAINERS.values():
        tokenizer = train(japanese[:200], vocab_size=1500, special=special, controls=controls)  # type: ignore[operator]
        assert [tokenizer.backend.token_to_id(t) for t in (*special.values(), *controls)] == [0, 1, 2, 3, 4, 5]
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id) == (0, 1, 2, 3)
        assert 5 in tokenizer.eos_ids, "a turn ends too"
        assert min(tokenizer.encode("<|im_start|></s>")) > 5
        assert tokenizer.encode("<|im_start|>", parse_special=True) == [4]


def test_the_end_of_a_text_is_not_the_padding(trained: dict[str, Tokenizer]) -> None:
    for kind in TRAINERS:
        tokenizer = trained[kind]
        assert tokenizer.eos_id == tokenizer.bos_id != tokenizer.pad_id
        assert tokenizer.encode("東京") == tokenizer.encode("東京", add_special=False)


def test_words_of_mecab_and_sudachi_become_tokens(trained: dict[str, Tokenizer]) -> None:
    text = "ＡＢＣのパッケージ"
    for kind in ("mecab", "sudachi"):
        tokenizer = trained[kind]
        ids = tokenizer.encode(text)
        assert (ids[0], ids[-1]) == (tokenizer.cls_id, tokenizer.sep_id)
        found = tokenizer.encode_with_offsets(text, add_special=False)
        assert found.ids == ids[1:-1]
        assert [text[start:end] for start, end in found.offsets][-2:] == ["の", "パッケージ"]
        spelt = tokenizer.decode(ids).replace(" ", "")
        assert spelt == ("ABCのパッケージ" if kind == "mecab" else "abcのパッケージ")


@pytest.mark.parametrize(
    "train",
    [
        lambda: train_bpe(["あ"], vocab_size=200),
        lambda: train_bpe(["あ"], vocab_size=2000, digits=4),
        lambda: train_unigram(["あ"], vocab_size=200),
        lambda: train_unigram(["あ"], vocab_size=2000, special={"eos": "</s>"}),
        lambda: train_wordpiece(["あ"], vocab_size=5),
        lambda: train_wordpiece(["あ"], vocab_size=500, engine="juman"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_cannot_be_are_told(train: Any) -> None:
    with pytest.raises(ConfigError):
        train()


def test_empty_texts_are_told() -> None:
    for train in (train_bpe, train_unigram, train_wordpiece):
        with pytest.raises(DatasetError, match="no word"):
            train([""], vocab_size=1000)  # type: ignore[operator]
