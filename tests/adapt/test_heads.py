"""Linear heads equal scikit-learn's own predictions, for two classes as for many."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import nn

from kiban.adapt.heads import LinearHead, SentenceClassifier, fit_linear_head, start_from
from kiban.families.bert import Bert, BertConfig


def data(num_labels: int, rows: int = 80) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, num_labels, rows)
    centres = rng.normal(size=(num_labels, 6))
    return centres[targets] + 0.8 * rng.normal(size=(rows, 6)), targets


def probabilities(head: LinearHead, features: NDArray[np.float64]) -> NDArray[np.float64]:
    logits = torch.from_numpy(features @ head.weight.T + head.bias)
    return np.asarray(logits.softmax(-1).numpy())


@pytest.mark.parametrize("num_labels", [2, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_a_head_gives_the_probabilities_of_scikit_learn(num_labels: int, bias: bool) -> None:
    features, targets = data(num_labels)
    head = fit_linear_head(features, targets, num_labels=num_labels, seed=0, bias=bias)
    model = LogisticRegression(C=head.strength, max_iter=1000, random_state=0, fit_intercept=bias).fit(
        features, targets
    )
    assert probabilities(head, features) == pytest.approx(model.predict_proba(features), abs=1e-9)
    assert bias or not head.bias.any()


def test_a_class_without_rows_never_wins() -> None:
    features, targets = data(3)
    head = fit_linear_head(features, targets * 2, num_labels=6, seed=0)
    found = probabilities(head, features)
    assert found[:, [1, 3, 5]].max() == 0.0
    assert (found.argmax(-1) == targets * 2).mean() > 0.8


@pytest.mark.parametrize("bias", [True, False])
def test_a_single_class_always_wins(bias: bool) -> None:
    features, _ = data(2)
    head = fit_linear_head(features, np.full(len(features), 1), num_labels=3, seed=0, bias=bias)
    assert (probabilities(head, features).argmax(-1) == 1).all()


def test_classes_of_one_row_do_not_stop_the_fit() -> None:
    features, targets = data(2, rows=20)
    targets[0] = 2
    assert fit_linear_head(features, targets, num_labels=3, seed=0).weight.shape == (3, 6)


def test_fine_tuning_starts_from_the_fitted_head() -> None:
    layer = nn.Linear(6, 3)
    head = LinearHead(np.arange(18.0).reshape(3, 6), np.array([1.0, 2.0, 3.0]), 1.0)
    start_from(layer, head)
    assert layer.weight.tolist() == head.weight.tolist() and layer.bias.tolist() == head.bias.tolist()
    config = BertConfig(vocab_size=11, num_layers=1, dim=6, num_heads=2, ffn_dim=8)
    classifier = SentenceClassifier(Bert(config).eval(), head)
    again = classifier.head()
    assert (again.weight == head.weight).all() and (again.bias == head.bias).all()
    tokens, mask = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[True] * 3, [True, True, False]])
    with torch.no_grad():
        alone = classifier(tokens[1:, :2], mask=mask[1:, :2])
        torch.testing.assert_close(classifier(tokens, mask=mask)[1:], alone, atol=1e-5, rtol=0)
