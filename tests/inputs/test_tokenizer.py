"""The tokenizer's face: real models against transformers, cutting, streams, saving, broken folders."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kiban.errors import ConfigError, FormatError, KibanError, ModelNotFoundError
from kiban.inputs.tokenizer import Tokenizer, pad_batch

MIXED = st.text(
    st.one_of(st.sampled_from("あいう東京、。ｶﾞ😀👩\u200d🇯🇵𠮷é\ufffd\n  ab1"), st.characters(codec="utf-8")), max_size=30
)


@pytest.fixture(scope="module")
def minilm(minilm_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(minilm_folder)


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> Tokenizer:
    from kiban.weights.gguf import read_gguf

    with read_gguf(smollm2_gguf) as file:
        return Tokenizer.from_gguf(file.metadata)


@pytest.fixture(scope="module")
def byte_level(byte_level_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(byte_level_folder)


# A real encoder ----------------------------------------------------------------------------------------------------


@pytest.mark.weights
def test_ids_of_minilm_are_those_of_transformers(
    minilm: Tokenizer, minilm_folder: Path, japanese: list[str], english: list[str], hard: list[str]
) -> None:
    from transformers import AutoTokenizer

    # Two, for transformers' keeps a truncation that it was once asked for.
    theirs, cutting = (AutoTokenizer.from_pretrained(minilm_folder) for _ in range(2))
    assert (minilm.pad_id, minilm.cls_id, minilm.sep_id) == (
        theirs.pad_token_id,
        theirs.cls_token_id,
        theirs.sep_token_id,
    )
    assert (minilm.mask_id, minilm.unk_id) == (theirs.mask_token_id, theirs.unk_token_id)
    texts = [*japanese[:100], *english[:100], *(text for text in hard if "[" not in text)]
    expected = theirs(texts)["input_ids"]
    assert minilm.encode_batch(texts) == expected
    cut = cutting(texts, truncation=True, max_length=16)["input_ids"]
    assert minilm.encode_batch(texts, max_len=16) == cut
    places = theirs(texts, return_offsets_mapping=True)["offset_mapping"]
    assert [minilm.encode_with_offsets(text).offsets for text in texts] == places
    for first, second in zip(texts, reversed(texts), strict=True):
        if not second:
            continue  # to transformers, no pair
        pair = theirs(first, second, return_token_type_ids=True)
        found = minilm.encode_pair(first, second)
        assert (found.ids, found.segments) == (pair["input_ids"], pair["token_type_ids"])
        if len(minilm.encode(first)) < 60:
            pair = cutting(first, second, truncation="only_second", max_length=64, return_token_type_ids=True)
            found = minilm.encode_pair(first, second, max_len=64)
            assert (found.ids, found.segments) == (pair["input_ids"], pair["token_type_ids"])
    assert [minilm.decode(ids) for ids in expected] == theirs.batch_decode(expected, skip_special_tokens=True)


@pytest.mark.weights
def test_a_vocabulary_alone_gives_the_same_ids(
    minilm: Tokenizer, minilm_folder: Path, japanese: list[str], english: list[str], hard: list[str], tmp_path: Path
) -> None:
    vocabulary = json.loads((minilm_folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n", "utf-8")
    alone = Tokenizer.from_folder(tmp_path)
    assert alone.vocab_size == minilm.vocab_size and alone.mask_id == minilm.mask_id
    texts = [*japanese[:60], *english[:60], *hard]
    assert alone.encode_batch(texts) == minilm.encode_batch(texts)


# A real decoder ----------------------------------------------------------------------------------------------------


@pytest.mark.weights
def test_ids_of_smollm2_are_those_of_transformers(
    smollm2: Tokenizer, smollm2_gguf: Path, japanese: list[str], english: list[str], hard: list[str], tmp_path: Path
) -> None:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from kiban.weights.gguf import read_gguf

    with read_gguf(smollm2_gguf) as file:
        tokens, merges = (file.metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "merges"))
    library = Library(models.BPE({t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges]))
    # As published in the model's tokenizer.json.
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    library.decoder = decoders.ByteLevel()
    theirs = PreTrainedTokenizerFast(tokenizer_object=library)
    assert smollm2.vocab_size == len(tokens) == 49_152
    texts = [*japanese[:100], *english[:100], *hard]
    expected = theirs(texts)["input_ids"]
    assert smollm2.encode_batch(texts) == expected
    assert [smollm2.decode(ids) for ids in expected] == texts
    assert smollm2.eos_ids == {smollm2.backend.token_to_id("<|im_end|>")} == {2}
    assert smollm2.max_len == 8192


@pytest.mark.weights
def test_a_saved_gguf_tokenizer_opens_in_transformers(
    smollm2: Tokenizer, japanese: list[str], hard: list[str], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    smollm2.save(tmp_path)
    theirs, again = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_folder(tmp_path)
    texts = [*japanese[:30], *hard]
    assert theirs(texts)["input_ids"] == smollm2.encode_batch(texts) == again.encode_batch(texts)
    messages = [{"role": "user", "content": "こんにちは"}]
    prompt = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert prompt == smollm2.chat(messages) == again.chat(messages)
    assert (again.eos_id, again.eos_ids, again.max_len) == (smollm2.eos_id, smollm2.eos_ids, smollm2.max_len)


def test_the_splits_of_qwen_and_llama3_are_theirs(
    byte_level_folder: Path, japanese: list[str], hard: list[str]
) -> None:
    """The patterns as the models publish them, on a small vocabulary."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Library

    values = json.loads((byte_level_folder / "tokenizer.json").read_text("utf-8"))["model"]
    tokens = sorted(values["vocab"], key=values["vocab"].get)
    merges = [" ".join(merge) for merge in values["merges"]]
    qwen2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for name, pattern in (("qwen2", qwen2), ("llama-bpe", qwen2.replace(r"|\p{N}|", r"|\p{N}{1,3}|"))):
        library = Library(models.BPE(values["vocab"], [tuple(merge) for merge in values["merges"]]))
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        library.pre_tokenizer = pre_tokenizers.Sequence([split, bare])
        library.decoder = decoders.ByteLevel()
        if name == "qwen2":
            library.normalizer = normalizers.NFC()
        metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name}
        metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": merges}
        ours = Tokenizer.from_gguf(metadata)
        for text in [*japanese[:30], *hard, "I'LL don't 12345 x\n\n y"]:
            assert ours.encode(text) == library.encode(text).ids, (name, text)


