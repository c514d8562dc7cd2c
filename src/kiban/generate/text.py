"""Text generation in batches, with a cache, and streaming of whole characters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from kiban.errors import ConfigError, LimitError
from kiban.generate.sampling import Sampler, Sampling
from kiban.inputs.batch import pad_batch
from kiban.inputs.tokenizer import Tokenizer
from kiban.nn.cache import KVCache


class CausalModel(Protocol):
    """What generation needs: a family's decoder, or a plan of the engine."""

    config: Any

    def __call__(
        self, tokens: Tensor, *, mask: Tensor | None = None, cache: KVCache | None = None, last_only: bool = False
    ) -> Tensor: ...

    def make_cache(self, batch: int, max_len: int) -> KVCache: ...


@dataclass(frozen=True)
class Generation:
    """An answer: its text, its token ids (the closing one included), and why it ended."""

    text: str
    ids: list[int]
    finish_reason: Literal["stop", "length"]


class Row:
    """One answer as it grows."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int], sampling: Sampling) -> None:
        self.tokenizer, self.sampling = tokenizer, sampling
        self.seen = list(prompt)
        self.ids: list[int] = []
        self.stream = tokenizer.stream()
        self.text, self.given = "", 0
        self.reason: Literal["stop", "length"] | None = None

    def push(self, id: int) -> str:
        """Take the next id; returns the text that can be shown now."""
        self.ids.append(id)
        self.seen.append(id)
        if id in self.tokenizer.eos_ids:
            self.reason = "stop"
        else:
            self.text += self.stream.push(id)
        ended = self.reason is not None
        if not ended and len(self.ids) == self.sampling.max_new_tokens:
            self.reason, ended = "length", True
        if ended:
            self.text += self.stream.finish()
        found = [place for stop in self.sampling.stop if (place := self.text.find(stop)) >= 0]
        if found:
            self.text, self.reason, ended = self.text[: min(found)], "stop", True
        # What may yet turn out to be the beginning of a stop text is held back.
        until = len(self.text) if ended else len(self.text) - self._held_back()
        new, self.given = self.text[self.given : until], max(self.given, until)
        return new

    def _held_back(self) -> int:
        longest = max((len(stop) for stop in self.sampling.stop), default=1) - 1
        for size in range(min(longest, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-size:]) for stop in self.sampling.stop):
                return size
        return 0


@torch.inference_mode()
def generate(
    model: CausalModel,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    *,
    seeds: Sequence[int] | None = None,
    on_text: Callable[[int, str], None] | None = None,
) -> list[Generation]:
    """Continue every prompt (token ids). on_text(row, text) is called with each new piece of whole characters.

    seeds: one for each prompt; sampling.seed for all if None. An answer depends on its own prompt and seed
    alone. Raises LimitError with the counts if a prompt and its answer do not fit the model; nothing is ever cut.
    """
    check_lengths(model, prompts, sampling.max_new_tokens)
    if not prompts:
        return []
    rows = [Row(tokenizer, prompt, sampling) for prompt in prompts]
    sampler, device = Sampler(sampling, seeds or [sampling.seed] * len(rows)), device_of(model)
    tokens, mask = (t.to(device) for t in pad_batch(prompts, tokenizer.pad_id or 0, side="left"))
    cache = cache_for(model, len(rows), tokens.shape[1] + sampling.max_new_tokens)
    padded = not bool(mask.all())
    logits = model(tokens, mask=mask if padded else None, cache=cache, last_only=True)[:, -1]
    while True:
        ids = sampler(logits, [row.seen for row in rows])
        for number, (row, id) in enumerate(zip(rows, ids, strict=True)):
            if row.reason is None:
                new = row.push(id)
                if new and on_text is not None:
                    on_text(number, new)
        if all(row.reason is not None for row in rows):
            return [Generation(row.text, row.ids, row.reason or "length") for row in rows]
        if padded:
            mask = torch.cat((mask, mask.new_ones(len(rows), 1)), dim=1)
        logits = model(
            torch.tensor(ids, device=device)[:, None], mask=mask if padded else None, cache=cache, last_only=True
        )[:, -1]


def stream(model: CausalModel, tokenizer: Tokenizer, prompt: list[int], sampling: Sampling) -> Iterator[str]:
    """The answer to one prompt, piece by piece, whole characters only. Raises LimitError as `generate` does."""
    check_lengths(model, [prompt], sampling.max_new_tokens)
    row, sampler, device = Row(tokenizer, prompt, sampling), Sampler(sampling, [sampling.seed]), device_of(model)
    cache = cache_for(model, 1, len(prompt) + sampling.max_new_tokens)
    tokens = torch.tensor([prompt], device=device)
    while row.reason is None:
        with torch.inference_mode():
            logits = model(tokens, cache=cache, last_only=True)[:, -1]
            (id,) = sampler(logits, [row.seen])
        new = row.push(id)
        if new:
            yield new
        tokens = torch.tensor([[id]], device=device)


def device_of(model: CausalModel) -> torch.device:
    """Where a model takes its tokens."""
    if isinstance(model, nn.Module):
        return next(model.parameters()).device
    place: torch.device = getattr(model, "device", torch.device("cpu"))
    return place


def cache_for(model: CausalModel, batch: int, max_len: int) -> KVCache:
    """An empty cache in the model's dtype, where the model is."""
    if isinstance(model, nn.Module):
        module: Any = model
        first = next(module.parameters())
        cache: KVCache = module.make_cache(batch, max_len, dtype=first.dtype, device=first.device)
        return cache
    return model.make_cache(batch, max_len)


def check_lengths(model: CausalModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
    """Raises ConfigError for an empty prompt, LimitError for one that is too long."""
    for prompt in prompts:
        if not prompt:
            raise ConfigError("prompt", why="is empty", hint="give at least one character")
        if len(prompt) + new_tokens > model.config.max_seq_len:
            why = f"{len(prompt)} tokens and {new_tokens} new ones exceed the model's {model.config.max_seq_len}"
            raise LimitError("prompt", why=why, hint="shorten the prompt or lower max_new_tokens")
