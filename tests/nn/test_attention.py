"""Attention against a softmax written out by hand, and what each query may look at against a definition in words."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kiban.errors import ConfigError, LimitError
from kiban.nn.attention import Attention, Context, attend, causal_context
from kiban.nn.block import PostNormBlock, PreNormBlock
from kiban.nn.cache import KVCache
from kiban.nn.feedforward import GatedFeedForward
from kiban.nn.norm import RMSNorm
from kiban.nn.positions import Rotary
from kiban.nn.stack import Stack

CPU = torch.device("cpu")
DIM, HEADS, KV_HEADS, LENGTH = 24, 6, 2, 11


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(q: Tensor, k: Tensor, v: Tensor, may_look: Tensor) -> Tensor:
    """One query at a time. may_look: (B, T, S) bool."""
    result = torch.zeros_like(q)
    for b, h, t in itertools.product(*map(range, q.shape[:3])):
        shared = h // (q.shape[1] // k.shape[1])  # the key head of this query head
        seen = may_look[b, t]
        keys, values = k[b, shared, seen], v[b, shared, seen]
        scores = torch.tensor([float(q[b, h, t] @ key) / math.sqrt(q.shape[3]) for key in keys], dtype=q.dtype)
        shares = (scores - scores.max()).exp()
        result[b, h, t] = (shares / shares.sum()) @ values
    return result


def real(*lengths: int, left: bool, total: int = LENGTH) -> Tensor:
    """A mask with so many real tokens in each row."""
    places = torch.arange(total)[None]
    counts = torch.tensor(lengths)[:, None]
    return places >= total - counts if left else places < counts


def definition(past: int, length: int, mask: Tensor | None, window: int | None, batch: int = 2) -> Tensor:
    """Who may look where, (B, T, S), from the words of `causal_context`."""
    total = past + length
    result = torch.zeros(batch, length, total, dtype=torch.bool)
    for b, t, s in itertools.product(range(batch), range(length), range(total)):
        place = past + t
        near = s <= place and (window is None or place - s < window)
        result[b, t, s] = s == place or (near and (mask is None or bool(mask[b, s])))
    return result


@pytest.mark.parametrize("kv_heads", [6, 3, 2, 1])
@pytest.mark.parametrize(("length", "total"), [(7, 7), (1, 7), (3, 7), (1, 1)])
def test_attend_is_a_softmax_over_what_is_allowed(kv_heads: int, length: int, total: int) -> None:
    q, k, v = randn(2, 6, length, 4), randn(2, kv_heads, total, 4, seed=1), randn(2, kv_heads, total, 4, seed=2)
    for seed in range(3):
        allowed = randn(2, 1, length, total, seed=seed) > 0
        allowed[..., 0] = True
        assert torch.allclose(attend(q, k, v, allowed=allowed), by_hand(q, k, v, allowed[:, 0]))
        assert torch.allclose(attend(q, k, v, allowed=allowed[:1]), by_hand(q, k, v, allowed[:1, 0].expand(2, -1, -1)))
    everything = torch.ones(2, length, total, dtype=torch.bool)
    assert torch.allclose(attend(q, k, v), by_hand(q, k, v, everything))
    if length == total:
        assert torch.allclose(attend(q, k, v, causal=True), by_hand(q, k, v, everything.tril()))


def test_causal_for_a_part_of_the_sequence_is_our_own_mistake() -> None:
    for length in (1, 2):
        with pytest.raises(AssertionError, match="whole sequence"):
            attend(randn(1, 2, length, 4), randn(1, 1, 3, 4), randn(1, 1, 3, 4), causal=True)


def test_in_bfloat16_output_and_gradient_are_those_of_float32_to_rounding() -> None:
    """Training on a CPU computes attention in float32, also under autocast, and gives back the type that came in."""
    rough = [randn(2, 3, 7, 8, seed=i).bfloat16().requires_grad_() for i in range(3)]
    exact = [tensor.detach().double().requires_grad_() for tensor in rough]
    weight = randn(2, 3, 7, 8, seed=9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attend(*rough, causal=True)
    assert found.dtype == torch.bfloat16
    (found.double() * weight).sum().backward()
    (attend(*exact, causal=True) * weight).sum().backward()
    for ours, truth in zip(rough, exact, strict=True):
        assert ours.grad is not None and ours.grad.dtype == torch.bfloat16 and truth.grad is not None
        assert (ours.grad.double() - truth.grad).abs().max() < 0.02


def test_dropout_leaves_the_mean_and_is_for_training_only() -> None:
    q, k, v = randn(1, 2, 1, 4), randn(1, 1, 5, 4, seed=1), randn(1, 1, 5, 4, seed=2)
    torch.manual_seed(0)
    dropped = attend(*(part.expand(4000, -1, -1, -1) for part in (q, k, v)), dropout=0.5)
    assert dropped.std(0).min() > 0.05
    assert torch.allclose(dropped.mean(0), attend(q, k, v)[0], atol=0.1)
    module = Attention(8, 2, dropout=0.5).double()
    x = randn(1, 5, 8)
    assert not torch.equal(module(x, Context()), module(x, Context()))
    module.eval()
    assert torch.equal(module(x, Context()), module(x, Context()))


MASKS = {
    "none": None,
    "all real": real(11, 11, left=True),
    "left": real(11, 4, left=True),
    "right": real(6, 11, left=False),
    "a row of one": real(11, 1, left=True),
    "a row of none": real(11, 0, left=True),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("window", [None, 1, 4, 11, 99])
@pytest.mark.parametrize("past", [0, 1, 6, 10])
def test_who_may_look_where_is_as_the_words_say(past: int, window: int | None, mask: Tensor | None) -> None:
    length = LENGTH - past
    allowed, causal, positions = causal_context(length, mask=mask, past=past, window=window, device=CPU)
    expected = definition(past, length, mask, window)
    if allowed is not None:
        assert not causal
        found = allowed.expand(2, 1, length, LENGTH)[:, 0]
    elif causal:
        found = torch.ones(2, length, LENGTH, dtype=torch.bool).tril()
        assert past == 0
    else:
        found = torch.ones(2, length, LENGTH, dtype=torch.bool)
    assert torch.equal(found, expected)
    for b, t in itertools.product(range(2), range(length)):
        before = past + t if mask is None else int(mask[b, : past + t].sum())
        if mask is None or mask[b, past + t]:  # the place of padding is of no interest
            assert positions.expand(2, length)[b, t] == before
    assert positions.min() >= 0


def test_without_padding_no_mask_is_made() -> None:
    assert causal_context(5, mask=None, past=0, window=None, device=CPU)[:2] == (None, True)
    assert causal_context(5, mask=torch.ones(2, 5, dtype=torch.bool), past=0, window=5, device=CPU)[:2] == (None, True)
    assert causal_context(1, mask=None, past=4, window=None, device=CPU)[:2] == (None, False)


def test_a_mask_of_queries_is_taken_as_it_is() -> None:
    # Two texts in one row: neither sees the other, and both begin at position 0.
    mask = torch.block_diag(torch.ones(3, 3), torch.ones(4, 4)).bool().tril()[None]
    allowed, causal, positions = causal_context(7, mask=mask, past=0, window=None, device=CPU)
    assert allowed is not None and torch.equal(allowed[:, 0], mask) and not causal
    assert positions.tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    assert causal_context(7, mask=mask, past=0, window=7, device=CPU)[2].tolist() == positions.tolist()
    with pytest.raises(LimitError, match="window of 6"):
        causal_context(7, mask=mask, past=0, window=6, device=CPU)


# A whole stack


def build(*, kv_heads: int = KV_HEADS, dropout: float = 0.0) -> Stack:
    """Two pre-norm blocks with weights large enough that a mistake shows."""
    torch.manual_seed(0)
    return (
        Stack(
            PreNormBlock(
                attn=Attention(DIM, HEADS, num_kv_heads=kv_heads, layer=layer, dropout=dropout, bias=True),
                ffn=GatedFeedForward(DIM, 40, activation=F.silu),
                norm=lambda: RMSNorm(DIM, eps=1e-5),
            )
            for layer in range(2)
        )
        .double()
        .eval()
    )


@torch.inference_mode()
def run(
    stack: Stack,
    x: Tensor,
    *,
    mask: Tensor | None = None,
    window: int | None = None,
    chunks: tuple[int, ...] = (),
) -> Tensor:
    """The stack's outputs, in chunks with a cache if there are any."""
    rotary = Rotary(DIM // HEADS)
    heads = stack[0].attn.num_kv_heads
    cache = KVCache(2, len(x), heads, DIM // HEADS, x.shape[1], dtype=x.dtype) if chunks else None
    parts, past = [], 0
    for size in chunks or (x.shape[1],):
        seen = None if mask is None else mask[:, : past + size]
        allowed, causal, positions = causal_context(size, mask=seen, past=past, window=window, device=CPU)
        cos, sin = (table[:, None].double() for table in rotary.table(positions))
        context = Context(allowed=allowed, causal=causal, rotary=(cos, sin), cache=cache)
        parts.append(stack(x[:, past : past + size], context))
        past += size
        if cache is not None:
            cache.advance(size)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("chunks", [(), (4, 1, 6), (1,) * 11], ids=["whole", "chunks", "one by one"])
def test_a_changed_token_never_changes_what_stands_before_it(
    kv_heads: int, window: int | None, chunks: tuple[int, ...]
) -> None:
    x = randn(1, LENGTH, DIM).repeat(LENGTH + 1, 1, 1)
    for t in range(LENGTH):  # the last row stays as it is
        x[t, t] += randn(DIM, seed=9)
    *changed, before = run(build(kv_heads=kv_heads), x, window=window, chunks=chunks)
    for t, after in enumerate(changed):
        moved = (after - before).abs().amax(-1)
        reach = LENGTH if window is None else min(LENGTH, t + 2 * (window - 1) + 1)  # two layers, a window each
        assert moved[:t].sum() + moved[reach:].sum() < 1e-12
        assert moved[t] > 0.1 and (moved[t:reach] > 1e-6).all()


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("window", [None, 1, 4, 10])
@pytest.mark.parametrize("chunks", [(11,), (1,) * 11, (4, 1, 6), (1, 9, 1), (10, 1)], ids=str)
def test_with_a_cache_outputs_equal_those_without(
    mask: Tensor | None, window: int | None, chunks: tuple[int, ...]
) -> None:
    stack, x = build(), randn(2, LENGTH, DIM)
    whole, parts = run(stack, x, mask=mask, window=window), run(stack, x, mask=mask, window=window, chunks=chunks)
    assert whole.isfinite().all() and parts.isfinite().all()
    shown = torch.ones(2, LENGTH, dtype=torch.bool) if mask is None else mask
    assert torch.allclose(whole[shown], parts[shown], atol=1e-6)


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("chunks", [(), (4, 1, 6)], ids=["whole", "chunks"])
def test_padding_changes_nothing_for_the_real_tokens(left: bool, window: int | None, chunks: tuple[int, ...]) -> None:
    stack, x, mask = build(), randn(2, LENGTH, DIM), real(11, 5, left=left)
    found = run(stack, x, mask=mask, window=window, chunks=chunks)
    alone = run(stack, x[1:, 6:] if left else x[1:, :5], window=window)
    assert torch.allclose(found[1:, 6:] if left else found[1:, :5], alone, atol=1e-5)
    x[1, ~mask[1]] = 1e3
    assert torch.equal(run(stack, x, mask=mask, window=window, chunks=chunks)[mask], found[mask])


def test_rows_do_not_see_each_other() -> None:
    stack, x = build(), randn(3, LENGTH, DIM)
    rows = [run(stack, row[None]) for row in x]
    assert torch.allclose(run(stack, x), torch.cat(rows))


@torch.inference_mode()
def test_the_module_is_its_projections_around_attend() -> None:
    module, x = Attention(10, 4, num_kv_heads=2, head_dim=6, bias=False, qkv_bias=True).double(), randn(2, 5, 10)
    q, k, v = (
        (x @ linear.weight.T + linear.bias).view(2, 5, -1, 6).transpose(1, 2)
        for linear in (module.q, module.k, module.v)
    )
    mixed = by_hand(q, k, v, torch.ones(2, 5, 5, dtype=torch.bool))
    expected = mixed.transpose(1, 2).reshape(2, 5, 24) @ module.o.weight.T
    assert torch.allclose(module(x, Context()), expected)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters() if "weight" in name}
    assert shapes == {"q.weight": (24, 10), "k.weight": (12, 10), "v.weight": (12, 10), "o.weight": (10, 24)}
    assert module.o.bias is None and module.q.bias is not None


@pytest.mark.parametrize("sizes", [(10, 3, None), (12, 4, 3), (12, 4, 8)])
def test_sizes_that_do_not_fit_are_told(sizes: tuple[int, int, int | None]) -> None:
    dim, heads, kv_heads = sizes
    with pytest.raises(ConfigError, match="not divisible"):
        Attention(dim, heads, num_kv_heads=kv_heads)


@pytest.mark.parametrize("block", [PreNormBlock, PostNormBlock])
def test_a_block_is_its_formula(block: type[PreNormBlock] | type[PostNormBlock]) -> None:
    torch.manual_seed(0)
    made = block(
        attn=Attention(8, 2), ffn=GatedFeedForward(8, 12, activation=F.silu), norm=lambda: RMSNorm(8, eps=1e-5)
    ).eval()
    with torch.no_grad():
        made.norm1.weight.mul_(torch.arange(1, 9))
        made.norm2.weight.mul_(torch.arange(8, 0, -1))
    x, context = randn(2, 5, 8).float(), Context(causal=True)
    if isinstance(made, PreNormBlock):
        middle = x + made.attn(made.norm1(x), context)
        expected = middle + made.ffn(made.norm2(middle))
    else:
        middle = made.norm1(x + made.attn(x, context))
        expected = made.norm2(middle + made.ffn(middle))
    assert torch.equal(made(x, context), expected)
    assert made.norm1 is not made.norm2
