"""Answers of different lengths as one row of tokens, so that a model reads its weights once for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kiban.engine.kernels import OneEach
from kiban.engine.pages import PagedKeys, Part, places_of, span_of
from kiban.nn.attention import attend, causal_context


class Ragged:
    """The new tokens of all parts, and attention for them.

    tokens, positions: (1, N). rows: those of the N whose logits are wanted, in the order of parts.
    """

    def __init__(self, parts: Sequence[Part], keys: PagedKeys, *, window: int | None) -> None:
        """window: how many tokens back a query sees, itself included; None for all."""
        self._keys = keys
        self._sizes = [len(part.ids) for part in parts]
        device = keys.both.device
        looks = [
            causal_context(len(part.ids), mask=None, past=part.past, window=window, device=device) for part in parts
        ]
        self._allowed = [(allowed, causal) for allowed, causal, _ in looks]
        self._one_each = sum(self._sizes) == len(parts) and not any(allowed is not None for allowed, _ in self._allowed)
        self._kernel = OneEach(parts) if self._one_each and OneEach.fits(keys.both) else None
        spans = [] if self._kernel else [span_of(part.pages, part.end) for part in parts]
        self._held = [keys.views(span) if isinstance(span, slice) else span.to(device) for span in spans]
        tokens = torch.tensor([id for part in parts for id in part.ids])
        positions = torch.cat([torch.arange(part.past, part.end) for part in parts])
        places = torch.cat([places_of(part.pages, part.past, part.end) for part in parts])
        # One copy to the device for all three.
        self.tokens, self.positions, places = torch.stack((tokens, positions, places)).to(device)[:, None].unbind()
        self._places = places[0]
        self.longest = max(part.end for part in parts)
        self.rows: list[int] = []
        start = 0
        for part in parts:
            start += len(part.ids)
            self.rows += range(start - part.num_logits, start)

    def attend(self, q: Tensor, kv: Tensor, layer: int) -> Tensor:
        """Store keys and values and let each answer look at its own. q: (1, N, H, Dh); kv: (1, N, 2 Hkv, Dh). Same as q out.

        Without kernels of ours, one call for each answer is faster than one for all of them padded, since keys are then read
        where they lie.
        """
        self._keys.write(layer, self._places, kv[0].transpose(0, 1))
        if self._kernel is not None:
            return self._kernel(q, self._keys.layers[layer])
        pairs = [held[layer] if isinstance(held, list) else self._keys.read(layer, held) for held in self._held]
        if self._one_each:
            # The heads of a group are more queries of one head, as in `attend`; here for all answers at once.
            rows = q.view(q.shape[1], 1, kv.shape[2] // 2, -1, q.shape[3]).unbind()  # each (1, Hkv, H / Hkv, Dh)
            mixed = [F.scaled_dot_product_attention(row, *pair) for row, pair in zip(rows, pairs, strict=True)]
            return torch.cat(mixed).view(q.shape)
        mixed = []
        for row, (keys, values), (allowed, causal) in zip(
            torch.split(q, self._sizes, dim=1), pairs, self._allowed, strict=True
        ):
            look = attend if causal or allowed is None else _folded
            mixed.append(look(row.transpose(1, 2), keys, values, allowed=allowed, causal=causal).transpose(1, 2))
        return torch.cat(mixed, dim=1)


def _folded(q: Tensor, k: Tensor, v: Tensor, *, allowed: Tensor | None, causal: bool) -> Tensor:
    """`attend` with the heads of a group as more queries of one head, so that no key is copied for them. B = 1."""
    assert allowed is not None and not causal
    folded = q.reshape(1, k.shape[1], -1, q.shape[3])  # (1, Hkv, H / Hkv T, Dh)
    group = q.shape[1] // k.shape[1]
    return attend(folded, k, v, allowed=allowed.repeat(1, 1, group, 1)).reshape(q.shape)
