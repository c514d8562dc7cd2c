"""Japanese BERT's tokenizers against transformers', and places in the text as it was."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiban.errors import ConfigError, FormatError
from kiban.inputs.backends import JapaneseBert
from kiban.inputs.japanese import normalise
from kiban.inputs.mecab import BLOCK, Mecab
from kiban.inputs.tokenizer import Tokenizer

KINDS = ("wordpiece", "character")
# MeCab takes some of these for words; WordPiece drops them, a carriage return between characters is unknown.
SPACES = [
    "あ\r\nい\tう",
    "\u200b\u2028\ufeff",
    "x\x0cy\x85z",
    "\x1c\x1d ア\r",
    "a b\n\nc \n",
    "\u3000全角\u00a0空白\u2003",
]


def folder_of(path: Path, vocabulary: list[str], kind: str, *, lower: bool = False) -> Path:
    path.mkdir(exist_ok=True)
    (path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    values = {
        "tokenizer_class": "BertJapaneseTokenizer",
        "word_tokenizer_type": "mecab",
        "subword_tokenizer_type": kind,
        "do_lower_case": lower,
        "mecab_kwargs": {"mecab_dic": "unidic_lite"},
        "model_max_length": 512,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(values), "utf-8")
    return path


def theirs(folder: Path) -> Any:
    from transformers import BertJapaneseTokenizer

    values = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    values.pop("tokenizer_class")
    return BertJapaneseTokenizer(vocab_file=str(folder / "vocab.txt"), **values)


@pytest.mark.parametrize("lower", [False, True], ids=["as it is", "lower"])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(
    kind: str,
    lower: bool,
    japanese_bert_vocabulary: list[str],
    japanese: list[str],
    hard: list[str],
    tmp_path: Path,
) -> None:
    folder = folder_of(tmp_path / "t", japanese_bert_vocabulary, kind, lower=lower)
    ours, reference = Tokenizer.from_folder(folder), theirs(folder)
    assert (ours.pad_id, ours.unk_id, ours.cls_id, ours.sep_id, ours.mask_id) == (0, 1, 2, 3, 4)
    assert ours.max_len == 512 and ours.vocab_size == len(japanese_bert_vocabulary)
    unknown = 0
    texts = [*japanese[:400], *(text for text in hard if "[" not in text), *SPACES]
    for text in texts:
        expected = reference(text)["input_ids"]
        assert ours.encode(text) == expected, text
        unknown += expected.count(1)
    assert unknown > 20, "the vocabulary should not know everything"
    pair = reference(texts[0], texts[1], return_token_type_ids=True)
    found = ours.encode_pair(texts[0], texts[1])
    assert (found.ids, found.segments) == (pair["input_ids"], pair["token_type_ids"])


def test_control_tokens_are_read_only_on_request(japanese_bert_vocabulary: list[str], tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "t", japanese_bert_vocabulary, "wordpiece")
    ours, reference = Tokenizer.from_folder(folder), theirs(folder)
    text = "東京は[MASK]の首都です[SEP]"
    assert ours.encode(text, parse_special=True) == reference(text)["input_ids"]
    assert ours.mask_id not in ours.encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_places_point_into_the_text_as_it_was(
    kind: str, japanese_bert_vocabulary: list[str], japanese: list[str], hard: list[str], tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_folder(folder_of(tmp_path / "t", japanese_bert_vocabulary, kind))
    tokens = japanese_bert_vocabulary
    for text in [*japanese[:100], *hard, "㈱ﾃｽﾄのﾃﾞｰﾀ、Ａ①は㌔か\u3099"]:
        found = tokenizer.encode_with_offsets(text)
        assert found.ids == tokenizer.encode(text)
        assert found.offsets[0] == found.offsets[-1] == (0, 0)
        for id, (start, end) in zip(found.ids[1:-1], found.offsets[1:-1], strict=True):
            assert 0 <= start < end <= len(text)
            if id != tokenizer.unk_id:
                assert tokens[id].removeprefix("##") in normalise(text[start:end]), text[start:end]


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.one_of(st.sampled_from("ｶﾞﾊﾟ㍿①Ａ東京のİ\u3099😀 a"), st.characters(codec="utf-8")), max_size=15))
def test_places_of_any_text_are_in_order_and_hold_the_token(
    text: str, japanese_bert_vocabulary: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    for kind, lower in (("wordpiece", True), ("character", False)):
        path = Path(tmp_path_factory.getbasetemp()) / f"any-{kind}"
        if not path.exists():
            folder_of(path, japanese_bert_vocabulary, kind, lower=lower)
        tokenizer = Tokenizer.from_folder(path)
        found = tokenizer.encode_with_offsets(text, add_special=False)
        starts = [start for start, _ in found.offsets]
        assert starts == sorted(starts) and all(start < end <= len(text) for start, end in found.offsets)
        for id, (start, end) in zip(found.ids, found.offsets, strict=True):
            token = japanese_bert_vocabulary[id].removeprefix("##")
            assert id == tokenizer.unk_id or token in normalise(
                normalise(text[start:end]).lower() if lower else text[start:end]
            )


def test_half_width_text_is_marked_where_it_stands(japanese_bert_vocabulary: list[str], tmp_path: Path) -> None:
    vocabulary = [*japanese_bert_vocabulary, "グラム"]
    tokenizer = Tokenizer.from_folder(folder_of(tmp_path / "t", list(dict.fromkeys(vocabulary)), "character"))
    text = "約ｸﾞﾗﾑ"
    places = tokenizer.encode_with_offsets(text, add_special=False).offsets
    assert [text[start:end] for start, end in places] == ["約", "ｸﾞ", "ﾗ", "ﾑ"]


def test_text_comes_back_in_pieces(japanese_bert_vocabulary: list[str], tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder_of(tmp_path / "t", japanese_bert_vocabulary, "wordpiece"))
    text = "数学に基くパズルゲーム"
    decoded = tokenizer.decode(tokenizer.encode(text))
    assert decoded.replace(" ", "") == text and "[CLS]" not in decoded
    assert "[CLS]" in tokenizer.decode(tokenizer.encode(text), skip_special=False)
    assert tokenizer.decode([5, tokenizer.vocab_size + 1]) == japanese_bert_vocabulary[5]


def test_a_saved_tokenizer_is_the_same(
    japanese_bert_vocabulary: list[str], japanese: list[str], tmp_path: Path
) -> None:
    for kind in KINDS:
        tokenizer = Tokenizer.from_folder(folder_of(tmp_path / kind, japanese_bert_vocabulary, kind))
        tokenizer.save(tmp_path / f"{kind}-saved")
        again = Tokenizer.from_folder(tmp_path / f"{kind}-saved")
        assert [again.encode(text) for text in japanese[:20]] == [tokenizer.encode(text) for text in japanese[:20]]
        reference = theirs(tmp_path / f"{kind}-saved")
        assert reference(japanese[0])["input_ids"] == again.encode(japanese[0])


def test_pairs_are_cut_from_the_second(
    japanese_bert_vocabulary: list[str], japanese: list[str], tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_folder(folder_of(tmp_path / "t", japanese_bert_vocabulary, "wordpiece"))
    first, second = japanese[0], japanese[1]
    a, b = (tokenizer.encode(text, add_special=False) for text in (first, second))
    for max_len in (len(a) + len(b) + 3, len(a) + 10, len(a) + 3, len(a), 5, 3):
        found = tokenizer.encode_pair(first, second, max_len=max_len)
        from_b = min(len(b), max(0, max_len - 3 - len(a)))
        from_a = min(len(a), max_len - 3)
        assert found.ids == [2, *a[:from_a], 3, *b[:from_b], 3]
        assert found.segments == [0] * (from_a + 2) + [1] * (from_b + 1)
        assert len(found.offsets) == len(found.ids)
    with pytest.raises(ConfigError, match="special"):
        tokenizer.encode_pair(first, second, max_len=2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_its_texts_give(
    kind: str, japanese_bert_vocabulary: list[str], japanese: list[str], hard: list[str], tmp_path: Path
) -> None:
    """Over several threads, with texts of very different lengths, empty ones among them."""
    folder = folder_of(tmp_path / "t", japanese_bert_vocabulary, kind)
    tokenizer, reference = Tokenizer.from_folder(folder), theirs(folder)
    texts = [*japanese, "", *hard, *SPACES, "\n".join(japanese[:200]), ""]
    assert sum(map(len, texts)) > 10 * BLOCK
    rows = tokenizer.encode_batch(texts)
    assert rows == [tokenizer.encode(text) for text in texts]
    assert rows == [tokenizer.encode_with_offsets(text).ids for text in texts]
    plain = [i for i, text in enumerate(texts) if "[" not in text]
    assert [rows[i] for i in plain] == [reference(texts[i])["input_ids"] for i in plain]


def test_threads_may_share_a_tokenizer(
    japanese_bert_vocabulary: list[str], japanese: list[str], tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_folder(folder_of(tmp_path / "t", japanese_bert_vocabulary, "wordpiece"))
    texts = japanese[:500]
    expected = tokenizer.encode_batch(texts)
    with ThreadPoolExecutor(8) as pool:
        for rows in pool.map(lambda _: tokenizer.encode_batch(texts), range(8)):
            assert rows == expected


def test_without_the_c_interface_the_ids_are_the_same(
    japanese_bert_vocabulary: list[str],
    japanese: list[str],
    hard: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for kind in KINDS:
        tokenizer = Tokenizer.from_folder(folder_of(tmp_path / kind, japanese_bert_vocabulary, kind))
        texts = [*japanese[:300], *hard, *SPACES]
        expected = tokenizer.encode_batch(texts)
        with monkeypatch.context() as patch:
            patch.setattr("kiban.inputs.mecab._Model.find", lambda: None)
            alone = Mecab()
            assert alone.num_threads == 1
            patch.setattr("kiban.inputs.japanese_bert.mecab", lambda found=alone: found)
            assert tokenizer.encode_batch(texts) == expected


def test_what_is_remembered_is_bounded(
    japanese_bert_vocabulary: list[str], japanese: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "t", japanese_bert_vocabulary, "wordpiece")
    tokenizer, other = Tokenizer.from_folder(folder), Tokenizer.from_folder(folder)
    texts = [*japanese[:200], "ア" * 300, "a" * 101]
    expected = other.encode_batch(texts)
    monkeypatch.setattr("kiban.inputs.japanese_bert.REMEMBERED", 20)
    for text, row in zip(texts, expected, strict=True):
        assert tokenizer.encode(text) == row
    assert isinstance(tokenizer.backend, JapaneseBert) and isinstance(other.backend, JapaneseBert)
    assert len(tokenizer.backend.subwords) <= 20 < len(other.backend.subwords)
    assert max(map(len, other.backend.subwords)) <= 64


def test_a_vocabulary_without_its_special_tokens_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "t", ["[PAD]", "[UNK]", "あ"], "character")
    with pytest.raises(FormatError, match=r"\[CLS\], \[SEP\]"):
        Tokenizer.from_folder(folder)
    (folder / "vocab.txt").write_bytes("[CLS]\n東京".encode("cp932"))
    with pytest.raises(FormatError, match="UTF-8"):
        Tokenizer.from_folder(folder)
