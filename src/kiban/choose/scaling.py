"""Scaling laws: the loss that a model of some size reaches on some tokens, and the size that a budget is best spent on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from kiban.errors import ConfigError


class Law(NamedTuple):
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats per token (Hoffmann et al. 2022, section 3.3)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Loss of a model of so many parameters after so many tokens, each seen once."""
        return float(self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta)

    def best(self, flops: float) -> tuple[float, float]:
        """(parameters, tokens) with the least loss for C = 6 N D."""
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        parameters = scale * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return parameters, flops / 6 / parameters


# The refit: the constants printed by Hoffmann et al., rounded, do not give their own Chinchilla-70B.
BESIROGLU = Law(1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # Besiroglu et al. 2024, table 1


def effective_tokens(tokens: float, unique: float) -> float:
    """What tokens are worth if only so many are different: repetitions fade (Muennighoff et al. 2023, eq. 5, R* = 15)."""
    if tokens <= unique:
        return tokens
    return unique * (1 + 15.4 * (1 - math.exp(-(tokens / unique - 1) / 15.4)))


class Rung(NamedTuple):
    """A size that may be chosen: its parameters, and the tokens it can learn from in the time there is."""

    parameters: int
    tokens: float


def best_size(rungs: Mapping[str, Rung], unique_tokens: float, law: Law = BESIROGLU) -> tuple[str, dict[str, float]]:
    """The size with the least predicted loss, and what is predicted for each. Raises ConfigError if there is none."""
    if not rungs:
        raise ConfigError("size", why="there is none to choose from")
    losses = {n: law.loss(r.parameters, effective_tokens(r.tokens, unique_tokens)) for n, r in rungs.items()}
    return min(losses, key=lambda name: losses[name]), losses
