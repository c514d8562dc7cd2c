"""sentencepiece models, and the same model rebuilt from the metadata of a GGUF file, against the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiban.errors import ConfigError, FormatError
from kiban.inputs.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def library(path: Path) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def gguf_metadata(path: Path) -> dict[str, Any]:
    """What llama.cpp's converter writes for a sentencepiece model."""
    model = library(path)
    tokens, scores, types = [], [], []
    for i in range(model.vocab_size()):
        piece = model.id_to_piece(i)
        tokens.append(piece)
        scores.append(float(model.get_score(i)))
        kinds = (
            (model.is_unknown, UNKNOWN),
            (model.is_control, CONTROL),
            (model.is_unused, UNUSED),
            (model.is_byte, BYTE),
        )
        kind = next((number for test, number in kinds if test(i)), NORMAL)
        types.append(USER_DEFINED if piece == "<0_0>" else kind)
    return {
        "general.architecture": "llama",
        "llama.context_length": 2048,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


@pytest.fixture(scope="module")
def reference(sentencepiece_model: Path) -> Any:
    return library(sentencepiece_model)


@pytest.fixture(scope="module")
def direct(sentencepiece_model: Path) -> Tokenizer:
    return Tokenizer.from_sentencepiece(sentencepiece_model)


@pytest.fixture(scope="module")
def rebuilt(sentencepiece_model: Path) -> Tokenizer:
    return Tokenizer.from_gguf(gguf_metadata(sentencepiece_model))


@pytest.mark.parametrize("kind", ["direct", "rebuilt"])
def test_ids_are_those_of_the_library(
    kind: str, request: pytest.FixtureRequest, reference: Any, japanese: list[str], english: list[str], hard: list[str]
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    assert tokenizer.vocab_size == reference.vocab_size()
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (1, 2, 0)
    for text in [*japanese[600:900], *english[200:260], *hard]:
        expected = reference.encode(text)
        assert tokenizer.encode(text, add_special=False) == expected, text
        assert tokenizer.encode(text) == [1, *expected]
        assert tokenizer.decode(expected) == reference.decode(expected)


@pytest.mark.parametrize("kind", ["direct", "rebuilt"])
@settings(max_examples=300, deadline=None)
@given(text=st.text(st.one_of(st.sampled_from("ーあaの 。…=-0<s>/"), st.characters(codec="utf-8")), max_size=30))
def test_ids_of_any_text_are_those_of_the_library(
    kind: str, request: pytest.FixtureRequest, reference: Any, text: str
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    assert tokenizer.encode(text, add_special=False) == reference.encode(text)


@pytest.mark.parametrize("kind", ["direct", "rebuilt"])
def test_text_comes_back(kind: str, request: pytest.FixtureRequest, japanese: list[str], hard: list[str]) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    for text in [*japanese[:50], *hard]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_places_are_those_of_the_characters(direct: Tokenizer, japanese: list[str], hard: list[str]) -> None:
    for text in [*japanese[:50], *hard]:
        found = direct.encode_with_offsets(text)
        assert found.ids == direct.encode(text) and found.offsets[0] == (0, 0)
        assert all(0 <= start <= end <= len(text) for start, end in found.offsets)
        for id, (start, end) in zip(found.ids[1:], found.offsets[1:], strict=True):
            piece = direct.decode([id])
            if "\ufffd" not in piece and end > start:
                assert text[start:end].strip(" ") == piece.strip(" ")


@pytest.mark.parametrize("kind", ["direct", "rebuilt"])
def test_control_tokens_are_read_only_on_request(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    for text in ("<s>", "</s>", "東京</s>大阪", "<unk>", "<0x41>"):
        assert not {1, 2} & set(tokenizer.encode(text, add_special=False)), text
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("東京</s>", add_special=False, parse_special=True)[-1] == 2
    parsed = tokenizer.encode("<s>東京</s>大阪", add_special=False, parse_special=True)
    assert parsed[0] == 1 and parsed.count(2) == 1
    assert tokenizer.decode(parsed, skip_special=True).replace(" ", "") == "東京大阪"


def test_ids_beyond_the_vocabulary_are_no_text(direct: Tokenizer, rebuilt: Tokenizer) -> None:
    for tokenizer in (direct, rebuilt):
        ids = tokenizer.encode("東京", add_special=False)
        assert tokenizer.decode([*ids, tokenizer.vocab_size + 5]) == "東京"


def test_a_saved_tokenizer_gives_the_same_ids(
    direct: Tokenizer, rebuilt: Tokenizer, japanese: list[str], hard: list[str], tmp_path: Path
) -> None:
    for name, tokenizer in (("direct", direct), ("rebuilt", rebuilt)):
        tokenizer.save(tmp_path / name)
        again = Tokenizer.from_folder(tmp_path / name)
        assert (again.bos_id, again.eos_id, again.unk_id, again.max_len) == (1, 2, 0, tokenizer.max_len)
        assert all(again.encode(text) == tokenizer.encode(text) for text in [*japanese[:30], *hard])


def test_a_pair_is_refused(direct: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="single texts"):
        direct.encode_pair("a", "b")


def test_a_broken_model_is_refused(sentencepiece_model: Path, tmp_path: Path) -> None:
    data = sentencepiece_model.read_bytes()
    for broken in (b"", b"nonsense", data[: len(data) // 2], data[1:], b"\xff" * 100):
        (tmp_path / "tokenizer.model").write_bytes(broken)
        with pytest.raises(FormatError):
            Tokenizer.from_sentencepiece(tmp_path / "tokenizer.model")


def test_scores_and_not_the_order_of_tokens_decide_what_is_joined(
    sentencepiece_model: Path, reference: Any, japanese: list[str]
) -> None:
    metadata = gguf_metadata(sentencepiece_model)
    size = len(metadata["tokenizer.ggml.tokens"])
    order = [*range(3), *reversed(range(3, size))]
    for name in ("tokens", "scores", "token_type"):
        metadata[f"tokenizer.ggml.{name}"] = [metadata[f"tokenizer.ggml.{name}"][i] for i in order]
    tokenizer = Tokenizer.from_gguf(metadata)
    for text in japanese[600:700]:
        assert [order[id] for id in tokenizer.encode(text, add_special=False)] == reference.encode(text)


def test_typed_bytes_never_grow_into_a_byte_token() -> None:
    tokens = ["<unk>", "<s>", "</s>", "<0x41>", *"<0x41>/s▁", "<0", "<0x", "41", "41>", "s>", "</"]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 4 + [-float(i) for i in range(len(tokens) - 4)],
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL, BYTE] + [NORMAL] * (len(tokens) - 4),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.encode("A", add_special=False)[-1] == 3
    for text in ("<0x41>", "</s>"):
        assert not {1, 2, 3} & set(tokenizer.encode(text, add_special=False))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", None),
        ("tokens", [1, 2]),
        ("tokens", ["a", "a", "b"]),
        ("tokens", ["a" * 10**6]),
        ("scores", None),
        ("scores", [0.0]),
        ("scores", "text"),
        ("token_type", [1]),
        ("token_type", 5),
        ("unknown_token_id", 10**6),
        ("unknown_token_id", -1),
        ("unknown_token_id", "x"),
        ("model", "bert"),
        ("model", None),
    ],
)
def test_metadata_without_sense_are_refused(field: str, value: Any, sentencepiece_model: Path) -> None:
    metadata = gguf_metadata(sentencepiece_model) | {f"tokenizer.ggml.{field}": value}
    with pytest.raises(FormatError):
        Tokenizer.from_gguf(metadata)


@pytest.mark.parametrize("id", [10**9, -5, "x", None, 1.5])
def test_a_special_token_that_is_none_is_left_out(id: Any, sentencepiece_model: Path) -> None:
    metadata = gguf_metadata(sentencepiece_model) | {"tokenizer.ggml.eos_token_id": id}
    assert Tokenizer.from_gguf(metadata).eos_id is None
