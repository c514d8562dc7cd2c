"""The likelihood of given texts, and the choice among them: an answer that is scored needs no parsing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kiban.config import Progress, silent
from kiban.errors import ConfigError
from kiban.generate.text import CausalModel, check_lengths
from kiban.inputs.batch import pad_batch


@torch.inference_mode()
def log_likelihood(
    model: CausalModel, contexts: Sequence[list[int]], continuations: Sequence[list[int]], *, batch_size: int = 8
) -> list[float]:
    """Sum of log p over the tokens of each continuation after its context (at least one token)."""
    rows = [context + continuation for context, continuation in zip(contexts, continuations, strict=True)]
    check_lengths(model, contexts, 0)
    check_lengths(model, rows, 0)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    result = [0.0] * len(rows)
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        tokens, mask = pad_batch([rows[i] for i in chosen], 0)
        logits = model(tokens, mask=mask)  # padding on the right changes nothing before it
        for row, i in enumerate(chosen):
            begin, end = len(contexts[i]), len(rows[i])
            wanted = tokens[row, begin:end]
            scores = logits[row, begin - 1 : end - 1].float().log_softmax(-1)
            result[i] = float(scores.gather(-1, wanted[:, None]).sum())
    return result


@torch.inference_mode()
def score_choices(
    model: CausalModel,
    prompts: Sequence[list[int]],
    choices: Sequence[list[int]],
    *,
    normalise: Literal["tokens", "sum"] = "tokens",
    progress: Progress = silent,
) -> Tensor:
    """log p of every choice after every prompt, (N, C) float32; by token if normalise is "tokens".

    A prompt is read once: its cache is shared by the choices, and what all prompts begin with (the instructions) is read
    once for all. Raises ConfigError without a choice, LimitError if a prompt is too long.
    """
    if not choices or not all(choices):
        raise ConfigError("choices", why="need at least one choice, and none may be empty")
    longest = max(len(choice) for choice in choices)
    check_lengths(model, prompts, longest)
    shared = _common_prefix(prompts)
    start = model.make_cache(1, max(1, len(shared)))
    if shared:
        model(torch.tensor([shared]), cache=start, last_only=True)
    tokens, mask = pad_batch([choice[:-1] for choice in choices], 0)  # the last token is only predicted
    steps = torch.full((len(choices), longest), -1)
    for row, choice in enumerate(choices):
        steps[row, : len(choice)] = torch.tensor(choice)
    lengths = (steps >= 0).sum(-1)
    scores = torch.empty(len(prompts), len(choices))
    for number, prompt in enumerate(prompts):
        rest = prompt[len(shared) :]
        cache = start.repeat(1, len(prompt))
        first = model(torch.tensor([rest]), cache=cache, last_only=True)[:, -1].float().log_softmax(-1)  # (1, V)
        total = first[0, steps[:, 0]]
        if longest > 1:
            branches = cache.repeat(len(choices), len(prompt) + longest)
            whole = torch.cat((torch.ones(len(choices), len(prompt), dtype=torch.bool), mask), dim=1)
            later = model(tokens, mask=whole, cache=branches).float().log_softmax(-1)  # (C, longest - 1, V)
            wanted = steps[:, 1:].clamp(min=0)
            gained = later.gather(-1, wanted[..., None])[..., 0]
            total = total + gained.masked_fill(steps[:, 1:] < 0, 0.0).sum(-1)
        scores[number] = total / lengths if normalise == "tokens" else total
        progress("score", number + 1, len(prompts))
    return scores


def _common_prefix(prompts: Sequence[list[int]]) -> list[int]:
    """What all prompts begin with; at least one token of each is left over."""
    shared = list(prompts[0][:-1]) if prompts else []
    for prompt in prompts:
        limit = min(len(shared), len(prompt) - 1)
        same = next((i for i in range(limit) if shared[i] != prompt[i]), limit)
        shared = shared[:same]
    return shared
