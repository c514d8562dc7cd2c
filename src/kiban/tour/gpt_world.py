"""The world of GPT's exhibit: hidden tables, prompts that follow them, and what a reader who knows them would answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]
SHOTS = (0, 1, 2, 4, 8, 16)
SWITCHES = 40_000


@dataclass(frozen=True, kw_only=True)
class World:
    """Sizes. noise: share of the answers that are given wrong."""

    num_tables: int = 16
    num_questions: int = 24
    num_answers: int = 8
    noise: float = 0.25

    def __post_init__(self) -> None:
        # Else the balances that a question and a table promise cannot be kept.
        assert self.num_tables % self.num_answers == self.num_questions % self.num_answers == 0


def draw_tables(w: World, rng: np.random.Generator) -> Ints:
    """Hidden tables (tables, questions) of right answers, balanced both ways.

    Switching the corners of a rectangle keeps both balances; many such switches of a regular table make it a random one.
    """
    tables = (np.arange(w.num_tables)[:, None] + np.arange(w.num_questions)) % w.num_answers
    rows = rng.integers(w.num_tables, size=(SWITCHES, 2, 1))
    columns = rng.integers(w.num_questions, size=(SWITCHES, 1, 2))
    for place in zip(rows, columns, strict=True):
        corners = tables[place]
        if corners[0, 0] == corners[1, 1] and corners[0, 1] == corners[1, 0]:
            tables[place] = corners[:, ::-1]
    return tables


@dataclass(frozen=True)
class Prompts:
    """questions, right answers, and the answers that are given, each (N, shots + 1)."""

    questions: Ints
    right: Ints
    given: Ints

    @classmethod
    def draw(cls, w: World, tables: Ints, rng: np.random.Generator, count: int) -> Prompts:
        """count prompts; every pair of table and first question comes once before any comes twice."""
        pairs = w.num_tables * w.num_questions
        rounds = rng.permutation(np.arange(pairs * -(-count // pairs)))[:count] % pairs
        table, first = np.divmod(rounds, w.num_questions)
        later = rng.permuted(np.tile(np.arange(1, w.num_questions), (count, 1)), axis=1)[:, : SHOTS[-1]]
        questions = np.concatenate([first[:, None], (first[:, None] + later) % w.num_questions], axis=1)
        right = tables[table[:, None], questions]
        wrong = (right + rng.integers(1, w.num_answers, size=right.shape)) % w.num_answers
        return cls(questions, right, np.where(rng.random(right.shape) < w.noise, wrong, right))

    def dealt_round(self, shots: int, rng: np.random.Generator) -> Prompts:
        """The same with the answers of so many shots moved on by 1 to shots - 1 places, other ones in each prompt."""
        start = rng.integers(1, shots, size=(len(self.given), 1))
        places = (np.arange(shots) + start) % shots
        moved = np.take_along_axis(self.given, places, axis=1)
        return Prompts(self.questions, self.right, np.concatenate([moved, self.given[:, shots:]], axis=1))

    def tokens(self, w: World) -> Tensor:
        """question answer question answer ..., (N, 2 * (shots + 1)) int64."""
        return torch.from_numpy(np.stack([self.questions, answer_tokens(w, self.questions, self.given)], -1)).flatten(1)


def answer_tokens(w: World, questions: Ints, answers: Ints) -> Ints:
    """The tokens of these answers to these questions."""
    return w.num_questions + questions * w.num_answers + answers


def exact_bayes(w: World, tables: Ints, prompts: Prompts) -> NDArray[np.float64]:
    """P(answer is right | the shots before), (N, shots + 1, answers), for a reader who knows the tables and the noise.

    A table is as likely as its number of agreements with the shots says: each one more makes it `odds` times as likely.
    """
    says = tables[:, prompts.questions]  # (tables, N, shots + 1)
    odds = (1 - w.noise) / (w.noise / (w.num_answers - 1))
    agreements = np.zeros_like(says)
    # Counted, not summed in floats: equally likely tables stay equal, whatever the answer that is asked for will be.
    agreements[:, :, 1:] = np.cumsum(says == prompts.given, axis=2)[:, :, :-1]
    posterior = odds ** (agreements - agreements.max(axis=0)).astype(np.float64)
    posterior /= posterior.sum(axis=0)
    return np.stack([(posterior * (says == answer)).sum(axis=0) for answer in range(w.num_answers)], axis=-1)
