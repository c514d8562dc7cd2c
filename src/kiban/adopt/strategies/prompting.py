"""What zero-shot and few-shot share: a decoder that is asked, and answers by the likelihood of each label.

The label words are scored and free text is never parsed, so every answer is one of the labels. Small models favour some
labels whatever the text; the score of a content-free text is subtracted (Zhao et al. 2021, "Calibrate Before Use").
"""

from __future__ import annotations

from collections.abc import Sequence

from kiban import zoo
from kiban.generate.few_shot import NearestExamples

MAX_TEXT_TOKENS = 96


class PromptPredictor:
    """Asks a decoder for the label of a text, with the most similar labelled rows as examples if there are any."""

    def __init__(
        self,
        loaded: zoo.Loaded,
        labels: Sequence[str],
        *,
        language: str,
        examples: Sequence[tuple[str, str]] = (),
        shots: int = 0,
    ) -> None:
        assert loaded.tokenizer is not None
        self.loaded, self.labels, self.language = loaded, tuple(labels), language
        self.examples, self.shots = tuple(examples), shots
        self.nearest = NearestExamples([text for text, _ in examples]) if examples else None