@pytest.mark.parametrize(
    ("field", "value"),
    [("merges", None), ("merges", ["a"]), ("merges", ["q q"]), ("merges", [3]), ("pre", "unheard-of"), ("pre", ["x"])],
)
def test_byte_level_metadata_without_sense_are_refused(field: str, value: Any) -> None:
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b", "ab"]}
    metadata |= {"tokenizer.ggml.merges": ["a b"]}
    Tokenizer.from_gguf(metadata)
    with pytest.raises(FormatError):
        Tokenizer.from_gguf(metadata | {f"tokenizer.ggml.{field}": value})


# Cutting, padding --------------------------------------------------------------------------------------------------


def test_cutting_keeps_the_tokens_at_the_ends(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("東京の天気は晴れです")
    assert ids[0] == byte_level.bos_id
    assert byte_level.encode("東京の天気は晴れです", max_len=5) == ids[:5]
    assert byte_level.encode("東京の天気は晴れです", max_len=1) == ids[:1]
    assert byte_level.encode("東京", max_len=10**6) == byte_level.encode("東京")
    bare = byte_level.encode("東京の天気は晴れです", add_special=False)
    assert bare == ids[1:] and byte_level.encode("東京の天気は晴れです", add_special=False, max_len=0) == []
    with pytest.raises(ConfigError, match="special"):
        byte_level.encode("東京", max_len=0)


@given(st.lists(st.lists(st.integers(1, 99), max_size=6), max_size=5), st.sampled_from(["left", "right"]))
def test_padding_is_undone_by_its_mask(rows: list[list[int]], side: Any) -> None:
    tokens, mask = pad_batch(rows, 0, side=side)
    assert tokens.shape == mask.shape == (len(rows), max([1, *map(len, rows)]))
    assert tokens.dtype == torch.int64 and mask.dtype == torch.bool
    assert [tokens[i][mask[i]].tolist() for i in range(len(rows))] == rows
    assert not tokens[~mask].any()
    for i, row in enumerate(rows):
        assert mask[i, -1 if side == "left" else 0] == bool(row)


def test_half_a_character_becomes_the_replacement_character(byte_level: Tokenizer) -> None:
    assert byte_level.decode(byte_level.encode("a\ud83db")) == "a\ufffdb"


# Streams -----------------------------------------------------------------------------------------------------------


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.push(id) for id in ids), stream.finish()]


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "rebuilt"])
@settings(max_examples=150, deadline=None)
@given(text=MIXED)
def test_a_stream_gives_whole_characters_and_the_whole_text(
    kind: str, text: str, byte_level: Tokenizer, sentencepiece: Tokenizer, rebuilt: Tokenizer
) -> None:
    tokenizer = {"byte_level": byte_level, "sentencepiece": sentencepiece, "rebuilt": rebuilt}[kind]
    ids = tokenizer.encode(text)
    parts = pieces(tokenizer, ids)
    assert "".join(parts) == tokenizer.decode(ids) == text
    assert "".join(parts).count("\ufffd") == text.count("\ufffd")


