"""Tokenizer files made to do harm end in an error of ours, in time, and leave the process alive."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kiban.config import home
from kiban.errors import FormatError, LimitError
from kiban.inputs import build
from kiban.inputs.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIBAN_HOME", str(tmp_path / "home"))


@pytest.fixture
def good(byte_level_folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((byte_level_folder / "tokenizer.json").read_text("utf-8"))
    return values


def opened(folder: Path, values: Any) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    text = values if isinstance(values, str) else json.dumps(values)
    (folder / "tokenizer.json").write_text(text, "utf-8")
    return Tokenizer.from_folder(folder)


def replacing(pattern: str, content: str, times: int) -> dict[str, Any]:
    rule = {"type": "Replace", "pattern": {"String": pattern}, "content": content}
    return {"type": "Sequence", "normalizers": [rule] * times}


def splitting(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


BOMBS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "replace": lambda v: v | {"normalizer": replacing("a", "a" * 30, 12)},
    "replace of nothing": lambda v: v | {"normalizer": replacing("", "ab" * 30, 12)},
    "replace of a rare letter": lambda v: v | {"normalizer": replacing("ツ", "ツ" * 30, 12)},
    "prepend": lambda v: v | {"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}},
    "regex": lambda v: v | {"pre_tokenizer": splitting("(a+)+$")},
    "regex on a rare letter": lambda v: v | {"pre_tokenizer": splitting("(ツ+)+$")},
    "regex of alternatives": lambda v: v | {"pre_tokenizer": splitting("(?:z|z)+[^z!]")},
    "regex that is none": lambda v: v | {"pre_tokenizer": splitting("(((")},
    "decoder": lambda v: (
        v | {"decoder": {"type": "Sequence", "decoders": [replacing("", "ab" * 50, 1)["normalizers"][0]] * 8}}
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_in_an_error(
    name: str, good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "CHECK_SECONDS", 2)
    start = time.perf_counter()
    with pytest.raises((FormatError, LimitError)):
        opened(tmp_path / "t", BOMBS[name](good))
    assert time.perf_counter() - start < 15
    assert not any((home() / "checked-tokenizers").glob("*")), "a bad verdict is not remembered as a good one"


def test_padding_and_truncation_of_the_file_are_not_obeyed(good: dict[str, Any], tmp_path: Path) -> None:
    padding = {"strategy": {"Fixed": 2**33}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    truncation = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    tokenizer = opened(tmp_path / "t", good | {"padding": padding, "truncation": truncation})
    assert tokenizer.encode("東京の天気") == opened(tmp_path / "plain", good).encode("東京の天気")
    assert tokenizer.decode(tokenizer.encode("東京の天気")) == "東京の天気"


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "3", '{"version": "1.0"}', '{"model": 5}', "[" * 100_000, '{"model": {"type": "Magic"}}'],
    ids=range(9),
)
def test_what_is_no_tokenizer_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not a usable tokenizer"):
        opened(tmp_path / "t", text)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(FormatError):
        Tokenizer.from_folder(tmp_path)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        os.truncate(file.fileno(), build.MAX_TOKENIZER_BYTES + 1)
    with pytest.raises(LimitError, match="larger"):
        Tokenizer.from_folder(tmp_path)


def test_a_verdict_is_remembered_by_content(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(tmp_path / "t", good)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a known file is not tried again")

    monkeypatch.setattr(build.subprocess, "run", refuse)
    assert opened(tmp_path / "elsewhere", good).encode("東京") == first.encode("東京")
    with pytest.raises(AssertionError, match="not tried again"):
        opened(tmp_path / "changed", good | {"version": "1.1"})


def test_a_home_that_cannot_be_written_is_no_hindrance(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("KIBAN_HOME", str(tmp_path / "file"))
    assert opened(tmp_path / "t", good).encode("a")


def test_a_file_that_fails_on_later_texts_gives_an_error_of_ours(good: dict[str, Any], tmp_path: Path) -> None:
    # A pattern that is slow only on a text that no check can guess: the library gives up with a panic.
    tokenizer = opened(tmp_path / "t", good | {"pre_tokenizer": splitting("qw(?:[a-y]|[a-y])+$")})
    with pytest.raises(FormatError):
        tokenizer.encode("qw" + "abc" * 1000 + "!")
    assert tokenizer.encode("abc")


def test_a_model_without_its_unknown_token_gives_an_error_of_ours(good: dict[str, Any], tmp_path: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
    values = good | {"model": model, "pre_tokenizer": None, "added_tokens": [], "post_processor": None}
    with pytest.raises(FormatError):
        opened(tmp_path / "t", values).encode("あ")
