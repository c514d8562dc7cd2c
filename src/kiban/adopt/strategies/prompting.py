"""What zero-shot and few-shot share: a decoder that is asked, and answers by the likelihood of each label.

The labels are scored and free text is never parsed, so every answer is one of the labels. Small models favour some
labels whatever the text, so the score after a text without content is subtracted (Zhao et al. 2021, section 4).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiban import zoo
from kiban.adopt.strategies.base import Job, Task
from kiban.adopt.strategies.classifier import refuse_unless_text
from kiban.engine.decoder import DecoderPlan
from kiban.files import read_json
from kiban.generate.few_shot import CONTENT_FREE, ChoicePrompt, NearestExamples
from kiban.generate.score import ChoiceScorer, calibrate
from kiban.generate.text import CausalModel


class PromptPredictor:
    """Asks for the label of a text, after the most similar labelled rows if there are any."""

    def __init__(
        self,
        loaded: zoo.Loaded,
        labels: Sequence[str],
        *,
        strategy: str,
        language: str,
        examples: Sequence[tuple[str, str]] = (),
        shots: int = 0,
        max_text_tokens: int = 96,
        fast: bool = False,
    ) -> None:
        """fast: compute in bf16 where that is faster; for choosing among candidates, not for answers that are kept."""
        assert loaded.tokenizer is not None
        model: CausalModel = loaded.module  # type: ignore[assignment]
        if fast and DecoderPlan.fits(loaded):
            model = DecoderPlan(loaded, weights="auto")
        self.loaded, self.labels, self.strategy, self.language = loaded, tuple(labels), strategy, language
        self.examples, self.shots, self.max_text_tokens = tuple(examples), shots, max_text_tokens
        self.prompt = ChoicePrompt(loaded.tokenizer, self.labels, language, max_text_tokens)
        self.nearest = NearestExamples([text for text, _ in examples]) if examples else None
        # The instructions stand at the front of every prompt and are read once, here.
        self.score = ChoiceScorer(model, self.prompt.choices(), prefix=self.prompt.prefix())
        # Examples calibrate by themselves; only the bare question needs what is answered to texts without content.
        self.blank = None if examples else self.score([self.prompt.build(text) for text in CONTENT_FREE])

    def prompt_of(self, text: str) -> list[int]:
        """The token ids that the model is asked with; the most similar example stands last."""
        places = self.nearest.nearest(text, self.shots) if self.nearest else []
        return self.prompt.build(text, [self.examples[i] for i in reversed(places)])

    def predict(self, inputs: Sequence[Any]) -> NDArray[np.float64]:
        """Probabilities (N, C), from the log-likelihood of each label per token."""
        scores = self.score([self.prompt_of(str(text)) for text in inputs])
        if self.blank is not None:
            scores = calibrate(scores, self.blank)
        return np.asarray(scores.double().softmax(-1).numpy(), dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write a folder that `AutoModelForCausalLM` opens; prompt.json says how it is asked."""
        prompt = {
            "labels": list(self.labels),
            "language": self.language,
            "shots": self.shots,
            "max_text_tokens": self.max_text_tokens,
            "examples": [list(example) for example in self.examples],
        }
        files: dict[str, str | bytes] = {"prompt.json": json.dumps(prompt, ensure_ascii=False, indent=1)}
        zoo.save(self.loaded, folder, files=files, manifest={"strategy": self.strategy, "labels": list(self.labels)})

    @classmethod
    def load(cls, folder: Path) -> PromptPredictor:
        loaded, prompt = zoo.load(folder), read_json(folder / "prompt.json")
        examples = [(str(text), str(label)) for text, label in prompt["examples"]]
        return cls(
            loaded,
            prompt["labels"],
            strategy=read_json(folder / "kiban.json")["strategy"],
            language=prompt["language"],
            examples=examples,
            shots=int(prompt["shots"]),
            max_text_tokens=int(prompt["max_text_tokens"]),
        )


def open_model(job: Job) -> zoo.Loaded:
    """The candidate's model, as it is."""
    return zoo.load(job.candidate.path or str(job.candidate.model))


def refuse_unless_decoder(task: Task, traits: Any) -> str | None:
    """The refusals that prompting shares."""
    return refuse_unless_text(task, traits) or (None if traits.causal else "needs a decoder")
