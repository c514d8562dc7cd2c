"""Scores of predicted labels. truth and predicted are (N,) arrays of label indices below num_labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


def confusion(truth: Labels, predicted: Labels, num_labels: int) -> NDArray[np.int64]:
    """(C, C) counts, [truth][predicted]."""
    flat = np.bincount(np.asarray(truth) * num_labels + np.asarray(predicted), minlength=num_labels**2)
    return flat.reshape(num_labels, num_labels).astype(np.int64)


def accuracy(truth: Labels, predicted: Labels, num_labels: int) -> float:
    """Share of right answers."""
    return float(accuracy_of(confusion(truth, predicted, num_labels)))


def macro_f1(truth: Labels, predicted: Labels, num_labels: int) -> float:
    """Mean F1 over the classes that occur in truth or predicted; a class counts the same however rare it is."""
    return float(macro_f1_of(confusion(truth, predicted, num_labels)))


def accuracy_of(counts: NDArray[Any]) -> Any:
    """Accuracy from confusion counts (..., C, C), one for each leading index."""
    return np.trace(counts, axis1=-2, axis2=-1) / np.maximum(counts.sum((-2, -1)), 1)


def macro_f1_of(counts: NDArray[Any]) -> Any:
    """Macro-F1 from confusion counts (..., C, C), one for each leading index."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    total = counts.sum(-1) + counts.sum(-2)  # truth + predicted
    f1 = 2 * hits / np.maximum(total, 1)
    return f1.sum(-1) / np.maximum((total > 0).sum(-1), 1)


def per_class(truth: Labels, predicted: Labels, num_labels: int) -> list[dict[str, Any]]:
    """precision, recall, f1 and support of every class."""
    counts = confusion(truth, predicted, num_labels)
    hits, support, answered = np.diag(counts), counts.sum(1), counts.sum(0)
    return [
        {
            "precision": float(hits[i] / max(answered[i], 1)),
            "recall": float(hits[i] / max(support[i], 1)),
            "f1": float(2 * hits[i] / max(support[i] + answered[i], 1)),
            "support": int(support[i]),
        }
        for i in range(num_labels)
    ]
