"""Byte-pair merges from counted words, by the trainer of `tokenizers`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from kiban.inputs.learn.counts import Count, in_proportion

BREAK = "\uffff"  # no character; words never hold it
MAX_FED = 20_000_000  # words that are handed to the trainer; it takes about a microsecond for each
CHUNK = 2**16  # characters at a time

Merge = tuple[str, str]


def learn_merges(
    counts: Sequence[Count], *, vocab_size: int, alphabet: Iterable[str] = (), prefix: str = ""
) -> tuple[list[str], list[Merge]]:
    """The tokens, alphabet first, and the merges in their order (Sennrich et al. 2016), at most vocab_size tokens.

    counts: words, whose characters are the symbols to begin with. alphabet: characters that are tokens in any case.
    prefix: stands before each symbol that does not begin a word, as WordPiece has it.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    marks: dict[str, Any] = {"continuing_subword_prefix": prefix} if prefix else {}
    tokenizer = Tokenizer(models.BPE(**marks))
    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(BREAK)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=sorted(alphabet),
        show_progress=False,
        **marks,
    )
    tokenizer.train_from_iterator(_repeated(counts), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [(left, right) for left, right in model["merges"]]


def _repeated(counts: Sequence[Count]) -> Iterator[str]:
    """Texts that hold every word as often as it was counted; of very many, in proportion.

    The trainer counts for itself and takes no counts.
    """
    parts: list[str] = []
    size = 0
    for word, left in in_proportion(counts, MAX_FED):
        while left > 0:
            times = min(left, max(1, CHUNK // (len(word) + 1)))
            parts.append((word + BREAK) * times)
            left -= times
            size += times * (len(word) + 1)
            if size >= CHUNK:
                yield "".join(parts)
                parts, size = [], 0
    yield "".join(parts)
