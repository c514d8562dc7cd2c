"""Spans and their F1, against seqeval."""

from __future__ import annotations

import numpy as np
import pytest

from kiban.evaluate.tagging import span_f1, spans

TAGS = ("O", "B-PER", "I-PER", "B-場所", "I-場所")


def test_spans_of_tags() -> None:
    tags = ["B-PER", "I-PER", "O", "I-場所", "I-場所", "B-場所", "I-PER", "B-PER", "B-PER"]
    assert spans(tags) == [(0, 2, "PER"), (3, 5, "場所"), (5, 6, "場所"), (6, 7, "PER"), (7, 8, "PER"), (8, 9, "PER")]
    assert spans([]) == [] and spans(["O", "O"]) == []


@pytest.mark.filterwarnings("ignore")
def test_f1_is_that_of_seqeval() -> None:
    from seqeval.metrics import f1_score

    rng = np.random.default_rng(0)
    for _ in range(50):
        truth = [[TAGS[i] for i in rng.integers(len(TAGS), size=12)] for _ in range(4)]
        answers = [[tag if rng.random() < 0.7 else TAGS[rng.integers(len(TAGS))] for tag in row] for row in truth]
        assert span_f1(truth, answers) == pytest.approx(f1_score(truth, answers))


def test_a_span_must_be_whole() -> None:
    assert span_f1([["B-PER", "I-PER", "O"]], [["B-PER", "O", "O"]]) == 0
    assert span_f1([["B-PER", "O", "B-PER"]], [["B-PER", "O", "O"]]) == pytest.approx(2 / 3)
    assert span_f1([["O"]], [["O"]]) == 0
