"""Documents packed into rows: every token once, documents numbered, none seeing another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kiban.data.packing import PackedRows, collate, document_mask
from kiban.data.shards import Document, Shards, write_shards
from kiban.errors import ConfigError, DatasetError

EOS = 1


def corpus(folder: Path, lengths: list[int], shard_tokens: int = 16) -> tuple[Shards, list[int], list[int]]:
    """The shards, their whole stream of tokens, and the document of each token."""
    documents = [Document([100 + i] * n, n) for i, n in enumerate(lengths)]
    tokenizer = {"tokenizer.json": "{}"}
    write_shards(folder, documents, vocab_size=1000, eos_id=EOS, tokenizer=tokenizer, shard_tokens=shard_tokens)
    stream = [id for document in documents for id in (EOS, *document.ids)]
    return Shards(folder), stream, [i for i, n in enumerate(lengths) for _ in range(n + 1)]


@pytest.mark.parametrize("seq_len", [1, 2, 5, 7, 40])
def test_rows_are_cut_from_the_stream_and_overlap_in_one_token(seq_len: int, tmp_path: Path) -> None:
    shards, stream, owners = corpus(tmp_path / "t", [3, 0, 12, 1, 1, 30, 4])
    rows = PackedRows(shards, seq_len)
    assert len(rows) == (len(stream) - 1) // seq_len
    for i, (tokens, documents) in enumerate(rows):
        place = slice(i * seq_len, (i + 1) * seq_len + 1)
        assert tokens.tolist() == stream[place] and tokens.dtype == np.int64
        assert documents.tolist() == [owner - owners[place][0] for owner in owners[place]]
    # As targets, all tokens but the first of all appear once.
    assert [t for tokens, _ in rows for t in tokens[1:].tolist()] == stream[1 : len(rows) * seq_len + 1]


def test_it_is_a_sequence(tmp_path: Path) -> None:
    rows = PackedRows(corpus(tmp_path / "t", [9, 9])[0], 3)
    assert len(list(rows)) == len(rows) == 6
    assert rows[-1][0].tolist() == rows[5][0].tolist()
    for index in (6, -7):
        with pytest.raises(IndexError):
            rows[index]


def test_a_corpus_may_just_fill_a_row_or_just_not(tmp_path: Path) -> None:
    shards = corpus(tmp_path / "t", [3, 3])[0]
    assert len(PackedRows(shards, 7)) == 1
    with pytest.raises(DatasetError, match="shorter seq_len"):
        PackedRows(shards, 8)
    for seq_len in (0, -1):
        with pytest.raises(ConfigError, match="seq_len"):
            PackedRows(shards, seq_len)


def test_a_batch_and_who_sees_whom(tmp_path: Path) -> None:
    rows = PackedRows(corpus(tmp_path / "t", [2, 4, 11])[0], 4)
    batch = collate([rows[0], rows[3]])
    assert batch["tokens"].shape == batch["documents"].shape == (2, 5) and batch["tokens"].dtype == torch.int64
    mask = document_mask(batch["documents"])
    assert mask is not None and mask.shape == (2, 5, 5)
    for b in range(2):
        for query in range(5):
            for key in range(5):
                same = batch["documents"][b, query] == batch["documents"][b, key]
                assert mask[b, query, key] == (bool(same) and key <= query)


def test_rows_of_one_document_need_no_mask(tmp_path: Path) -> None:
    rows = PackedRows(corpus(tmp_path / "t", [30])[0], 4)
    assert document_mask(collate([rows[0], rows[2]])["documents"]) is None
