"""How sure a measured score is: intervals, and paired tests between two models on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kiban.evaluate.metrics import Labels, accuracy_of, macro_f1_of

Metric = Literal["accuracy", "macro_f1"]
FROM_COUNTS: dict[Metric, Callable[[NDArray[Any]], Any]] = {"accuracy": accuracy_of, "macro_f1": macro_f1_of}


def _resampled_counts(
    truth: Labels, answers: Sequence[Labels], num_labels: int, num_samples: int, seed: int
) -> list[NDArray[np.int64]]:
    """Confusion counts of bootstrap samples, (num_samples, C, C) for each of answers, all on the same drawn rows."""
    rng = np.random.default_rng(seed)
    rows = len(truth)
    # Rows with the same truth and answers are interchangeable, so a sample is a draw of how often each kind occurs.
    kinds, inverse = np.unique(np.stack([truth, *answers]), axis=1, return_inverse=True)
    share = np.bincount(inverse.ravel()) / rows
    drawn = rng.multinomial(rows, share, size=num_samples)  # (num_samples, number of kinds)
    results = []
    for answer in kinds[1:]:
        cells = np.zeros((kinds.shape[1], num_labels**2), dtype=np.int64)
        cells[np.arange(kinds.shape[1]), kinds[0] * num_labels + answer] = 1
        results.append((drawn @ cells).reshape(num_samples, num_labels, num_labels))
    return results


def bootstrap_interval(
    metric: Metric, truth: Labels, predicted: Labels, *, num_labels: int, num_samples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """The metric, and its 95% percentile interval over bootstrap samples of the rows (Efron & Tibshirani 1993, ch. 13)."""
    function = FROM_COUNTS[metric]
    (counts,) = _resampled_counts(truth, [predicted], num_labels, num_samples, seed)
    low, high = np.percentile(function(counts), (2.5, 97.5))
    whole = np.zeros((num_labels, num_labels), dtype=np.int64)
    np.add.at(whole, (np.asarray(truth), np.asarray(predicted)), 1)
    return float(function(whole)), float(low), float(high)


def mean_interval(
    values: NDArray[Any], groups: Sequence[Any] | None = None, *, num_samples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """The mean of values (N,), and its 95% percentile interval. groups: of values that depend on each other, drawn whole."""
    _, numbers = np.unique(np.arange(len(values)) if groups is None else np.array(groups), return_inverse=True)
    sums, counts = np.bincount(numbers, weights=values), np.bincount(numbers)
    drawn = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=num_samples)
    low, high = np.percentile(drawn @ sums / (drawn @ counts), (2.5, 97.5))
    return float(np.mean(values)), float(low), float(high)


def paired_bootstrap(
    metric: Metric, truth: Labels, a: Labels, b: Labels, *, num_labels: int, num_samples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """metric(a) - metric(b) with its 95% interval; both are scored on the same drawn rows (Koehn 2004)."""
    function = FROM_COUNTS[metric]
    left, right = _resampled_counts(truth, [a, b], num_labels, num_samples, seed)
    low, high = np.percentile(function(left) - function(right), (2.5, 97.5))
    wholes = []
    for answer in (a, b):
        whole = np.zeros((num_labels, num_labels), dtype=np.int64)
        np.add.at(whole, (np.asarray(truth), np.asarray(answer)), 1)
        wholes.append(function(whole))
    return float(wholes[0] - wholes[1]), float(low), float(high)


def mcnemar(truth: Labels, a: Labels, b: Labels) -> float:
    """Two-sided p of McNemar's exact test: among rows that only one got right, is either side the luckier one?"""
    from scipy.stats import binomtest

    truth = np.asarray(truth)
    right_a, right_b = np.asarray(a) == truth, np.asarray(b) == truth
    only_a, only_b = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def holm(p_values: Sequence[float], *, level: float = 0.05) -> list[bool]:
    """Which of several tests are significant together at this level (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    flags = [False] * len(p_values)
    for rank, i in enumerate(order):
        if p_values[i] > level / (len(p_values) - rank):
            break
        flags[i] = True
    return flags
