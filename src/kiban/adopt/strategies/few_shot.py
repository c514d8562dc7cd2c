"""Ask the model after showing it the labelled rows that resemble the question (Liu et al. 2022, "What makes good
in-context examples")."""

from __future__ import annotations

from typing import Any

from kiban.adopt.strategies.base import Fitted, Job, Task
from kiban.adopt.strategies.prompting import PromptPredictor, open_model, refuse_unless_decoder

SHOTS = 4
MAX_TEXT_TOKENS = 64  # of each example and of the question: five texts share the prompt


class FewShot:
    """The training rows are the pool of examples; no weight changes."""

    name = "few_shot"
    learns = True

    def refusal(self, task: Task, traits: Any) -> str | None:
        return refuse_unless_decoder(task, traits)

    def default_steps(self, train_rows: int) -> int:
        return 0

    def reads(self, train_rows: int, validation_rows: int) -> int:
        return 0

    def fit(self, job: Job) -> Fitted:
        labels = job.task.labels
        pool = [(str(text), labels[target]) for text, target in zip(job.train.inputs, job.train.targets, strict=True)]
        predictor = PromptPredictor(
            open_model(job),
            labels,
            strategy=self.name,
            language=job.task.language,
            examples=pool,
            shots=SHOTS,
            max_text_tokens=MAX_TEXT_TOKENS,
            fast=True,
        )
        return Fitted(predictor=predictor, steps=0)


STRATEGY = FewShot()
PREDICTOR = PromptPredictor
