"""One step of a model over many answers of different lengths, whose keys lie in pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from kiban.engine import kernels
from kiban.engine.compiled import Compiled
from kiban.engine.decoder import DecoderPlan
from kiban.engine.graphs import Graphs
from kiban.engine.pages import PAGE, PagedKeys, Part, places_of, span_of
from kiban.errors import LimitError
from kiban.generate.text import CausalModel, device_of
from kiban.nn.cache import KVCache


class BatchModel(Protocol):
    """What a scheduler asks of a model."""

    def step(self, parts: Sequence[Part]) -> Tensor:
        """Store the keys of all new tokens; logits (sum of num_logits, V) float32, in the order of parts."""
        ...

    @property
    def num_compiled(self) -> int:
        """Sizes of steps that are compiled."""
        ...

    def close(self) -> None:
        """End what runs beside it."""
        ...


def batched(model: CausalModel, memory: int, most: int, *, compiled: bool = False) -> tuple[BatchModel, int]:
    """A model over pages of keys, and their number: at most `most`, and at most memory bytes in all.

    compiled: let a child compile steps of few answers on a CPU; a GPU has graphs of them in any case. Raises LimitError if
    not a single page fits.
    """
    dtype = (
        next(model.parameters()).dtype if isinstance(model, nn.Module) else getattr(model, "keys_dtype", torch.float32)
    )
    size = PagedKeys.page_bytes(model.config, dtype)
    if memory < size:
        raise LimitError("memory", why=f"{memory} bytes do not hold the keys of {PAGE} tokens, which take {size}")
    num_pages = min(most, memory // size)
    keys = PagedKeys(model.config, num_pages, dtype=dtype, device=device_of(model))
    if not isinstance(model, DecoderPlan):
        return Padded(model, keys), num_pages
    if keys.both.is_cuda:
        return Flat(model, keys, Graphs(model, keys)), num_pages
    kernels.library()  # made now, and not while somebody waits
    return Flat(model, keys, Compiled(model, keys) if compiled else None), num_pages


class Flat:
    """A plan that takes the tokens of all answers as one row."""

    def __init__(self, plan: DecoderPlan, keys: PagedKeys, fast: Compiled | Graphs | None = None) -> None:
        """fast: what takes steps that suit it."""
        self.plan, self.keys, self.fast = plan, keys, fast

    def step(self, parts: Sequence[Part]) -> Tensor:
        """As `BatchModel` says."""
        logits = None if self.fast is None else self.fast(parts)
        return self.plan.step(parts, self.keys) if logits is None else logits

    @property
    def num_compiled(self) -> int:
        """As `BatchModel` says."""
        return 0 if self.fast is None else self.fast.num_ready

    def close(self) -> None:
        """As `BatchModel` says."""
        if self.fast is not None:
            self.fast.close()


class Padded:
    """Any family: all answers that bring one token at once, padded on the left; every other one by itself."""

    def __init__(self, model: CausalModel, keys: PagedKeys) -> None:
        self.model, self.keys, self.device = model, keys, device_of(model)

    def step(self, parts: Sequence[Part]) -> Tensor:
        """As `BatchModel` says."""
        single = [number for number, part in enumerate(parts) if len(part.ids) == part.num_logits == 1]
        rows: dict[int, Tensor] = {}  # (num_logits, V) by number of the part
        if single:
            logits = self._singles([parts[number] for number in single])
            rows = dict(zip(single, logits[:, None], strict=True))
        for number, part in enumerate(parts):
            if number not in rows:
                rows[number] = self._alone(part)
        return torch.cat([rows[number] for number in range(len(parts))])

    @property
    def num_compiled(self) -> int:
        """As `BatchModel` says."""
        return 0

    def close(self) -> None:
        """As `BatchModel` says."""

    def _singles(self, parts: Sequence[Part]) -> Tensor:
        """Logits (B, V) of parts with one token each."""
        longest = max(part.end for part in parts)
        padding = [longest - part.end for part in parts]
        places = torch.empty(len(parts), longest, dtype=torch.int64)
        for row, (part, empty) in enumerate(zip(parts, padding, strict=True)):
            places[row, empty:] = places_of(part.pages, 0, part.end)
            places[row, :empty] = places[row, empty]  # something that was written, though the mask hides it
        mask = None
        if any(padding):
            mask = torch.arange(longest) >= torch.tensor(padding)[:, None]  # (B, S)
            mask = mask.to(self.device)
        places = places.to(self.device)
        tokens = torch.tensor([part.ids for part in parts], device=self.device)  # (B, 1)
        cache = _View(self.keys, places[:, -1:], places, longest - 1)
        return self.model(tokens, mask=mask, cache=cache)[:, -1].float()

    def _alone(self, part: Part) -> Tensor:
        """Logits (num_logits, V) of one part."""
        new = places_of(part.pages, part.past, part.end).to(self.device)[None]
        span = span_of(part.pages, part.end)
        cache = _View(self.keys, new, span if isinstance(span, slice) else span.to(self.device)[None], part.past)
        tokens = torch.tensor([part.ids], device=self.device)
        logits = self.model(tokens, cache=cache, last_only=part.num_logits < 2)[0]
        return logits[len(logits) - part.num_logits :].float()


class _View(KVCache):
    """Pages that look to a model like a cache of its own."""

    def __init__(self, pages: PagedKeys, new: Tensor, places: slice | Tensor, length: int) -> None:
        """new: places (B, T) of the new tokens; places: (B, S) of all, or a slice for one row; length: S - T."""
        self.pages, self.new = pages, new
        self.views = pages.views(places) if isinstance(places, slice) else []
        self.places = new if isinstance(places, slice) else places
        self.length, self.max_len = length, length + new.shape[1]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, Hkv, T, Dh) of one layer; returns all so far."""
        both = torch.cat((keys, values), dim=1).transpose(0, 1).flatten(1, 2)  # (2 Hkv, B T, Dh)
        self.pages.write(layer, self.new.flatten(), both)
        if self.views:
            return self.views[layer]
        keys, values = self.pages.read(layer, self.places.flatten())  # (1, Hkv, B S, Dh)
        shape = (keys.shape[1], *self.places.shape, keys.shape[-1])
        return keys.view(shape).transpose(0, 1), values.view(shape).transpose(0, 1)
