"""A linear head on frozen features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True)
class LinearHead:
    """softmax(features @ weight.T + bias). weight: (C, D), bias: (C,), float64; strength is the chosen C of scikit-learn."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    strength: float


def fit_linear_head(
    features: NDArray[np.float64], targets: NDArray[np.int64], *, num_labels: int, seed: int
) -> LinearHead:
    """Multinomial logistic regression; its strength is chosen by stratified cross-validation on macro-F1.

    features: (N, D); targets: (N,). A class without rows gets a bias that never wins.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    classes, counts = np.unique(targets, return_counts=True)
    folds = int(min(4, counts.min()))
    best = (-1.0, STRENGTHS[1])
    for strength in STRENGTHS if folds >= 2 and len(classes) > 1 else ():
        model = LogisticRegression(C=strength, max_iter=400, random_state=seed)
        cut = StratifiedKFold(folds, shuffle=True, random_state=seed)
        score = float(cross_val_score(model, features, targets, cv=cut, scoring="f1_macro").mean())
        best = max(best, (score, strength), key=lambda item: item[0])
    weight, bias = np.zeros((num_labels, features.shape[1])), np.full(num_labels, -1e4)
    if len(classes) == 1:
        bias[classes[0]] = 0.0
        return LinearHead(weight, bias, best[1])
    model = LogisticRegression(C=best[1], max_iter=1000, random_state=seed).fit(features, targets)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(classes) == 2:
        # scikit-learn keeps one row for two classes; as a softmax that is half of it for each side.
        coefficients, intercepts = (
            np.vstack((-coefficients, coefficients)) / 2,
            np.hstack((-intercepts, intercepts)) / 2,
        )
    weight[classes], bias[classes] = coefficients, intercepts
    return LinearHead(weight, bias, best[1])
