"""Multi-head and grouped-query attention, and what it may look at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.errors import ConfigError, LimitError
from kiban.nn.cache import KVCache
from kiban.nn.positions import rotate

SHORT = 512  # keys; from 256 on a CPU takes as long in bfloat16 as in float32, from 1,024 on less


@dataclass(frozen=True, kw_only=True)
class Context:
    """What all layers of one forward pass share.

    allowed: (B, 1, T, S) or (1, 1, T, S) bool, True where a query may look; None if causal says all.
    causal: the queries are the whole sequence and look back only. rotary: cos and sin, (B, 1, T, Dh) or (1, 1, T, Dh).
    """

    allowed: Tensor | None = None
    causal: bool = False
    rotary: tuple[Tensor, Tensor] | None = None
    cache: KVCache | None = None


class Attention(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2) with num_kv_heads shared keys (Ainslie et al. 2023).

    x: (B, T, D); same shape out. layer is this module's place in the cache. Raises ConfigError on sizes that don't fit.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
        qkv_bias: bool | None = None,
        dropout: float = 0.0,
        layer: int = 0,
    ) -> None:
        super().__init__()
        num_kv_heads = num_kv_heads or num_heads
        if num_heads % num_kv_heads:
            raise ConfigError(f"num_heads={num_heads} is not divisible by num_kv_heads={num_kv_heads}")
        if head_dim is None and dim % num_heads:
            raise ConfigError(f"dim={dim} is not divisible by num_heads={num_heads}")
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim or dim // num_heads
        self.dropout, self.layer = dropout, layer
        qkv_bias = bias if qkv_bias is None else qkv_bias
        self.q = nn.Linear(dim, num_heads * self.head_dim, bias=qkv_bias)
        self.k = nn.Linear(dim, num_kv_heads * self.head_dim, bias=qkv_bias)
        self.v = nn.Linear(dim, num_kv_heads * self.head_dim, bias=qkv_bias)
        self.o = nn.Linear(num_heads * self.head_dim, dim, bias=bias)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, T, Dh)
        k = self.k(x).unflatten(-1, (self.num_kv_heads, -1)).transpose(1, 2)  # (B, Hkv, T, Dh)
        v = self.v(x).unflatten(-1, (self.num_kv_heads, -1)).transpose(1, 2)
        if context.rotary is not None:
            q, k = rotate(q, *context.rotary), rotate(k, *context.rotary)
        if context.cache is not None:
            k, v = context.cache.append(self.layer, k, v)
        mixed = attend(
            q,
            k,
            v,
            allowed=context.allowed,
            causal=context.causal,
            dropout=self.dropout if self.training else 0.0,
        )
        return torch.as_tensor(self.o(mixed.transpose(1, 2).flatten(2)))  # (B, T, D)


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, allowed: Tensor | None = None, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """softmax(q k^T / sqrt(Dh)) v. q: (B, H, T, Dh); k, v: (B, Hkv, S, Dh), Hkv divides H. Out: (B, H, T, Dh).

    allowed and causal as in `Context`.
    """
    assert not causal or q.shape[2] == k.shape[2], "causal means that the queries are the whole sequence"
    group = q.shape[1] // k.shape[1]
    if group > 1 and q.shape[2] == 1 and not dropout:
        # One query per sequence: the heads of a group become queries of one head, and no key is copied.
        folded = q.reshape(q.shape[0], k.shape[1], group, q.shape[3])
        return F.scaled_dot_product_attention(folded, k, v, attn_mask=allowed).reshape(q.shape)
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad and k.shape[2] <= SHORT:
        # The gradient in bfloat16 takes up to 6 times as long as in float32 here (torch 2.13, rows of 48).
        with torch.autocast("cpu", enabled=False):
            mixed = F.scaled_dot_product_attention(
                q.float(), k.float(), v.float(), attn_mask=allowed, is_causal=causal, dropout_p=dropout
            )
        return mixed.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal, dropout_p=dropout)


def causal_context(
    length: int,
    *,
    mask: Tensor | None,
    past: int,
    window: int | None,
    device: torch.device,
) -> tuple[Tensor | None, bool, Tensor]:
    """What length new tokens behind past cached ones may look at, and their positions.

    mask: (B, past + length) bool, True where a token is real; None if all are; or (B, length, past + length) bool, True
    where a query may look, for packed sequences and trees. window: how many tokens back a query sees, itself included.
    Returns allowed and causal as `Context` has them, and positions (B or 1, length), which count the real tokens that a
    query sees, so that padding on the left changes nothing. Raises LimitError if a mask of queries meets a window.
    """
    total = past + length
    if mask is not None and mask.ndim == 3:
        if window is not None and total > window:
            raise LimitError("mask", why=f"of {total} tokens cannot be combined with a window of {window}")
        return mask[:, None], False, mask.sum(-1) - 1
    if mask is None or bool(mask.all()):
        mask = None
        positions = torch.arange(past, total, device=device)[None]
    else:
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
    narrow = window is not None and total > window
    if mask is None and not narrow:
        if length == 1:
            return None, False, positions
        if past == 0:
            return None, True, positions
    rows = torch.arange(past, total, device=device)[:, None]
    columns = torch.arange(total, device=device)[None]
    allowed = columns <= rows
    if window is not None:
        allowed = allowed & (columns > rows - window)
    allowed = allowed[None, None]
    if mask is not None:
        # A padding query would see nothing and turn into NaN; it may look at itself.
        allowed = (allowed & mask[:, None, None, :]) | (columns == rows)[None, None]
    return allowed, False, positions
