"""Linear heads: fitted on frozen features, or trained further together with what makes the features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kiban.families.bert import mean_pool

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True)
class LinearHead:
    """softmax(features @ weight.T + bias). weight: (C, D), bias: (C,), float64; strength is the chosen C of scikit-learn."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    strength: float


class SentenceClassifier(nn.Module):
    """A linear head on the normalised mean of an encoder's last states: (B, T) tokens to (B, C) logits."""

    def __init__(self, body: nn.Module, head: LinearHead) -> None:
        super().__init__()
        self.body = body
        self.dense = nn.Linear(head.weight.shape[1], head.weight.shape[0])
        start_from(self.dense, head)

    def forward(self, tokens: Tensor, *, mask: Tensor) -> Tensor:
        """tokens: (B, T) int64; mask: (B, T) bool."""
        return torch.as_tensor(self.dense(mean_pool(self.body(tokens, mask=mask), mask, normalise=True)))

    def head(self) -> LinearHead:
        """The head as it is now."""
        weight, bias = (p.detach().double().numpy() for p in (self.dense.weight, self.dense.bias))
        return LinearHead(weight, bias, float("nan"))


@torch.no_grad()
def start_from(layer: nn.Linear, head: LinearHead) -> None:
    """Give a layer the weights of a fitted head.

    A head fitted first keeps the features from being distorted by the gradients of a random one (Kumar et al. 2022,
    "Fine-tuning can distort pretrained features"), and few steps then suffice.
    """
    layer.weight.copy_(torch.from_numpy(head.weight))
    if layer.bias is not None:
        layer.bias.copy_(torch.from_numpy(head.bias))


def fit_linear_head(
    features: NDArray[np.float64], targets: NDArray[np.int64], *, num_labels: int, seed: int, bias: bool = True
) -> LinearHead:
    """Multinomial logistic regression; its strength is chosen by stratified cross-validation on macro-F1.

    features: (N, D); targets: (N,). A class without rows gets a bias that never wins. bias=False: all biases are 0.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    classes, counts = np.unique(targets, return_counts=True)
    folds = int(min(4, counts.min()))
    best = (-1.0, STRENGTHS[1])
    for strength in STRENGTHS if folds >= 2 and len(classes) > 1 else ():
        model = LogisticRegression(C=strength, max_iter=400, random_state=seed, fit_intercept=bias)
        cut = StratifiedKFold(folds, shuffle=True, random_state=seed)
        score = float(cross_val_score(model, features, targets, cv=cut, scoring="f1_macro").mean())
        best = max(best, (score, strength), key=lambda item: item[0])
    weight, biases = np.zeros((num_labels, features.shape[1])), np.full(num_labels, -1e4 if bias else 0.0)
    if len(classes) == 1:
        biases[classes[0]] = 0.0
        weight[classes[0]] = features.mean(0)  # what decides where there are no biases
        return LinearHead(weight, biases, best[1])
    model = LogisticRegression(C=best[1], max_iter=1000, random_state=seed, fit_intercept=bias).fit(features, targets)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(classes) == 2:
        # scikit-learn keeps one row for two classes; as a softmax that is half of it for each side.
        coefficients, intercepts = (
            np.vstack((-coefficients, coefficients)) / 2,
            np.hstack((-intercepts, intercepts)) / 2,
        )
    weight[classes], biases[classes] = coefficients, intercepts
    return LinearHead(weight, biases, best[1])
