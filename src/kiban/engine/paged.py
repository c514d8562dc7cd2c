"""Attention of one query for each answer over keys that lie in pages, as two Triton kernels: nothing is gathered first, and
only what an answer has is read. Kwon et al. 2023 (PagedAttention); keys are split among programs as in Flash-Decoding (Dao
et al. 2023), since few answers would leave most of the card idle.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kiban.engine.pages import PAGE

PROGRAMS = 528  # aimed at: four for each multiprocessor of an H100
LEAST_PAGES = 2  # of a program


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _part(  # type: ignore[no-untyped-def]
    q, held, inputs, parts, sums, q_row, input_row, head_row, share, window, scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
    SIZE: tl.constexpr,
):  # fmt: skip
    """Program (b, h, s): queries of head h of answer b over the s-th share of its pages, to means and log-sums."""
    b, h, s = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    length = tl.load(inputs + b * input_row + 1)
    rows, dims, offsets = tl.arange(0, ROWS), tl.arange(0, WIDE), tl.arange(0, SIZE)
    own = (rows < GROUP)[:, None] & (dims < DIM)[None, :]
    query = tl.load(q + b * q_row + (h * GROUP + rows[:, None]) * DIM + dims[None, :], mask=own, other=0.0)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, WIDE], tl.float32)
    last = tl.minimum((s + 1) * share, (length + SIZE - 1) // SIZE)
    for number in range(s * share, last):
        page = tl.load(inputs + b * input_row + 2 + number)
        at = number * SIZE + offsets
        seen = (at < length) & (at >= length - window)
        here = (page * SIZE + offsets)[:, None] * DIM + dims[None, :]
        inside = seen[:, None] & (dims < DIM)[None, :]
        key = tl.load(held + h * head_row + here, mask=inside, other=0.0)
        value = tl.load(held + (HEADS + h) * head_row + here, mask=inside, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        top = tl.maximum(best, tl.max(scores, 1))
        base = tl.where(top == float("-inf"), 0.0, top)  # a page before the window has nothing to say
        weights = tl.exp(scores - base[:, None])
        fade = tl.exp(best - base)
        total = total * fade + tl.sum(weights, 1)
        mixed = mixed * fade[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        best = top
    some = total > 0
    divided = mixed / tl.where(some, total, 1.0)[:, None]
    result = tl.where(some, best + tl.log(tl.where(some, total, 1.0)), float("-inf"))
    place = (s * tl.num_programs(0) + b) * HEADS * GROUP + h * GROUP + rows
    tl.store(parts + place[:, None] * DIM + dims[None, :], divided, mask=own)
    tl.store(sums + place, result, mask=rows < GROUP)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _join(parts, sums, out, splits, DIM: tl.constexpr, WIDE: tl.constexpr, MOST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program r: the parts of one query, by their shares of the whole sum."""
    row, number = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    shares, dims = tl.arange(0, MOST), tl.arange(0, WIDE)
    there = shares < splits
    logs = tl.load(sums + shares * number + row, mask=there, other=float("-inf"))
    weights = tl.exp(logs - tl.max(logs, 0))
    inside = there[:, None] & (dims < DIM)[None, :]
    values = tl.load(parts + (shares[:, None] * number + row) * DIM + dims[None, :], mask=inside, other=0.0)
    mixed = tl.sum(values * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out + row * DIM + dims, mixed.to(out.dtype.element_ty), mask=dims < DIM)


def attend_pages(q: Tensor, held: Tensor, inputs: Tensor, *, num_kv_heads: int, window: int | None) -> Tensor:
    """softmax(q k^T / sqrt(Dh)) v of the last token of each answer. q: (B, 1, H, Dh), same out, contiguous.

    held: keys and behind them values of one layer, (2 Hkv N, Dh) contiguous. inputs: (B, 2 + P) int64: something, number of
    tokens, pages. window: how many tokens back a query sees, itself included.
    """
    answers, _, heads, dim = q.shape
    assert held.is_contiguous() and q.stride(2) == dim and q.stride(3) == 1 and inputs.stride(1) == 1
    width = inputs.shape[1] - 2
    splits = max(1, min(-(-PROGRAMS // (answers * num_kv_heads)), width // LEAST_PAGES))
    share = -(-width // splits)
    parts = torch.empty(splits, answers, heads, dim, dtype=torch.float32, device=q.device)
    sums = torch.empty(splits, answers, heads, dtype=torch.float32, device=q.device)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    group, wide = heads // num_kv_heads, max(16, triton.next_power_of_2(dim))
    _part[answers, num_kv_heads, splits](
        q, held, inputs, parts, sums, q.stride(0), inputs.stride(0), len(held) // (2 * num_kv_heads) * dim, share,
        window or 1 << 30, dim**-0.5, HEADS=num_kv_heads, GROUP=group, DIM=dim,
        ROWS=max(16, triton.next_power_of_2(group)), WIDE=wide, SIZE=PAGE,
    )  # fmt: skip
    _join[(answers * heads,)](parts, sums, out, splits, DIM=dim, WIDE=wide, MOST=triton.next_power_of_2(splits))
    return out
