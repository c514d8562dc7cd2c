"""Scores equal scikit-learn's on any labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from kiban.evaluate.metrics import accuracy, accuracy_of, confusion, macro_f1, macro_f1_of, per_class

pairs = st.integers(2, 6).flatmap(
    lambda n: st.tuples(
        st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), min_size=1, max_size=60)
    )
)


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_scores_equal_scikit_learn(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    num_labels, rows = drawn
    truth, predicted = (np.asarray(side) for side in zip(*rows, strict=True))
    assert accuracy(truth, predicted, num_labels) == pytest.approx(reference.accuracy_score(truth, predicted))
    assert macro_f1(truth, predicted, num_labels) == pytest.approx(
        reference.f1_score(truth, predicted, average="macro", zero_division=0)
    )
    assert (
        confusion(truth, predicted, num_labels)
        == reference.confusion_matrix(truth, predicted, labels=range(num_labels))
    ).all()
    expected = reference.precision_recall_fscore_support(truth, predicted, labels=range(num_labels), zero_division=0)
    for i, score in enumerate(per_class(truth, predicted, num_labels)):
        found = (score["precision"], score["recall"], score["f1"], score["support"])
        assert found == pytest.approx([column[i] for column in expected])


def test_a_class_that_nobody_has_or_names_does_not_count() -> None:
    truth = predicted = np.array([0, 2, 2])
    assert macro_f1(truth, predicted, 5) == 1.0


def test_many_confusion_matrices_at_once_are_scored_one_by_one() -> None:
    counts = np.random.default_rng(0).integers(0, 9, (2, 4, 3, 3))
    for function in (accuracy_of, macro_f1_of):
        whole = function(counts)
        assert whole.shape == (2, 4)
        assert whole[1, 2] == function(counts[1, 2])


def test_an_empty_matrix_scores_zero() -> None:
    assert accuracy_of(np.zeros((2, 2))) == macro_f1_of(np.zeros((2, 2))) == 0.0
