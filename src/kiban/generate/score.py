"""The likelihood of given texts, and the choice among them: an answer that is scored needs no parsing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kiban.config import Progress, silent
from kiban.errors import ConfigError
from kiban.generate.text import CausalModel, cache_for, check_lengths, device_of
from kiban.inputs.batch import pad_batch

MAX_POSITIONS = 512  # whose logits over the whole vocabulary are held at once


@torch.inference_mode()
def log_likelihood(
    model: CausalModel, contexts: Sequence[list[int]], continuations: Sequence[list[int]], *, batch_size: int = 8
) -> list[float]:
    """Sum of log p over the tokens of each continuation after its context (at least one token).

    Raises ConfigError if a context is empty, LimitError if a row is too long.
    """
    for context, continuation in zip(contexts, continuations, strict=True):
        check_lengths(model, [context], len(continuation))
    order = sorted(range(len(contexts)), key=lambda i: (len(contexts[i]), len(continuations[i])))
    result = [0.0] * len(contexts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        sums = _continue(model, [contexts[i] for i in chosen], [continuations[i] for i in chosen])
        for i, value in zip(chosen, sums.tolist(), strict=True):
            result[i] = value
    return result


def _continue(model: CausalModel, contexts: Sequence[list[int]], continuations: Sequence[list[int]]) -> Tensor:
    """log p of each continuation after its context, (B,). Logits are made only where they are asked for."""
    device = device_of(model)
    tokens, real = (t.to(device) for t in pad_batch(contexts, 0, side="left"))
    wanted, asked = (t.to(device) for t in pad_batch(continuations, 0))
    cache = cache_for(model, len(contexts), tokens.shape[1] + wanted.shape[1])
    logits = model(tokens, mask=real, cache=cache, last_only=True)
    total = _gains(logits, wanted[:, :1], asked[:, :1])
    step, last = max(1, MAX_POSITIONS // len(contexts)), wanted.shape[1] - 1
    for start in range(0, last, step):
        end = min(start + step, last)
        mask = torch.cat((real, asked[:, :end]), dim=1)
        logits = model(wanted[:, start:end], mask=mask, cache=cache)
        total += _gains(logits, wanted[:, start + 1 : end + 1], asked[:, start + 1 : end + 1])
    return total


def _gains(logits: Tensor, wanted: Tensor, asked: Tensor) -> Tensor:
    """Sum of log p of the wanted ids (B, T) where asked, under logits (B, T, V): (B,)."""
    logits = logits.float()
    gained = logits.gather(-1, wanted[..., None])[..., 0] - logits.logsumexp(-1)  # (B, T)
    return gained.masked_fill(~asked, 0.0).sum(-1)


class ChoiceScorer:
    """Scores the same choices after many prompts.

    prefix: what prompts begin with (the instructions); it is read once, now, for all calls. A prompt that begins
    otherwise is scored all the same, only later. normalise: "tokens" divides log p by the number of tokens of a choice.
    Raises ConfigError without a choice or if one is empty.
    """

    def __init__(
        self,
        model: CausalModel,
        choices: Sequence[list[int]],
        *,
        prefix: Sequence[int] = (),
        normalise: Literal["tokens", "sum"] = "tokens",
        batch_size: int = 8,
    ) -> None:
        if not choices or not all(choices):
            raise ConfigError("choices", why="need at least one choice, and none may be empty")
        self.model, self.prefix, self.device = model, list(prefix), device_of(model)
        self.lengths = torch.tensor([len(choice) for choice in choices], device=self.device)
        self.divisor = self.lengths if normalise == "tokens" else torch.ones_like(self.lengths)
        self.first = torch.tensor([choice[0] for choice in choices], device=self.device)
        # All choices stand in one row behind the prompt; each token sees those of its own choice before it. The last
        # tokens are only predicted, never read.
        owner = [number for number, choice in enumerate(choices) for _ in choice[1:]]
        self.owner = torch.tensor(owner, dtype=torch.int64, device=self.device)  # (R,)
        self.read = torch.tensor([id for choice in choices for id in choice[:-1]], device=self.device)
        self.wanted = torch.tensor([id for choice in choices for id in choice[1:]], device=self.device)
        self.branches = (self.owner[:, None] == self.owner).tril()  # (R, R)
        self.batch_size = max(1, min(batch_size, MAX_POSITIONS // max(1, len(owner))))
        self.start = cache_for(model, 1, max(1, len(self.prefix)))
        if self.prefix:
            check_lengths(model, [self.prefix], 0)
            with torch.inference_mode():
                model(torch.tensor([self.prefix], device=self.device), cache=self.start, last_only=True)

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[list[int]], *, progress: Progress = silent) -> Tensor:
        """log p of every choice after every prompt, (N, C) float32. Raises LimitError if a prompt is too long."""
        check_lengths(self.model, prompts, int(self.lengths.max()))
        scores = torch.empty(len(prompts), len(self.lengths))
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            scores[chosen] = (self._batch([prompts[i] for i in chosen]) / self.divisor).cpu()
            progress("score", start + len(chosen), len(prompts))
        return scores

    def _batch(self, prompts: Sequence[list[int]]) -> Tensor:
        """Sums of log p, (B, C). A prompt is read once and its keys are shared by the choices."""
        past = len(common_prefix([[*self.prefix, -1], *prompts])) if self.prefix else 0
        tokens, real = (t.to(self.device) for t in pad_batch([p[past:] for p in prompts], 0, side="left"))
        extra = len(self.owner)
        known = cache_for(self.model, len(prompts), past + tokens.shape[1] + extra)
        known.keys[:, :, :, :past] = self.start.keys[:, :, :, :past]
        known.values[:, :, :, :past] = self.start.values[:, :, :, :past]
        known.length = past
        mask = torch.cat((torch.ones(len(prompts), past, dtype=torch.bool, device=self.device), real), dim=1)
        first = self.model(tokens, mask=mask, cache=known, last_only=True)[:, -1].float()  # (B, V)
        total = first[:, self.first] - first.logsumexp(-1, keepdim=True)  # (B, C)
        if extra:
            read = self.read.expand(len(prompts), -1)
            seen = torch.cat((mask[:, None].expand(-1, extra, -1), self.branches.expand(len(prompts), -1, -1)), dim=2)
            logits = self.model(read, mask=seen, cache=known).float()  # (B, R, V)
            gained = logits.gather(-1, self.wanted.expand(len(prompts), -1)[..., None])[..., 0] - logits.logsumexp(-1)
            total.index_add_(1, self.owner, gained)
        return total


def score_choices(
    model: CausalModel,
    prompts: Sequence[list[int]],
    choices: Sequence[list[int]],
    *,
    normalise: Literal["tokens", "sum"] = "tokens",
    batch_size: int = 8,
    progress: Progress = silent,
) -> Tensor:
    """log p of every choice after every prompt, (N, C) float32; by token if normalise is "tokens".

    What all prompts begin with (the instructions) is read once for all, and each rest once for all its choices. Raises
    ConfigError without a choice, LimitError if a prompt is too long.
    """
    if choices and all(choices):
        check_lengths(model, prompts, max(len(choice) for choice in choices))
    prefix = common_prefix(prompts) if len(prompts) > batch_size else []  # fewer are one pass anyway
    scorer = ChoiceScorer(model, choices, prefix=prefix, normalise=normalise, batch_size=batch_size)
    return scorer(prompts, progress=progress)


def calibrate(scores: Tensor, blank: Tensor) -> Tensor:
    """Scores (N, C) less what the choices score after prompts without content, (M, C), on average.

    A small model favours some labels whatever the text (Zhao et al. 2021, section 4; here on log p).
    """
    return scores - blank.mean(0)


def common_prefix(rows: Sequence[Sequence[int]]) -> list[int]:
    """What all rows begin with; at least one token of each is left over."""
    shared = list(rows[0][:-1]) if rows else []
    for row in rows:
        limit = min(len(shared), len(row) - 1)
        shared = shared[: next((i for i in range(limit) if shared[i] != row[i]), limit)]
    return shared
