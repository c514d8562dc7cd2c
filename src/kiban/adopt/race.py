"""Successive halving over candidates (Jamieson & Talwalkar 2016): all start on few rows, the better half goes on.

Everything that decides is written to the run folder before it takes effect, and is read back on resume: `plan.json`
(what steps and rows cost on this machine, measured once) and `metrics.jsonl` (one line per finished fit). Given those,
the race is deterministic; only timings differ.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kiban.adopt.budget import (
    FIRST_SHARE,
    MIN_ROWS,
    PLAN_SHARE,
    SHARES,
    Allowance,
    Budget,
    Cost,
    affordable,
    allowances,
    least_seconds,
    measuring_seconds,
)
from kiban.adopt.laps import Lap, append_lap, read_laps
from kiban.adopt.measure import Measured, measure
from kiban.adopt.strategies import BASELINES, load_predictor, strategy
from kiban.adopt.strategies.base import Candidate, Job, Predictor, Rows, Task
from kiban.config import Progress, silent
from kiban.errors import BudgetError, IntegrityError, KibanError
from kiban.evaluate.metrics import macro_f1
from kiban.files import MANIFEST, read_json, write_manifest, write_text

FRACTIONS = (0.25, 0.5, 1.0)  # of the training rows
PROBE_TRAIN, PROBE_VALIDATION = 64, 8  # rows on which a candidate's cost is measured


class Race:
    """Runs candidates against each other inside a run folder."""

    def __init__(
        self,
        folder: Path,
        task: Task,
        rows: tuple[Rows, Rows, Rows],
        candidates: Sequence[Candidate],
        budget: Budget,
        *,
        seed: int,
        progress: Progress = silent,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.folder, self.task, self.budget, self.seed = folder, task, budget, seed
        self.train, self.validation, self.test = rows
        self.candidates = {c.id: c for c in candidates}
        self.progress, self.log = progress, log
        self.order = _rows_with_every_class_first(self.train, seed)
        least = max(64, len(task.labels))
        sizes = [min(len(self.train), max(least, round(f * len(self.train)))) for f in FRACTIONS]
        self.rungs = sorted(set(sizes))
        self.log_file = folder / "metrics.jsonl"
        self.laps = read_laps(self.log_file)
        self.costs: dict[str, Cost] = {}
        self.plan_seconds = 0.0

    # The run folder -------------------------------------------------------------------------------------------------

    def _home(self, id: str) -> Path:
        return self.folder / "candidates" / id.replace(":", "--")

    def _record(self, lap: Lap) -> Lap:
        append_lap(self.log_file, lap)
        self.laps[lap.id, lap.rung] = lap
        return lap

    # Planning -------------------------------------------------------------------------------------------------------

    def plan(self) -> None:
        """Measure once per run what each candidate costs. A budget in steps needs no measuring."""
        path = self.folder / "plan.json"
        if not path.exists():
            start = time.perf_counter()
            for number, candidate in enumerate(self.candidates.values()):
                self.progress("plan", number, len(self.candidates))
                deadline = start + PLAN_SHARE * (self.budget.seconds or 0.0)
                self.costs[candidate.id] = self._probe(candidate, deadline) if self.budget.seconds else Cost()
            self.progress("plan", len(self.candidates), len(self.candidates))
            costs = {id: cost.__dict__ for id, cost in self.costs.items()}
            write_text(path, json.dumps({"seconds": time.perf_counter() - start, "costs": costs}, indent=1))
        found = json.loads(path.read_text(encoding="utf-8"))
        if set(found["costs"]) != set(self.candidates):
            why = "the run began with other candidates (a model or the version of kiban has changed)"
            raise IntegrityError(path, why=why, hint="start a new run")
        self.plan_seconds = float(found["seconds"])
        self.costs = {id: Cost(**cost) for id, cost in found["costs"].items()}

    def _probe(self, candidate: Candidate, deadline: float) -> Cost:
        """Fit a little. One that fails is out, whatever the reason: it must not take the others with it.

        So is one whose turn comes, or that is still learning, after the deadline (in the time of perf_counter).
        """
        times: list[float] = []
        work, started = self._home(candidate.id) / "probe", time.perf_counter()
        shutil.rmtree(work, ignore_errors=True)

        def told(stage: str, done: int, total: int | None) -> None:
            if time.perf_counter() > deadline:
                raise BudgetError("time", why="too short to try this one", hint="give more --time, or fewer models")
            if stage.partition(" | ")[0] == "train":
                times.append(time.perf_counter())

        try:
            told("start", 0, None)
            few = Rows(
                inputs=self.validation.inputs[:PROBE_VALIDATION], targets=self.validation.targets[:PROBE_VALIDATION]
            )
            job = dataclasses.replace(self._job(candidate, PROBE_TRAIN, 3, work, told), validation=few)
            begun = time.perf_counter()
            fitted = strategy(candidate.strategy).fit(job)
            whole, step = time.perf_counter() - begun, float(np.median(np.diff(times))) if len(times) > 1 else 0.0
            fitted.predictor.predict(list(few.inputs[:2]))
            begun = time.perf_counter()
            fitted.predictor.predict(list(few.inputs[2:]))
            row = (time.perf_counter() - begun) / max(1, len(few) - 2)
            return Cost(start=max(0.0, whole - fitted.steps * step), step=step, row=row)
        except Exception as error:
            self._fail(candidate.id, -1, error, time.perf_counter() - started)
            return Cost()
        finally:
            shutil.rmtree(work, ignore_errors=True)
            gc.collect()

    def _left(self, rung: int) -> float:
        """Seconds of the budget that planning and the rungs before this one left over, by what they recorded."""
        assert self.budget.seconds is not None
        spent = sum(
            lap.seconds
            for lap in self.laps.values()
            if lap.rung < rung and (lap.rung <= 0 or strategy(self.candidates[lap.id].strategy).learns)
        )
        return max(0.1 * self.budget.seconds, self.budget.seconds - self.plan_seconds - spent)

    def _allowances(self, rung: int, alive: Sequence[str]) -> dict[str, Allowance]:
        """What each may do. On the first rung, those are left out that the time does not suffice for."""
        size = self.rungs[rung]
        steps = {id: strategy(self.candidates[id].strategy).default_steps(size) for id in alive}
        if self.budget.steps is not None:
            limit = max(1, round(self.budget.steps * size / len(self.train)))
            return {id: Allowance(min(steps[id], limit), len(self.validation)) for id in alive}
        costs = {id: self._cost(id, size) for id in alive}
        least = least_seconds(costs, steps, len(self.validation))
        if rung == 0:
            kept = affordable(least, FIRST_SHARE * self._left(rung))
            for id in alive:
                if id not in kept and (id, rung) not in self.laps:
                    why = f"needs about {least[id]:.0f} s for a first try, too much of the time granted"
                    self._fail(id, rung, BudgetError(why), 0.0)
            costs = {id: costs[id] for id in kept}
        pool = self._left(rung) * SHARES[len(SHARES) - len(self.rungs) + rung]
        return allowances(costs, {id: steps[id] for id in costs}, len(self.validation), pool)

    def _cost(self, id: str, train_rows: int) -> Cost:
        """What was measured on a few rows, for a fit on more: what it reads before its steps takes longer."""
        cost, reads = self.costs[id], strategy(self.candidates[id].strategy).reads
        more = reads(train_rows, len(self.validation)) - reads(PROBE_TRAIN, PROBE_VALIDATION)
        return dataclasses.replace(cost, start=cost.start + max(0, more) * cost.row)

    # Running --------------------------------------------------------------------------------------------------------

    def _job(self, candidate: Candidate, size: int, steps: int, work: Path, progress: Progress) -> Job:
        chosen = self.order[:size]
        return Job(
            task=self.task,
            candidate=candidate,
            train=Rows(inputs=[self.train.inputs[i] for i in chosen], targets=[self.train.targets[i] for i in chosen]),
            validation=self.validation,
            max_steps=steps,
            seed=self.seed,
            work=work,
            progress=progress,
        )

    def run(self) -> dict[str, Lap]:
        """All rungs; returns each candidate's last lap."""
        self.plan()
        alive = list(self.candidates)
        for rung in range(len(self.rungs)):
            # Only failures of earlier rungs count, so that a resumed race plans as the first run did.
            alive = [id for id in alive if not self._failed(id, rung - 1)]
            allowance = self._allowances(rung, alive)
            for id, (steps, rows) in allowance.items():
                if (id, rung) not in self.laps:
                    self._lap(self.candidates[id], rung, steps, rows)
            alive = [id for id in allowance if not self.laps[id, rung].failed]
            if rung + 1 < len(self.rungs):
                alive = self._better_half(rung, alive)
        return {
            id: max((lap for lap in self.laps.values() if lap.id == id), key=lambda lap: lap.rung)
            for id in self.candidates
        }

    def _lap(self, candidate: Candidate, rung: int, steps: int, rows: int) -> None:
        before = self.laps.get((candidate.id, rung - 1))
        if before and not strategy(candidate.strategy).learns:
            # More training rows change nothing for it.
            self._record(Lap(**{**before.__dict__, "rung": rung}))
            return
        home = self._home(candidate.id)
        work, model = home / f"work-{rung}", home / "model"
        self.log(f"{candidate.id}: rung {rung + 1}/{len(self.rungs)}, {self.rungs[rung]} rows, {steps} steps")
        start = time.perf_counter()
        try:
            job = self._job(candidate, self.rungs[rung], steps, work, self._staged(candidate.id))
            fitted = strategy(candidate.strategy).fit(job)
            predicted = self._predict(fitted.predictor, candidate.id, rows)
            shutil.rmtree(model, ignore_errors=True)
            fitted.predictor.save(model)
        except Exception as error:
            self._fail(candidate.id, rung, error, time.perf_counter() - start)
            return
        finally:
            gc.collect()
        seconds = time.perf_counter() - start
        self._record(
            Lap(
                id=candidate.id,
                rung=rung,
                steps=fitted.steps,
                train_rows=self.rungs[rung] if strategy(candidate.strategy).learns else 0,
                seconds=seconds,
                predicted=tuple(predicted),
            )
        )
        shutil.rmtree(work, ignore_errors=True)
        score = self.score(self.laps[candidate.id, rung])
        self.log(f"{candidate.id}: validation macro-F1 {score:.3f} on {len(predicted)} rows, {seconds:.0f} s")

    def _failed(self, id: str, rung: int) -> bool:
        return (id, rung) in self.laps and bool(self.laps[id, rung].failed)

    def _fail(self, id: str, rung: int, error: Exception, seconds: float) -> Lap:
        """Record that a candidate is out. The race goes on without it."""
        why = str(error) if isinstance(error, KibanError) else f"{type(error).__name__}: {error}".strip(": ")
        left_out = isinstance(error, BudgetError)
        self.log(f"{id}: {'left out' if left_out else 'failed'}: {why}")
        return self._record(
            Lap(
                id=id,
                rung=rung,
                steps=0,
                train_rows=0,
                seconds=seconds,
                predicted=(),
                failed=" ".join(why.split()),
                left_out=left_out,
            )
        )

    def _predict(self, predictor: Predictor, id: str, rows: int) -> list[int]:
        predicted: list[int] = []
        for start in range(0, rows, 32):
            self.progress(f"{id} · validate", start, rows)
            predicted += (
                predictor.predict(list(self.validation.inputs[start : min(rows, start + 32)])).argmax(-1).tolist()
            )
        self.progress(f"{id} · validate", rows, rows)
        return predicted

    def _staged(self, id: str) -> Progress:
        return lambda stage, done, total: self.progress(f"{id} · {stage}", done, total)

    # Judging --------------------------------------------------------------------------------------------------------

    def score(self, lap: Lap, rows: int | None = None) -> float:
        """Macro-F1 of a lap on the first rows of the validation set."""
        predicted = np.asarray(lap.predicted[:rows])
        truth = np.asarray(self.validation.targets[: len(predicted)])
        return float(macro_f1(truth, predicted, len(self.task.labels)))

    def common_rows(self, rung: int) -> int:
        """Validation rows that every model of a rung answered."""
        laps = [lap for lap in self.laps.values() if lap.rung == rung and not lap.failed]
        return min((len(lap.predicted) for lap in laps if not self._is_baseline(lap.id)), default=0)

    def _is_baseline(self, id: str) -> bool:
        return self.candidates[id].strategy in BASELINES

    def _better_half(self, rung: int, alive: list[str]) -> list[str]:
        """The better half by macro-F1 on the rows that all were seen on, at least two; the baseline always stays."""
        racers = [id for id in alive if not self._is_baseline(id)]
        common = self.common_rows(rung)
        ranked = sorted(racers, key=lambda id: (-self.score(self.laps[id, rung], common), id))
        kept = set(ranked[: max(2, -(-len(ranked) // 2))])
        for id in ranked[len(kept) :]:
            self.log(f"{id}: stopped, {self.score(self.laps[id, rung], common):.3f} is in the lower half")
        return [id for id in alive if id in kept or self._is_baseline(id)]

    # The held-out rows ----------------------------------------------------------------------------------------------

    def measure(self, last: dict[str, Lap]) -> dict[str, Measured]:
        """Every candidate that did not fail, from its saved folder, in a fresh process, on the test rows.

        All see the same first rows, as many as time allows. One that cannot be measured is recorded in last as failed.
        """
        running = [id for id, lap in last.items() if not lap.failed]
        seconds: dict[str, float] = {}
        if self.budget.seconds is not None:
            costs = {id: self.costs[id] for id in running}
            seconds = measuring_seconds(costs, len(self.test), self._left(len(self.rungs)))
        results = {}
        for id in running:
            path = self._home(id) / "measured.json"
            if not path.exists():
                self.log(f"{id}: measuring on held-out rows in a fresh process")
                try:
                    measured = measure(
                        self._home(id) / "model",
                        list(self.test.inputs),
                        seconds=seconds.get(id),
                        least=MIN_ROWS,
                        progress=self._staged(id),
                    )
                except KibanError as error:
                    last[id] = self._fail(id, len(self.rungs), error, 0.0)
                    continue
                write_text(path, json.dumps(measured.__dict__))
            results[id] = Measured(**json.loads(path.read_text(encoding="utf-8")))
        return results

    def curve(self, id: str) -> list[tuple[int, float]]:
        """(training rows, macro-F1 on the validation rows that all laps of this candidate saw)."""
        laps = [
            lap
            for key, lap in sorted(self.laps.items(), key=lambda item: item[0][1])
            if key[0] == id and not lap.failed
        ]
        common = min((len(lap.predicted) for lap in laps), default=0)
        return [(lap.train_rows, self.score(lap, common)) for lap in laps if lap.train_rows]

    def keep(self, id: str, final: Path, *, card: str) -> None:
        """Put the candidate's folder in place as final/, with its model card as README.md."""
        if not final.exists():
            staged = final.with_name(".final")
            shutil.rmtree(staged, ignore_errors=True)
            shutil.copytree(self._home(id) / "model", staged)
            (staged / "README.md").write_text(card, encoding="utf-8")
            manifest = read_json(staged / MANIFEST)
            write_manifest(staged, {key: value for key, value in manifest.items() if key != "files"})
            load_predictor(staged)
            staged.rename(final)

    def clean(self) -> None:
        """Remove the candidates' weights; what was measured of them stays."""
        for id in self.candidates:
            shutil.rmtree(self._home(id) / "model", ignore_errors=True)


def _rows_with_every_class_first(rows: Rows, seed: int) -> list[int]:
    """A shuffled order whose head holds one row of each class, so that small rungs know all classes."""
    shuffled = np.random.default_rng(seed).permutation(len(rows)).tolist()
    first: dict[Any, int] = {}
    for i in shuffled:
        first.setdefault(rows.targets[i], i)
    head = list(first.values())
    seen = set(head)
    return head + [i for i in shuffled if i not in seen]
