"""CLIP's tokenizer: ids of transformers on its real vocabulary, its files, and one that is trained here."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from kiban.errors import ConfigError, FormatError
from kiban.inputs.build import has_tokenizer
from kiban.inputs.learn import train_bpe
from kiban.inputs.learn.bpe import byte_symbols
from kiban.inputs.learn.clip_bpe import train_clip_bpe
from kiban.inputs.tokenizer import Tokenizer

LENGTH = 77
TEXTS = [
    "A photo of a cat, wearing   sunglasses!",
    "赤いりんごと青い空",
    "IT'S the\n\n\tend: 123 ½ don't under_score",
    "wow!! そうだ!",
    "</w> a</w>b",
    "word " * 200,
    "長い文章です。" * 60,
]


@pytest.fixture(scope="session", params=["<|endoftext|>", "!"], ids=["v1", "v2"])
def published_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published vocabulary, as folders of Stable Diffusion 1 and 2 have it; it comes with open_clip."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        pytest.skip("open_clip is not installed")
    file = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    symbols = list(byte_symbols().values())
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(m.split()) for m in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder = tmp_path_factory.mktemp("clip-tokenizer")
    (folder / "vocab.json").write_text(json.dumps({token: id for id, token in enumerate(tokens)}), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    ends = {"bos_token": "<|startoftext|>", "eos_token": {"content": "<|endoftext|>", "normalized": True}}
    special = {**ends, "unk_token": "<|endoftext|>", "pad_token": request.param}
    (folder / "special_tokens_map.json").write_text(json.dumps(special), "utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny(japanese: list[str], english: list[str]) -> Tokenizer:
    return train_clip_bpe([*japanese, *english], vocab_size=2048, max_len=32)


def reference(folder: Path) -> Any:
    import transformers

    return transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def padded(tokenizer: Tokenizer, text: str, length: int = LENGTH) -> list[int]:
    row = tokenizer.encode(text, max_len=length)
    assert tokenizer.pad_id is not None
    return row + [tokenizer.pad_id] * (length - len(row))


def test_ids_are_those_of_transformers(published_folder: Path, hard: list[str]) -> None:
    mine, theirs = Tokenizer.from_folder(published_folder), reference(published_folder)
    assert (mine.bos_id, mine.eos_id, mine.max_len, mine.vocab_size) == (49406, 49407, LENGTH, 49408)
    assert mine.pad_id == theirs.pad_token_id
    for text in [*TEXTS, *hard]:
        assert mine.encode(text) == theirs(text)["input_ids"], text
        rows = theirs(text, padding="max_length", truncation=True)["input_ids"]
        assert padded(mine, text) == rows, text
        assert mine.decode(rows) == theirs.decode(rows, skip_special_tokens=True), text
    typed = "a <|endoftext|> b"
    assert mine.encode(typed, parse_special=True) == theirs(typed)["input_ids"]
    assert mine.encode(typed).count(mine.eos_id or 0) == 1  # what somebody types stays text


def test_known_ids(published_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(published_folder)
    assert tokenizer.encode("a photo of a cat") == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.pad_id in (0, 49407)


def test_what_is_written_opens_everywhere_with_the_same_ids(
    published_folder: Path, tmp_path: Path, hard: list[str]
) -> None:
    import transformers

    mine = Tokenizer.from_folder(published_folder)
    mine.save(tmp_path / "whole")
    mine.save(tmp_path / "pair")
    (tmp_path / "pair" / "tokenizer.json").unlink()
    theirs = reference(published_folder)
    theirs.save_pretrained(tmp_path / "transformers")
    for name in ("whole", "pair", "transformers"):
        again = Tokenizer.from_folder(tmp_path / name)
        assert (again.pad_id, again.max_len, again.special) == (mine.pad_id, mine.max_len, mine.special)
        opened = [reference(tmp_path / name), transformers.AutoTokenizer.from_pretrained(tmp_path / name)]
        for text in [*TEXTS, *hard]:
            expected = padded(mine, text)
            assert padded(again, text) == expected
            assert all(t(text, padding="max_length", truncation=True)["input_ids"] == expected for t in opened)


def test_text_comes_back_word_by_word(tiny: Tokenizer) -> None:
    for text in ("hello there", "猫が好き", "naïve 😀", "x"):
        ids, stream = tiny.encode(text), tiny.stream()
        assert tiny.decode(ids) == text
        assert "".join(stream.push(id) for id in ids) + stream.finish() == text


def test_one_that_is_trained_here_is_of_the_same_kind(
    tiny: Tokenizer, tmp_path: Path, japanese: list[str], english: list[str], hard: list[str]
) -> None:
    assert (tiny.vocab_size, tiny.bos_id, tiny.eos_id, tiny.pad_id) == (2048, 2046, 2047, 2047)
    tiny.save(tmp_path)
    theirs, again = reference(tmp_path), Tokenizer.from_folder(tmp_path)
    assert theirs.model_max_length == 32 and type(theirs).__name__ == tiny.hf_class
    for text in [*japanese[:100], *english[:100], *hard]:
        ids = padded(tiny, text, 32)
        assert ids == theirs(text, padding="max_length", truncation=True)["input_ids"] == padded(again, text, 32)


def test_it_spends_no_more_tokens_than_the_trainer_for_language_models(japanese: list[str], english: list[str]) -> None:
    """Japanese has no spaces, and its words are whole runs of letters here; that costs next to nothing."""
    learned, held_out = [*japanese[::2], *english[::2]], [*japanese[1::2], *english[1::2]]
    numbers = []
    for tokenizer in (train_clip_bpe(learned, vocab_size=2048), train_bpe(learned, vocab_size=2048)):
        numbers.append(sum(len(row) for row in tokenizer.encode_batch(held_out, add_special=False)))
    assert numbers[0] < 1.05 * numbers[1]


def test_tokens_of_textual_inversion_are_read(tiny: Tokenizer, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<cat-toy>": 2048, "<my-style>": 2049}), "utf-8")
    mine, theirs = Tokenizer.from_folder(tmp_path), reference(tmp_path)
    text = "a <cat-toy> in <my-style>"
    assert mine.encode(text) == theirs(text)["input_ids"] and {2048, 2049} < set(mine.encode(text))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<cat-toy>": 2050}), "utf-8")
    with pytest.raises(FormatError, match="gap"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("vocab.json", '{"<|startoftext|>": 0, "b": 2}', "numbers? its tokens|number its tokens"),
        ("vocab.json", '{"<|startoftext|>": [', "cannot be read"),
        ("vocab.json", '["<|startoftext|>"]', "JSON object"),
        ("merges.txt", "#version: 0.2\na b c\n", "line 2.*third"),
        ("merges.txt", "zzzz yyyy\n", "line 1.*third"),
        ("added_tokens.json", '{"x": "many"}', "added tokens"),
    ],
)
def test_unfit_files_are_told(tiny: Tokenizer, tmp_path: Path, name: str, content: str, told: str) -> None:
    tiny.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(FormatError, match=told):
        Tokenizer.from_folder(tmp_path)


def test_files_of_the_same_names_of_another_kind_are_left(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("")
    assert not has_tokenizer(tmp_path)


def test_a_vocabulary_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="room"):
        train_clip_bpe(["text"], vocab_size=514)
