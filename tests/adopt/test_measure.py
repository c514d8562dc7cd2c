"""A saved model is measured in a process of its own; one that dies there is an error with its last words."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from kiban.adopt.measure import CHUNK, MAX_SINGLE, measure
from kiban.adopt.strategies import strategy
from kiban.adopt.strategies.base import Candidate, Job, Predictor, Rows, Task
from kiban.errors import KibanError


@pytest.fixture(scope="module")
def baseline(
    task: Task, rows: tuple[Rows, Rows, Rows], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Predictor, Path]:
    folder = tmp_path_factory.mktemp("baseline")
    job = Job(
        task=task, candidate=Candidate(strategy="baseline", model=None), train=rows[0], validation=rows[1], max_steps=0,
        seed=0, work=folder / "work",
    )  # fmt: skip
    predictor = strategy("baseline").fit(job).predictor
    predictor.save(folder / "model")
    return predictor, folder / "model"


def test_answers_are_those_of_the_files_and_everything_is_measured(
    baseline: tuple[Predictor, Path], rows: tuple[Rows, Rows, Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the user was run')", "utf-8")
    monkeypatch.chdir(tmp_path)
    predictor, folder = baseline
    inputs = [*rows[2].inputs, *rows[0].inputs, "", "\u2028😀\0"]
    told: list[tuple[str, int, int | None]] = []
    found = measure(folder, inputs, progress=lambda *event: told.append(event))
    assert np.array_equal(found.probabilities, predictor.predict(inputs))
    assert len(found.latencies) == MAX_SINGLE and all(0 < t < 5 for t in found.latencies)
    assert 0 < found.rows_per_second < 1e6 and found.load_seconds > 0
    assert 20e6 < found.peak_memory_bytes < 4e9
    assert found.model_bytes == sum(path.stat().st_size for path in folder.iterdir())
    done = [*range(CHUNK, len(inputs), CHUNK), len(inputs)]
    assert told == [("measure", count, len(inputs)) for count in done]


def test_a_process_that_fails_is_an_error_with_its_last_words(baseline: tuple[Predictor, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(baseline[1], folder)
    (folder / "model.skops").write_bytes(b"cut")
    with pytest.raises(KibanError, match=r"could not be measured: .*IntegrityError: .*model\.skops.*has changed"):
        measure(folder, ["x"])
    with pytest.raises(KibanError, match="holds no adopted model"):
        measure(tmp_path, ["x"])


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_process_that_is_killed_is_an_error(
    baseline: tuple[Predictor, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killer = tmp_path / "python"
    killer.write_text("#!/bin/sh\necho 'some warning' >&2\nkill -9 $$\n", "utf-8")
    killer.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killer))
    with pytest.raises(KibanError, match="killed by signal 9"):
        measure(baseline[1], ["x"])


def test_an_interrupted_measurement_leaves_no_process(
    baseline: tuple[Predictor, Path], rows: tuple[Rows, Rows, Rows]
) -> None:
    import psutil

    def interrupt(stage: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(baseline[1], list(rows[0].inputs), progress=interrupt)
    assert not [p for p in psutil.Process().children() if "kiban.adopt.measure" in p.cmdline()]
