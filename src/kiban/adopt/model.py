"""A predictor that answers in the words of its labels. Where it reads pictures, texts are their paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kiban.adopt.strategies.base import Predictor

Text = str | Path


class AdoptedModel:
    """The recommended model of a run, or any other classifier, ready to use."""

    def __init__(self, predictor: Predictor, labels: Sequence[str]) -> None:
        self.predictor, self.labels = predictor, tuple(labels)

    def predict(self, texts: Text | Sequence[Text]) -> Any:
        """The label of a text, or of several. A list gives a list."""
        found = [self.labels[i] for i in self.predictor.predict(several(texts)).argmax(-1)]
        return found[0] if isinstance(texts, Text) else found

    def predict_proba(self, texts: Text | Sequence[Text]) -> Any:
        """The probability of every label, as a dict for a text, as a list of dicts for several."""
        scores = self.predictor.predict(several(texts)).tolist()
        found = [dict(zip(self.labels, row, strict=True)) for row in scores]
        return found[0] if isinstance(texts, Text) else found


def several(texts: Text | Sequence[Text]) -> list[Any]:
    """A text is a sequence of texts too: its characters. Nobody means that."""
    return [texts] if isinstance(texts, Text) else list(texts)
