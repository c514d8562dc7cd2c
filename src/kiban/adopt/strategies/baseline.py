"""TF-IDF over characters (Japanese) or words and characters (others) with logistic regression: the thing to beat.

It needs no foundation model, answers in a millisecond and is hard to beat on topics, so it is always in the race.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiban.adopt.strategies.base import Fitted, Job, Task
from kiban.adopt.strategies.skops_file import load_classifier, probabilities, save_classifier

# skops opens only types that are named; these are all that this pipeline is made of.
TRUSTED = [
    "sklearn.feature_extraction.text.TfidfTransformer",
    "sklearn.feature_extraction.text.TfidfVectorizer",
    "sklearn.linear_model._logistic.LogisticRegression",
    "sklearn.multiclass.OneVsRestClassifier",
    "sklearn.multiclass._ConstantPredictor",
    "sklearn.preprocessing._label.LabelBinarizer",
    "sklearn.pipeline.FeatureUnion",
    "sklearn.pipeline.Pipeline",
    "numpy.float64",
    "scipy.sparse._csr.csr_matrix",
]
WORD = re.compile(r"\w\w")  # what scikit-learn takes for a word; texts of signs alone have none


class BaselinePredictor:
    """A scikit-learn pipeline from text to class probabilities."""

    def __init__(self, pipeline: Any, num_labels: int, labels: Sequence[str]) -> None:
        self.pipeline, self.num_labels, self.labels = pipeline, num_labels, tuple(labels)

    def predict(self, inputs: Sequence[Any]) -> NDArray[np.float64]:
        """Probabilities (N, C); a class that the training rows lacked gets 0."""
        if not len(inputs):
            return np.zeros((0, self.num_labels))
        return probabilities(self.pipeline, list(inputs), self.num_labels)

    def save(self, folder: Path) -> None:
        """Write `model.skops` and the manifest."""
        save_classifier(self.pipeline, folder, strategy="baseline", labels=self.labels)

    @classmethod
    def load(cls, folder: Path) -> BaselinePredictor:
        """Open what save wrote. Raises FormatError if the file asks for types that are not a baseline's."""
        model, labels = load_classifier(folder, TRUSTED)
        return cls(model, len(labels), labels)


class Baseline:
    """See the module's first lines."""

    name = "baseline"
    learns = True

    def refusal(self, task: Task, traits: Any) -> str | None:
        return None if task.kind == "single_label" else f"not written for {task.kind} tasks"

    def default_steps(self, train_rows: int) -> int:
        return 0

    def reads(self, train_rows: int, validation_rows: int) -> int:
        return train_rows

    def fit(self, job: Job) -> Fitted:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier
        from sklearn.pipeline import FeatureUnion, Pipeline

        # Character n-grams need no word segmentation, which Japanese does not write; English gains from whole words.
        common = {"sublinear_tf": True, "lowercase": True, "min_df": 1 if len(job.train) < 500 else 2}
        parts = [("characters", TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), **common))]
        if job.task.language == "ja":
            parts = [("characters", TfidfVectorizer(analyzer="char", ngram_range=(1, 4), **common))]
        elif any(WORD.search(text) for text in job.train.inputs):
            parts.append(("words", TfidfVectorizer(analyzer="word", ngram_range=(1, 2), **common)))
        best: tuple[float, Any] | None = None
        truth = np.asarray(job.validation.targets)
        for strength in (1.0, 10.0, 100.0):
            # One binary problem a class, solved in the dual: thirty times faster than the multinomial one on such
            # wide sparse features, and no worse.
            one = LogisticRegression(C=strength, solver="liblinear", dual=True, random_state=job.seed)
            classifier = OneVsRestClassifier(one)
            pipeline = Pipeline([("features", FeatureUnion(parts)), ("classifier", classifier)])
            pipeline.fit(list(job.train.inputs), np.asarray(job.train.targets))
            score = float((pipeline.predict(list(job.validation.inputs)) == truth).mean()) if len(truth) else 0.0
            if best is None or score > best[0]:
                best = (score, pipeline)
        assert best is not None
        return Fitted(predictor=BaselinePredictor(best[1], len(job.task.labels), job.task.labels), steps=0)


STRATEGY = Baseline()
PREDICTOR = BaselinePredictor
