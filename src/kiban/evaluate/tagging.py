"""Scores of tagged words: whole spans count, as CoNLL counts them (Tjong Kim Sang & De Meulder 2003)."""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[int, int, str]  # first word, behind the last word, kind


def spans(tags: Sequence[str]) -> list[Span]:
    """The spans of one sentence's IOB2 tags: O, B-KIND, I-KIND.

    An I that goes on with no span of its kind begins one, as in CoNLL's script.
    """
    found: list[Span] = []
    for place, tag in enumerate(tags):
        mark, _, kind = tag.partition("-")
        if mark == "I" and found and found[-1][1:] == (place, kind):
            found[-1] = (found[-1][0], place + 1, kind)
        elif mark != "O":
            found.append((place, place + 1, kind))
    return found


def span_f1(truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """F1 over the spans of all sentences, micro-averaged; a span is right if place and kind are. 0 where there is none."""
    hits = total = 0
    for right, answer in zip(truth, predicted, strict=True):
        wanted, given = set(spans(right)), set(spans(answer))
        hits += len(wanted & given)
        total += len(wanted) + len(given)
    return 2 * hits / total if total else 0.0
