"""Rows that may carry a wrong label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Doubt:
    """A row whose label is doubted, by its place, and the class that it rather belongs to."""

    row: int
    rather: int


def doubtful_rows(texts: Sequence[str], targets: Sequence[int], *, language: str, seed: int) -> list[Doubt]:
    """Rows whose label a model that never saw them finds very unlikely, while it is sure of another; the worst first.

    A simple form of confident learning (Northcutt et al. 2021): out-of-fold probabilities of a linear model, and a row
    counts if another class comes near that class's own mean confidence, and passes four times what the given label gets.
    targets are 0..C-1; every class needs three rows.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline

    # Words only where spaces part them; a sign alone is a word too, so that no text is without one.
    grams: dict[str, Any] = {"analyzer": "char", "ngram_range": (1, 3)}
    if language == "en":
        grams = {"token_pattern": r"\w\w+|[^\w\s]", "ngram_range": (1, 2)}
    linear = OneVsRestClassifier(LogisticRegression(C=10, solver="liblinear", dual=True, random_state=seed))
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True, **grams), linear)
    y = np.asarray(targets)
    folds = StratifiedKFold(3, shuffle=True, random_state=seed)
    probability = cross_val_predict(model, list(texts), y, cv=folds, method="predict_proba")
    own = probability[np.arange(len(y)), y]
    classes = range(probability.shape[1])
    confidence = np.asarray([probability[y == c, c].mean() for c in classes])
    other = np.where(np.eye(len(classes), dtype=bool)[y], 0, probability)
    guess, best = other.argmax(1), other.max(1)
    doubtful = np.flatnonzero((best >= np.maximum(0.8 * confidence[guess], 0.5)) & (own < best / 4))
    order = np.argsort(own[doubtful] - best[doubtful], kind="stable")
    return [Doubt(int(row), int(guess[row])) for row in doubtful[order]]
