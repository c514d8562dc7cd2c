"""How well a tokenizer fits a language: characters per token, and what that makes of a price per token."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kiban.inputs.japanese import detect_language
from kiban.inputs.tokenizer import Tokenizer


@dataclass(frozen=True)
class Fit:
    """One tokenizer on the texts of one language. unknown: the share of tokens that stand for nothing it knows."""

    characters: int
    tokens: int
    unknown: float

    @property
    def per_token(self) -> float:
        """Characters per token; more is cheaper, and more text fits a context."""
        return self.characters / max(1, self.tokens)

    def price(self, per_million: float, characters: int = 1000) -> float:
        """What so many characters cost, in the currency of a price per million tokens."""
        return characters / self.per_token * per_million / 1e6


def fits(tokenizer: Tokenizer, texts: Mapping[str, Sequence[str]]) -> dict[str, Fit]:
    """How tokenizer does on texts by language, without the special tokens at the ends of a text."""
    found = {}
    for language, some in texts.items():
        rows = tokenizer.encode_batch(some, add_special=False)
        tokens = sum(map(len, rows))
        unknown = sum(row.count(tokenizer.unk_id) for row in rows) if tokenizer.unk_id is not None else 0
        found[language] = Fit(sum(map(len, some)), tokens, unknown / max(1, tokens))
    return found


def by_language(texts: Iterable[str]) -> dict[str, list[str]]:
    """Texts as "ja", "en" or "other", Japanese first."""
    found: dict[str, list[str]] = defaultdict(list)
    for text in texts:
        found[detect_language(text)].append(text)
    return {language: found[language] for language in ("ja", "en", "other") if found[language]}


def sample() -> dict[str, list[str]]:
    """A few short texts, to compare tokenizers where nothing better is at hand."""
    return tomllib.loads(Path(__file__).with_name("sample.toml").read_text(encoding="utf-8"))
