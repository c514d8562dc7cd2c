"""Ask the model, with the names of the labels and nothing else."""

from __future__ import annotations

from typing import Any

from kiban.adopt.strategies.base import Fitted, Job, Task
from kiban.adopt.strategies.prompting import PromptPredictor, open_model, refuse_unless_decoder


class ZeroShot:
    """No training row is used."""

    name = "zero_shot"
    learns = False

    def refusal(self, task: Task, traits: Any) -> str | None:
        return refuse_unless_decoder(task, traits)

    def default_steps(self, train_rows: int) -> int:
        return 0

    def reads(self, train_rows: int, validation_rows: int) -> int:
        return 0

    def fit(self, job: Job) -> Fitted:
        labels, language = job.task.labels, job.task.language
        predictor = PromptPredictor(open_model(job), labels, strategy=self.name, language=language, fast=True)
        return Fitted(predictor=predictor, steps=0)


STRATEGY = ZeroShot()
PREDICTOR = PromptPredictor