@pytest.fixture(scope="module")
def sentencepiece(sentencepiece_model: Path) -> Tokenizer:
    return Tokenizer.from_sentencepiece(sentencepiece_model)


@pytest.fixture(scope="module")
def rebuilt(sentencepiece_model: Path) -> Tokenizer:
    """The same model in the `tokenizers` library, whose decoder reads a run of bytes as a whole."""
    import sentencepiece as library

    model = library.SentencePieceProcessor(model_file=str(sentencepiece_model))
    size = model.vocab_size()
    kinds = [
        3 if model.is_control(i) else 2 if model.is_unknown(i) else 6 if model.is_byte(i) else 1 for i in range(size)
    ]
    return Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in range(size)],
            "tokenizer.ggml.scores": [float(model.get_score(i)) for i in range(size)],
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
        }
    )


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "rebuilt"])
def test_a_long_run_of_rare_characters_is_not_held_back(
    kind: str, byte_level: Tokenizer, sentencepiece: Tokenizer, rebuilt: Tokenizer
) -> None:
    tokenizer = {"byte_level": byte_level, "sentencepiece": sentencepiece, "rebuilt": rebuilt}[kind]
    text = "あ" + "𠮷齉龘鱻" * 12 + "です"
    parts = pieces(tokenizer, tokenizer.encode(text))
    assert "".join(parts) == text
    assert sum(bool(part) for part in parts) > 40, "each character comes as soon as it is whole"


@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.integers(0, 1199), max_size=60))
def test_a_stream_of_any_bytes_is_their_text(ids: list[int], byte_level: Tokenizer) -> None:
    assert "".join(pieces(byte_level, ids)) == byte_level.decode(ids)


def test_control_tokens_are_shown_only_on_request(byte_level: Tokenizer) -> None:
    assert byte_level.eos_id is not None
    ids = [*byte_level.encode("はい"), byte_level.eos_id]
    shown = byte_level.stream(skip_special=False)
    assert "".join(map(shown.push, ids)) == "<|endoftext|>はい<|im_end|>"
    assert "".join(pieces(byte_level, ids)) == "はい"


# Folders -----------------------------------------------------------------------------------------------------------


def test_a_folder_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("config", ["{", "[]", "3", "\x00", '{"a": ' + "[" * 100_000])
def test_broken_settings_are_refused(config: str, byte_level_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((byte_level_folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(config, "utf-8")
    with pytest.raises(FormatError, match="tokenizer_config"):
        Tokenizer.from_folder(tmp_path)


def test_settings_of_the_wrong_kind_are_passed_over(byte_level_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((byte_level_folder / "tokenizer.json").read_bytes())
    odd = {"eos_token": 5, "bos_token": {"content": ["x"]}, "pad_token": None, "chat_template": {"a": 1}}
    odd |= {"model_max_length": 1e30, "unk_token": {"content": "<|im_end|>"}, "sep_token": "not there"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(odd), "utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id, tokenizer.sep_id) == (None,) * 4
    assert tokenizer.unk_id == 2 and tokenizer.max_len is None and tokenizer.chat_template is None


def test_a_template_is_found_in_its_file_and_among_named_ones(byte_level_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((byte_level_folder / "tokenizer.json").read_bytes())
    named = {"chat_template": [3, {"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named), "utf-8")
    assert Tokenizer.from_folder(tmp_path).chat_template == "d"
    (tmp_path / "chat_template.jinja").write_text("ファイル", "utf-8")
    assert Tokenizer.from_folder(tmp_path).chat_template == "ファイル"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(FormatError, match="chat_template"):
        Tokenizer.from_folder(tmp_path)


def test_every_tokenizer_error_is_ours(byte_level_folder: Path) -> None:
    with pytest.raises(KibanError):
        Tokenizer.from_gguf({})


def test_importing_the_tokenizer_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import kiban.inputs.tokenizer, sys; sys.exit(bool({'torch', 'transformers', 'sudachipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
