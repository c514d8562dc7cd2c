"""Keys and values of many answers in pages of a fixed number of tokens, as Kwon et al. 2023 (PagedAttention) keep them.

Whole pages are known by what they hold and all before it, so a prompt that begins like an earlier one takes over its pages
instead of being read again. Pages lie in one long row per head; an answer whose pages follow each other is read without a
copy, so `Pages.grow` lets them follow each other where it can.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PAGE = 32  # tokens


@dataclass(frozen=True)
class Part:
    """What one answer brings to a step: new token ids behind past ones. Its pages have room for all of them.

    num_logits: of so many of the last positions logits are wanted.
    """

    ids: Sequence[int]
    past: int
    pages: Sequence[int]
    num_logits: int = 1

    @property
    def end(self) -> int:
        """Number of tokens with the new ones."""
        return self.past + len(self.ids)


class PagedKeys:
    """Room for num_pages pages and a spare one. both: keys and values, (L, 2, Hkv, (num_pages + 1) * PAGE, Dh). layers: the
    same by layer, each (2 Hkv, (num_pages + 1) * PAGE, Dh).

    spare: the number of the page behind the others, where steps of a fixed size put what no answer wants.
    """

    def __init__(self, config: Any, num_pages: int, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        """config: a family's, with num_layers, num_kv_heads and head_dim."""
        self.spare = num_pages
        shape = (config.num_layers, 2, config.num_kv_heads, (num_pages + 1) * PAGE, config.head_dim)
        # Never read before it is written, and on a CPU not in memory before that.
        self.both = torch.empty(shape, dtype=dtype, device=device)
        self.layers = self.both.flatten(1, 2).unbind()

    @staticmethod
    def page_bytes(config: Any, dtype: torch.dtype) -> int:
        """Memory of one page in all layers."""
        return int(2 * config.num_layers * config.num_kv_heads * config.head_dim * PAGE * dtype.itemsize)

    def write(self, layer: int, places: Tensor, both: Tensor) -> None:
        """Store keys and behind them values, (2 Hkv, N, Dh), of one layer at places (N,)."""
        self.layers[layer].index_copy_(1, places, both)

    def read(self, layer: int, places: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (1, Hkv, N, Dh) of one layer, copied."""
        keys, values = self.layers[layer].index_select(1, places).chunk(2)
        return keys[None], values[None]

    def views(self, span: slice) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (1, Hkv, N, Dh) of each layer, without a copy, so they show what is written later too."""
        parts = self.both.narrow(3, span.start, span.stop - span.start).flatten(0, 1)[:, None].unbind()
        return list(zip(parts[::2], parts[1::2], strict=True))

    def spans(self, span: slice) -> tuple[Tensor, ...]:
        """Keys and behind them values (2 Hkv, N, Dh) of each layer, without a copy; what is written to them is stored."""
        return self.both.narrow(3, span.start, span.stop - span.start).flatten(1, 2).unbind()


def places_of(pages: Sequence[int], start: int, end: int) -> Tensor:
    """Where an answer's tokens from start up to end lie, (end - start,) int64."""
    first = start // PAGE
    rows = torch.tensor(pages[first : -(-end // PAGE)])[:, None] * PAGE + torch.arange(PAGE)
    return rows.flatten()[start - first * PAGE : end - first * PAGE]


def span_of(pages: Sequence[int], end: int) -> slice | Tensor:
    """Where an answer's first end tokens lie: a slice if its pages follow each other."""
    needed = -(-end // PAGE)
    if all(pages[i] == pages[0] + i for i in range(needed)):
        return slice(pages[0] * PAGE, pages[0] * PAGE + end)
    return places_of(pages, 0, end)


class Pages:
    """Who has which page. A page is free, or used by one answer or more, or idle: kept because what it holds is known.

    Idle pages are given away when no free one is left, those that were let go first first.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = set(range(num_pages))
        self._users: dict[int, int] = {}  # of pages in use
        self._idle: OrderedDict[int, None] = OrderedDict()  # the oldest first
        self._page: dict[bytes, int] = {}  # by digest
        self._digest: dict[int, bytes] = {}  # by page

    @property
    def num_used(self) -> int:
        """Pages that answers hold."""
        return len(self._users)

    @property
    def num_idle(self) -> int:
        """Pages that nobody holds, whose content is known."""
        return len(self._idle)

    @property
    def num_available(self) -> int:
        """Pages that can be taken."""
        return len(self._free) + len(self._idle)

    def grow(self, pages: list[int], count: int) -> None:
        """Append count more pages to those of an answer; so many must be available."""
        assert count <= self.num_available
        while len(self._free) < count:
            oldest, _ = self._idle.popitem(last=False)
            del self._page[self._digest.pop(oldest)]
            self._free.add(oldest)
        for missing in range(count, 0, -1):
            following = pages[-1] + 1 if pages else -1
            page = following if following in self._free else self._roomiest(missing)
            self._free.remove(page)
            self._users[page] = 1
            pages.append(page)

    def share(self, digest: bytes) -> int | None:
        """The page that holds this, now used once more; None if there is none."""
        page = self._page.get(digest)
        if page is not None:
            self._idle.pop(page, None)
            self._users[page] = self._users.get(page, 0) + 1
        return page

    def know(self, page: int, digest: bytes) -> None:
        """A page in use is full from now on and holds this. If another page holds the same, that one stays the known one."""
        assert page in self._users
        if digest not in self._page and page not in self._digest:
            self._page[digest], self._digest[page] = page, digest

    def release(self, pages: list[int]) -> None:
        """An answer lets its pages go; the list is emptied. The last ones become idle first: they are the least shared."""
        while pages:
            page = pages.pop()
            self._users[page] -= 1
            if self._users[page]:
                continue
            del self._users[page]
            if page in self._digest:
                self._idle[page] = None
            else:
                self._free.add(page)

    def check(self) -> None:
        """Every page is in exactly one state, and every known page is found by what it holds."""
        states = [self._free, self._users.keys(), self._idle.keys()]
        assert sum(map(len, states)) == self.num_pages and set().union(*states) == set(range(self.num_pages))
        assert all(users > 0 for users in self._users.values())
        assert {page: digest for digest, page in self._page.items()} == self._digest
        assert self._idle.keys() <= self._digest.keys() <= self._idle.keys() | self._users.keys()

    def _roomiest(self, count: int) -> int:
        """The page from which count and more can follow: in the middle of the widest gap, so its neighbours can grow."""
        first, length = max(self._gaps(), key=lambda gap: gap[1])
        return first + max(0, (length - count) // 2)

    def _gaps(self) -> Iterator[tuple[int, int]]:
        """First page and length of each run of free ones."""
        ordered = sorted(self._free)
        first = 0
        for i in range(1, len(ordered) + 1):
            if i == len(ordered) or ordered[i] != ordered[i - 1] + 1:
                yield ordered[first], i - first
                first = i


def digests(ids: Sequence[int], known: list[bytes]) -> list[bytes]:
    """One for each whole page of ids, made of its tokens and all before them. known: those of the first pages; extended."""
    for number in range(len(known), len(ids) // PAGE):
        page = array("q", ids[number * PAGE : (number + 1) * PAGE]).tobytes()
        known.append(hashlib.blake2b((known[-1] if known else b"") + page, digest_size=16).digest())
    return known
