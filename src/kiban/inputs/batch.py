"""Rows of token ids to one rectangle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


IGNORE = -100  # a label that counts for nothing, as torch's cross-entropy has it


def pad_batch(
    rows: Sequence[Sequence[int]], pad_id: int, *, side: Literal["left", "right"] = "right"
) -> tuple[Tensor, Tensor]:
    """Token ids (B, T) int64 and mask (B, T) bool, True where a token is real. T is the longest row, at least 1."""
    import torch

    length = max((len(row) for row in rows), default=1) or 1
    tokens = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), length), dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        tokens[i, place] = torch.as_tensor(row, dtype=torch.int64)
        mask[i, place] = True
    return tokens, mask
