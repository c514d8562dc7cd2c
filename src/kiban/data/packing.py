"""Documents packed into rows of equal length, none of them seeing another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kiban.data.shards import Shards
from kiban.errors import ConfigError, DatasetError

# Token ids and the number of the document each belongs to, both (T + 1,) int64.
Row = tuple[NDArray[np.int64], NDArray[np.int64]]


class PackedRows(Sequence[Row]):
    """A corpus as rows of seq_len + 1 tokens, cut from the stream of all documents one after the other.

    The last token of a row is the first of the next one: it is only predicted. The tokens behind the last whole row are
    left out. Raises DatasetError if there is not one row.
    """

    def __init__(self, shards: Shards, seq_len: int) -> None:
        if seq_len < 1:
            raise ConfigError("seq_len", why=f"is {seq_len}", hint="1 or more")
        self.shards, self.seq_len = shards, seq_len
        self.num_rows = (shards.facts.tokens - 1) // seq_len
        if self.num_rows < 1:
            why = f"holds {shards.facts.tokens} tokens, which do not fill one row of {seq_len}"
            raise DatasetError(shards.folder, why=why, hint="give more text, or a shorter seq_len")

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        start = range(self.num_rows)[index] * self.seq_len
        end = start + self.seq_len + 1
        documents = np.searchsorted(self.shards.ends, np.arange(start, end), side="right")
        return self.shards.read(start, end), documents - documents[0]


def collate(rows: list[Row]) -> dict[str, Tensor]:
    """A batch of packed rows: tokens (B, T + 1) int64 and documents (B, T + 1) int64."""
    tokens, documents = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
    return {"tokens": tokens, "documents": documents}


def document_mask(documents: Tensor) -> Tensor | None:
    """Who sees whom: (B, T) document numbers to (B, T, T) bool; None where every row is one document.

    A query sees the tokens of its own document up to itself.
    """
    if bool((documents[:, :1] == documents[:, -1:]).all()):
        return None
    length = documents.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    return (documents[:, :, None] == documents[:, None, :]) & causal
