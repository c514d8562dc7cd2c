"""Whole words hidden from BERT, for it to guess (Devlin et al. 2019, section 3.1 and appendix A.1).

Words rather than their pieces, as Google's later BERTs and the Japanese ones were trained. Deviations from the released
code: the budget is of words, so that long words are hidden as often as short ones, and special tokens, the unknown one
among them, are neither hidden nor put in place of another.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kiban.errors import ConfigError
from kiban.inputs.backends import Fast, JapaneseBert
from kiban.inputs.batch import IGNORE
from kiban.inputs.japanese_bert import PREFIX
from kiban.inputs.tokenizer import Tokenizer


def continues(tokenizer: Tokenizer) -> Tensor:
    """Which tokens go on with the word before them, (V,) bool: those of WordPiece that begin with ##.

    In Japanese a word is one of MeCab's. Raises ConfigError if the tokenizer is not BERT's.
    """
    backend = tokenizer.backend
    if not isinstance(backend, JapaneseBert) and not (isinstance(backend, Fast) and backend.kind == "WordPiece"):
        raise ConfigError("masked words", why="this tokenizer is not WordPiece", hint="take a BERT's tokenizer")
    result = torch.zeros(tokenizer.vocab_size, dtype=torch.bool)
    result[[id for token, id in backend.vocabulary.items() if token.startswith(PREFIX) and token != PREFIX]] = True
    return result


@dataclass(frozen=True)
class WordMasking:
    """Hides a share of the words of each row.

    continues: (V,) bool, tokens that go on with the word before them. special: (V,) bool, tokens that are left alone.
    rate: share of a row's words, at least one word of a row that has any.
    """

    continues: Tensor
    special: Tensor
    mask_id: int
    rate: float = 0.15

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ConfigError("masked words", field="rate", why=f"{self.rate} is not between 0 and 1")

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, rate: float = 0.15) -> WordMasking:
        """For a BERT's tokenizer. Raises ConfigError if it has no [MASK] or is not WordPiece."""
        if tokenizer.mask_id is None:
            raise ConfigError("masked words", why="this tokenizer has no [MASK]", hint="take a BERT's tokenizer")
        special = torch.zeros(tokenizer.vocab_size, dtype=torch.bool)
        special[list(tokenizer.backend.control_tokens().values())] = True
        return cls(continues(tokenizer), special, tokenizer.mask_id, rate)

    @cached_property
    def _ordinary(self) -> Tensor:
        """The ids of tokens that are not special."""
        return (~self.special).nonzero().squeeze(1)

    def __call__(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """tokens (B, T) int64 to (tokens with words hidden, labels): labels hold the hidden tokens, -100 elsewhere.

        Of the tokens of the chosen words 80% become [MASK], 10% a random token and 10% stay, each on its own.
        """
        chosen = self.choose(tokens, generator)
        fate = torch.rand(tokens.shape, generator=generator)
        random = self._ordinary[torch.randint(len(self._ordinary), tokens.shape, generator=generator)]
        hidden = tokens.masked_fill(chosen & (fate < 0.8), self.mask_id)
        hidden = torch.where(chosen & (fate >= 0.9), random, hidden)
        return hidden, tokens.masked_fill(~chosen, IGNORE)

    def choose(self, tokens: Tensor, generator: torch.Generator) -> Tensor:
        """The tokens of round(rate * number of words) random words of each row, (B, T) bool."""
        ordinary = ~self.special[tokens]
        after = torch.zeros_like(ordinary)
        after[:, 1:] = ordinary[:, :-1]
        first = ordinary & ~(self.continues[tokens] & after)  # of a word; a piece behind no word is one itself
        num_words = first.sum(1, keepdim=True)
        budget = (self.rate * num_words).round().clamp(min=1).minimum(num_words)
        order = torch.rand(tokens.shape, generator=generator).masked_fill(~first, 2.0).argsort(1)
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(tokens.shape[1]).expand_as(order))
        begins = torch.where(first, torch.arange(tokens.shape[1]), 0).cummax(1).values  # where each token's word does
        return ordinary & (rank < budget).gather(1, begins)
