"""The rules of the race, on strategies whose answers are known: who goes on, who is out, what is done again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kiban.adopt import race as race_module
from kiban.adopt.budget import Budget
from kiban.adopt.laps import Lap
from kiban.adopt.race import Race
from kiban.adopt.strategies.base import Candidate, Fitted, Job, Rows, Task
from kiban.errors import ConfigError
from kiban.evaluate.metrics import macro_f1

LABELS = ("a", "b", "c")
TASK = Task(kind="single_label", labels=LABELS, language="en", length_p95=9)


@dataclasses.dataclass
class Scripted:
    """Answers rightly the inputs (numbers) whose remainder by 100 is below quality; its model names the quality."""

    name: str
    learns: bool
    asked: list[tuple[str, int, int, tuple[int, ...]]]

    def default_steps(self, train_rows: int) -> int:
        return train_rows if self.learns else 0

    def reads(self, train_rows: int, validation_rows: int) -> int:
        return 0

    def fit(self, job: Job) -> Fitted:
        model = str(job.candidate.model)
        self.asked.append((job.candidate.id, len(job.train), job.max_steps, tuple(job.train.targets)))
        if model == "slow":
            for step in range(100):
                time.sleep(0.02)
                job.progress("train", step, 100)
        if model == "crash" and len(job.train) > 100:
            raise RuntimeError("no memory\nfor this")
        if model == "refuse":
            raise ConfigError("model", why="cannot be used")
        return Fitted(predictor=Answers(LABELS, int(model) if model.isdigit() else 50), steps=job.max_steps)


@dataclasses.dataclass
class Answers:
    labels: tuple[str, ...]
    quality: int

    def predict(self, inputs: Sequence[Any]) -> NDArray[np.float64]:
        return np.eye(3)[[(int(i) + (int(i) % 100 >= self.quality)) % 3 for i in inputs]]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "quality").write_text(str(self.quality), "utf-8")


def rows_of(count: int, start: int = 0) -> Rows:
    numbers = list(range(start, start + count))
    return Rows(inputs=[str(i) for i in numbers], targets=[i % 3 for i in numbers])


@pytest.fixture()
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int, tuple[int, ...]]]:
    """Every fit that is asked for: (candidate, rows, steps, their targets)."""
    found: list[tuple[str, int, int, tuple[int, ...]]] = []
    monkeypatch.setattr(race_module.gc, "collect", lambda: 0)  # takes longer than all the rest here
    monkeypatch.setattr(race_module, "strategy", lambda name: Scripted(name, name != "still", found))
    return found


def race_of(folder: Path, *models: str, budget: Budget | None = None, rows: Any = None, **more: Any) -> Race:
    candidates = [Candidate(strategy="baseline", model=None)]
    candidates += [Candidate(strategy="still" if m == "55" else "way", model=m) for m in models]
    parts = rows or (rows_of(400), rows_of(100), rows_of(100, 200))
    return Race(folder, TASK, parts, candidates, budget or Budget(steps=40), seed=0, **more)


def test_the_better_half_goes_on_and_the_baseline_always(tmp_path: Path, asked: Any) -> None:
    told: list[str] = []
    race = race_of(tmp_path, "90", "80", "70", "60", "55", "20", "10", log=told.append)
    last = race.run()
    assert race.rungs == [100, 200, 400]
    assert {id: lap.rung for id, lap in last.items()} == {
        "baseline": 2, "way:90": 2, "way:80": 2, "way:70": 1, "way:60": 1, "still:55": 0, "way:20": 0, "way:10": 0,
    }  # fmt: skip
    assert [line.split(":")[1] for line in told if "stopped" in line] == ["55", "20", "10", "70", "60"]
    steps = {(id, rows): count for id, rows, count, _ in asked}
    assert [steps["way:90", rows] for rows in (100, 200, 400)] == [10, 20, 40], "steps grow with the rows"
    for lap in last.values():
        truth = np.asarray(race.validation.targets)
        assert race.score(lap) == macro_f1(truth, np.asarray(lap.predicted), 3)


def test_two_models_go_to_the_end_and_ties_go_by_name(tmp_path: Path, asked: Any) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    assert {lap.rung for lap in race_of(tmp_path / "a", "70", "10").run().values()} == {2}
    last = race_of(tmp_path / "b", "050", "50", "000050", "0050", "00050").run()
    assert {id: lap.rung for id, lap in last.items()} == {
        "baseline": 2, "way:000050": 2, "way:00050": 2, "way:0050": 1, "way:050": 0, "way:50": 0,
    }  # fmt: skip


def test_what_learns_nothing_is_run_once(tmp_path: Path, asked: Any) -> None:
    last = race_of(tmp_path, "55").run()
    assert [id for id, *_ in asked].count("still:55") == 1
    assert last["still:55"].rung == 2 and last["still:55"].train_rows == 0


def test_one_that_fails_is_out_and_the_others_go_on(tmp_path: Path, asked: Any) -> None:
    race = race_of(tmp_path, "refuse", "crash", "50")
    last = race.run()
    assert last["way:refuse"].failed == "model: cannot be used"
    assert last["way:crash"].failed == "RuntimeError: no memory for this" and last["way:crash"].rung == 1
    assert last["way:50"].rung == 2 and not last["way:50"].failed
    assert race.curve("way:crash") == [(100, race.score(race.laps["way:crash", 0]))]


def test_planning_ends_in_its_share_of_the_time(tmp_path: Path, asked: Any) -> None:
    start = time.perf_counter()
    last = race_of(tmp_path, "90", "slow", "50", budget=Budget(seconds=0.5)).run()
    assert time.perf_counter() - start < 1.5, "the slow one alone would take two seconds"
    assert "too short to try this one" in last["way:slow"].failed and "too short" in last["way:50"].failed
    assert last["way:90"].rung == last["baseline"].rung == 2
    assert [id for id, *_ in asked if id == "way:50"] == []


def test_one_that_cannot_be_measured_is_out_also_after_a_resume(tmp_path: Path, asked: Any) -> None:
    race = race_of(tmp_path)
    last = race.run()
    assert race.measure(last) == {}, "the scripted model cannot be opened"
    assert "holds no adopted model" in last["baseline"].failed
    again = race_of(tmp_path)
    found = again.run()
    assert found == last and again.measure(found) == {}
    assert len(asked) == 3, "nothing is fitted twice"


@pytest.mark.parametrize("seconds", [None, 60.0])
def test_finished_laps_are_not_run_again(tmp_path: Path, asked: Any, seconds: float | None) -> None:
    budget = Budget(seconds=seconds) if seconds else Budget(steps=40)
    whole = race_of(tmp_path, "90", "70", "50", "refuse", budget=budget)
    last = whole.run()
    first, lines = list(asked), (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    for kept in range(1 if seconds else 0, len(lines), 3):  # a failed probe is on disk before the plan is
        (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
        asked.clear()
        resumed = race_of(tmp_path, "90", "70", "50", "refuse", budget=budget).run()
        assert [dataclasses.replace(lap, seconds=0) for lap in resumed.values()] == [
            dataclasses.replace(lap, seconds=0) for lap in last.values()
        ]
        assert len(asked) <= len(first) and (kept == 0 or len(asked) < len(first))


def test_every_rung_has_rows_of_every_class_and_holds_the_one_before(tmp_path: Path, asked: Any) -> None:
    rare = Rows(inputs=[str(i) for i in range(400)], targets=[0] * 199 + [1] * 200 + [2])
    race_of(tmp_path, "50", rows=(rare, rows_of(30), rows_of(30))).run()
    shown = [targets for id, _, _, targets in asked if id == "way:50"]
    assert [len(targets) for targets in shown] == [100, 200, 400]
    assert all(set(targets) == {0, 1, 2} for targets in shown)
    assert shown[1][:100] == shown[0] and shown[2][:200] == shown[1]


def test_a_small_table_has_fewer_rungs(tmp_path: Path, asked: Any) -> None:
    for count, rungs in ((40, [40]), (90, [64, 90]), (200, [64, 100, 200])):
        race = race_of(tmp_path / str(count), "50", rows=(rows_of(count), rows_of(30), rows_of(30)))
        assert race.rungs == rungs


def test_models_are_compared_on_the_rows_that_all_answered(tmp_path: Path, asked: Any) -> None:
    race = race_of(tmp_path, "90", "30")
    for id, answers in (("baseline", 100), ("way:90", 100), ("way:30", 48)):
        race.laps[id, 0] = Lap(id=id, rung=0, steps=0, train_rows=9, seconds=1.0, predicted=(0,) * answers)
    race.laps["way:90", 1] = Lap(id="way:90", rung=1, steps=0, train_rows=9, seconds=1.0, predicted=(0,), failed="x")
    assert race.common_rows(0) == 48 and race.common_rows(1) == 0
