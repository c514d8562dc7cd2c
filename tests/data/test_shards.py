"""Tokenised corpora: written and read back, the same bytes however they come in, and refused when damaged."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiban.data.shards import Document, Shards, ShardWriter, write_shards
from kiban.errors import DatasetError, FormatError, IntegrityError, KibanError

EOS = 7
DOCUMENTS = [Document([100 + i, *range(i % 5)], 3 * i) for i in range(40)]


def write(folder: Path, documents: list[Document] = DOCUMENTS, **options: Any) -> Path:
    options = {"vocab_size": 1000, "eos_id": EOS, "tokenizer": {"tokenizer.json": "{}"}, "shard_tokens": 32, **options}
    write_shards(folder, documents, **options)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / "kiban.json").read_text("utf-8"))
    change(values)
    (folder / "kiban.json").write_text(json.dumps(values), "utf-8")


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    shard_tokens=st.integers(1, 60),
    vocab_size=st.sampled_from([1000, 2**16, 2**16 + 1]),
)
def test_what_is_written_is_read_back(
    lengths: list[int], shard_tokens: int, vocab_size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    draw = random.Random(len(lengths))
    documents = [Document([draw.randrange(vocab_size) for _ in range(n)], n * 2) for n in lengths]
    folder = write(tmp_path_factory.mktemp("s") / "t", documents, shard_tokens=shard_tokens, vocab_size=vocab_size)
    shards = Shards(folder)
    assert len(shards) == len(documents)
    assert [shards.document(i).tolist() for i in range(len(shards))] == [[EOS, *d.ids] for d in documents]
    assert shards.characters.tolist() == [d.characters for d in documents]
    stream = [id for d in documents for id in (EOS, *d.ids)]
    assert shards.facts.tokens == len(stream) and shards.facts.dtype == ("<u2" if vocab_size <= 2**16 else "<u4")
    for start in range(0, len(stream) + 1, 3):
        for end in range(start, len(stream) + 1, 5):
            assert shards.read(start, end).tolist() == stream[start:end]
    # Every shard but the last is full, and was not before its last document.
    sizes = [len(part) for part in shards._tokens]
    ends = [end - start for end, start in zip(shards.ends, shards.starts, strict=True)]
    assert all(size >= shard_tokens for size in sizes[:-1]) and sum(sizes) == sum(ends)
    assert all(size - shard_tokens < max(ends) for size in sizes)


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, len(DOCUMENTS))), shard_tokens=st.integers(1, 90))
def test_shards_do_not_depend_on_how_documents_come_in(cuts: list[int], shard_tokens: int) -> None:
    def written(places: list[int]) -> tuple[dict[str, bytes], dict[str, int]]:
        files: dict[str, bytes] = {}

        def append(name: str, data: bytes) -> None:
            files[name] = files.get(name, b"") + data

        counts: dict[str, int] = {}
        for start, end in zip([0, *places], [*places, len(DOCUMENTS)], strict=True):
            # A new writer each time, as after a break.
            writer = ShardWriter(append, vocab_size=1000, eos_id=EOS, shard_tokens=shard_tokens, counts=counts)
            part = DOCUMENTS[start:end]
            tokens = np.asarray([id for document in part for id in document.ids], dtype=np.uint32)
            lengths = np.asarray([len(document.ids) for document in part], dtype=np.int64)
            writer.add(tokens, lengths, np.asarray([document.characters for document in part], dtype=np.int64))
            counts = writer.counts
        return files, counts

    assert written(sorted(cuts)) == written([])


def test_a_rerun_gives_the_same_bytes(tmp_path: Path) -> None:
    assert hashes(write(tmp_path / "a")) == hashes(write(tmp_path / "b"))
    assert json.loads((tmp_path / "a" / "kiban.json").read_text("utf-8"))["shards"] > 1


def test_nothing_is_overwritten_and_nothing_empty_written(tmp_path: Path) -> None:
    write(tmp_path / "a")
    with pytest.raises(KibanError, match="exists already"):
        write(tmp_path / "a")
    with pytest.raises(DatasetError, match="no document"):
        write(tmp_path / "b", [])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("ids", [[1000], [3, 70_000], [-1], [2**40]])
def test_ids_beyond_the_vocabulary_are_refused(ids: list[int], tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="1000 tokens"):
        write(tmp_path / "a", [Document(ids, 1)])
    assert not list(tmp_path.iterdir())


def test_an_end_of_text_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="eos_id"):
        write(tmp_path / "a", eos_id=1000)


def test_a_tokenizer_file_may_not_lead_out(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="leads out"):
        write(tmp_path / "a", tokenizer={"../../x": ""})
    assert not (tmp_path / "x").exists()


def test_places_outside_the_stream_are_our_mistake(tmp_path: Path) -> None:
    shards = Shards(write(tmp_path / "a"))
    for start, end in ((-1, 2), (5, 4), (0, shards.facts.tokens + 1)):
        with pytest.raises(AssertionError):
            shards.read(start, end)
    with pytest.raises(IndexError):
        shards.document(len(shards))


# Damage -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("whole") / "t")


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "t")
    return tmp_path / "t"


WRONG = [-1, 0, 10**30, 2**62, 1.5, "3", None, True, [], {}]


@pytest.mark.parametrize("name", ["dtype", "vocab_size", "eos_id", "shards", "documents", "tokens", "characters"])
def test_wrong_facts_are_refused(name: str, damaged: Path) -> None:
    before = (damaged / "kiban.json").read_bytes()
    for value in [*WRONG, "<f4", ">u2", "|O", "<u4"]:
        if name == "eos_id" and value == 0:
            continue
        (damaged / "kiban.json").write_bytes(before)
        manifest(damaged, lambda values, value=value: values.update({name: value}))
        with pytest.raises(FormatError) as caught:
            Shards(damaged, verify=False)
        assert str(damaged) in str(caught.value), (name, value)
    manifest(damaged, lambda values: values.pop(name))
    with pytest.raises(FormatError):
        Shards(damaged)


@pytest.mark.parametrize("verify", [True, False])
def test_every_file_is_missed(verify: bool, damaged: Path) -> None:
    for path in sorted(damaged.glob("*.bin")):
        data = path.read_bytes()
        path.unlink()
        with pytest.raises((FormatError, IntegrityError), match=path.name):
            Shards(damaged, verify=verify)
        path.write_bytes(data)
    Shards(damaged, verify=verify)


def test_files_of_any_other_size_are_refused(damaged: Path) -> None:
    for name in ("tokens-00001.bin", "documents-00001.bin"):
        path = damaged / name
        data = path.read_bytes()
        for size in (*range(len(data)), len(data) + 1, len(data) + 2, len(data) + 16):
            path.write_bytes((data + data)[:size])
            with pytest.raises(FormatError):
                Shards(damaged, verify=False)
            with pytest.raises(IntegrityError, match=name):
                Shards(damaged)
        path.write_bytes(data)


def test_places_of_documents_must_fit_the_tokens(damaged: Path) -> None:
    path = damaged / "documents-00000.bin"
    data = np.fromfile(path, dtype="<i8").reshape(-1, 2)
    for row, column, value in ((0, 0, 0), (0, 0, -1), (1, 0, 10**6), (-1, 0, 5), (2, 0, 2**62), (1, 1, -1), (1, 1, 5)):
        changed = data.copy()
        changed[row, column] = value
        changed.tofile(path)
        with pytest.raises(FormatError):
            Shards(damaged, verify=False)


def test_every_flipped_bit_is_found(damaged: Path) -> None:
    draw = random.Random(0)
    for path in damaged.rglob("*"):
        if path.is_file() and path.name != "kiban.json":
            data = bytearray(path.read_bytes())
            for _ in range(20):
                place, bit = draw.randrange(len(data)), 1 << draw.randrange(8)
                data[place] ^= bit
                path.write_bytes(data)
                with pytest.raises(IntegrityError, match=path.name):
                    Shards(damaged)
                data[place] ^= bit
            path.write_bytes(data)


def test_files_that_the_manifest_does_not_list_are_not_opened(damaged: Path) -> None:
    manifest(damaged, lambda values: values["files"].pop("tokens-00001.bin"))
    with pytest.raises(IntegrityError, match=r"tokens-00001\.bin"):
        Shards(damaged)


def test_a_link_that_leads_out_is_not_followed(damaged: Path, tmp_path: Path) -> None:
    path = damaged / "tokens-00000.bin"
    path.rename(tmp_path / "elsewhere.bin")
    path.symlink_to(tmp_path / "elsewhere.bin")
    for verify in (True, False):
        with pytest.raises(FormatError, match="leads out"):
            Shards(damaged, verify=verify)


def test_what_is_a_tokenised_corpus(whole: Path, damaged: Path, tmp_path: Path) -> None:
    assert Shards.is_one(whole) and not Shards.is_one(tmp_path) and not Shards.is_one(tmp_path / "none")
    for data in (b"", b"[]", b"{", b"\xff", b'{"kind": "model"}', b'{"kind": 1}', b"{" * 100_000):
        (damaged / "kiban.json").write_bytes(data)
        assert not Shards.is_one(damaged)
        with pytest.raises(FormatError):
            Shards(damaged)
