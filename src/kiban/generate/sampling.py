"""How the next token is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kiban.errors import ConfigError
from kiban.generate import logits as shape


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """temperature 0 is greedy. top_k 0, top_p 1, min_p 0 and repetition_penalty 1 switch each of them off.

    stop: texts that end the answer; they are not part of it.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "max_new_tokens": self.max_new_tokens >= 1,
            "temperature": 0 <= self.temperature <= 100,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "min_p": 0 <= self.min_p <= 1,
            "repetition_penalty": 0 < self.repetition_penalty <= 100,
            "stop": all(self.stop),
        }
        for name, fine in rules.items():
            if not fine:
                raise ConfigError("sampling", field=name, why=f"{getattr(self, name)!r} is out of range")


class Sampler:
    """Chooses tokens for a batch. Every row has its own generator, so its answer does not depend on its neighbours."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int]) -> None:
        """seeds: one for each row."""
        self.sampling = sampling
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, logits: Tensor, seen: Sequence[Sequence[int]]) -> list[int]:
        """The next id of each row. logits: (B, V); seen: the ids of each row so far, prompt included."""
        s, scores = self.sampling, logits.float()
        if s.repetition_penalty != 1:
            scores = shape.repetition_penalty(scores, seen, s.repetition_penalty)
        if s.temperature == 0:
            return [int(id) for id in scores.argmax(-1).tolist()]
        scores = shape.temperature(scores, s.temperature)
        if s.top_k:
            scores = shape.top_k(scores, s.top_k)
        if s.top_p < 1:
            scores = shape.top_p(scores, s.top_p)
        if s.min_p > 0:
            scores = shape.min_p(scores, s.min_p)
        probabilities = scores.softmax(-1).cpu()
        draws = zip(probabilities, self.generators, strict=True)
        return [int(torch.multinomial(row, 1, generator=generator)) for row, generator in draws]
