"""From what a race measured to the records of its result: intervals, comparisons, costs, forecast and decision."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kiban.adopt.decide import decide
from kiban.adopt.laps import Lap
from kiban.adopt.measure import Measured
from kiban.adopt.race import Race
from kiban.adopt.result import (
    CandidateResult,
    Check,
    ClassScore,
    Comparison,
    CurvePoint,
    Forecast,
    Interval,
    Mistake,
    Result,
)
from kiban.adopt.strategies.base import Candidate
from kiban.adopt.thumbnails import thumbnail
from kiban.choose.cost import Prices, cost_per_thousand
from kiban.choose.requirements import Requirement
from kiban.evaluate.curves import fit_learning_curve, rows_needed
from kiban.evaluate.metrics import confusion, per_class
from kiban.evaluate.statistics import Metric, bootstrap_interval, holm, mcnemar, paired_bootstrap

if TYPE_CHECKING:
    from kiban.adopt.job import Look

MAX_MISTAKES = 20
METRICS: tuple[Metric, ...] = ("accuracy", "macro_f1")
SIGNIFICANCE = 0.05


def assemble(
    look: Look,
    race: Race,
    laps: Mapping[str, Lap],
    measured: Mapping[str, Measured],
    *,
    prices: Prices,
    seed: int,
    facts: Mapping[str, Any],
) -> Result:
    """The whole result. facts fills the fields of Result that concern the run rather than the race."""
    candidates = [
        _candidate(look, race, candidate, laps[candidate.id], measured.get(candidate.id), prices, seed)
        for candidate in look.candidates
    ]
    for skipped in look.skipped:
        candidates.append(
            CandidateResult(
                id=skipped.candidate.id,
                strategy=skipped.candidate.strategy,
                model=skipped.candidate.model,
                status="skipped",
                reason=skipped.reason,
                licence=skipped.candidate.licence,
                commercial_use=skipped.candidate.commercial_use,
            )
        )
    checked = [
        dataclasses.replace(c, checks=tuple(_check(r, c) for r in look.requirements) if c.macro_f1 else ())
        for c in candidates
    ]
    comparisons = _comparisons(look, checked, measured, seed)
    more = _label_more(look, checked, measured)
    pareto, recommendation = decide(checked, comparisons, look.requirements, label_more=more)
    return Result(
        seed=seed,
        labels=look.task.labels,
        profile=look.profile,
        splits=look.splits,
        candidates=tuple(checked),
        comparisons=tuple(comparisons),
        pareto=tuple(pareto),
        recommendation=recommendation,
        forecast=_forecast(checked, recommendation.id, look.splits.train, seed),
        requirements=tuple(r.text for r in look.requirements),
        yen_per_hour=prices.yen_per_hour,
        yen_per_usd=prices.yen_per_usd,
        **facts,
    )


def _candidate(
    look: Look, race: Race, candidate: Candidate, lap: Lap, measured: Measured | None, prices: Prices, seed: int
) -> CandidateResult:
    base = CandidateResult(
        id=candidate.id,
        strategy=candidate.strategy,
        model=candidate.model,
        status="skipped" if lap.left_out else "failed",
        reason=lap.failed,
        licence=candidate.licence,
        commercial_use=candidate.commercial_use,
    )
    if measured is None:
        return base
    probabilities = np.asarray(measured.probabilities)
    predicted = probabilities.argmax(-1)
    truth = np.asarray(look.rows[2].targets[: len(predicted)])
    num_labels = len(look.task.labels)
    # One request at a time keeps the machine busy for the mean latency, so that is what a request costs.
    yen, usd = cost_per_thousand(float(np.mean(measured.latencies)), prices)
    last = lap.rung == len(race.rungs) - 1
    scores = per_class(truth, predicted, num_labels)
    return dataclasses.replace(
        base,
        status="finished" if last else "stopped_early",
        reason="" if last else _why_stopped(race, lap),
        steps=lap.steps,
        train_rows=lap.train_rows,
        test_rows=len(predicted),
        accuracy=_interval("accuracy", truth, predicted, num_labels, seed),
        macro_f1=_interval("macro_f1", truth, predicted, num_labels, seed),
        p50_ms=1000 * float(np.percentile(measured.latencies, 50)),
        p95_ms=1000 * float(np.percentile(measured.latencies, 95)),
        rows_per_second=measured.rows_per_second,
        peak_memory_bytes=measured.peak_memory_bytes,
        train_seconds=lap.seconds,
        model_bytes=measured.model_bytes,
        cost_per_1k_yen=yen,
        cost_per_1k_usd=usd,
        per_class=tuple(ClassScore(label=look.task.labels[i], **score) for i, score in enumerate(scores)),
        confusion=tuple(tuple(int(n) for n in row) for row in confusion(truth, predicted, num_labels)),
        mistakes=_mistakes(look, probabilities, truth),
        curve=tuple(CurvePoint(train_rows=rows, macro_f1=score) for rows, score in race.curve(candidate.id)),
    )


def _check(requirement: Requirement, candidate: CandidateResult) -> Check:
    return Check(requirement=requirement.text, value=requirement.value(candidate), ok=requirement.met_by(candidate))


def _why_stopped(race: Race, lap: Lap) -> str:
    """Codes for the report: the score, the rows it learned from, and the best score, on the rows that decided."""
    rows = race.common_rows(lap.rung)
    best = max(race.score(other, rows) for other in race.laps.values() if other.rung == lap.rung and not other.failed)
    return f"macro_f1={race.score(lap, rows):.3f} best={best:.3f} rung={lap.rung + 1} rows={race.rungs[lap.rung]}"


def _mistakes(look: Look, probabilities: NDArray[np.float64], truth: NDArray[np.int64]) -> tuple[Mistake, ...]:
    predicted, confidence = probabilities.argmax(-1), probabilities.max(-1)
    wrong = [int(i) for i in np.argsort(-confidence, kind="stable") if predicted[i] != truth[i]]
    return tuple(
        Mistake(
            row=look.test_lines[i],
            text=look.test_names[i],
            truth=look.task.labels[truth[i]],
            predicted=look.task.labels[predicted[i]],
            confidence=float(confidence[i]),
            picture=thumbnail(look.rows[2].inputs[i]) if look.task.kind == "image" else "",
        )
        for i in wrong[:MAX_MISTAKES]
    )


def _interval(
    metric: Metric, truth: NDArray[np.int64], predicted: NDArray[np.int64], num_labels: int, seed: int
) -> Interval:
    value, low, high = bootstrap_interval(metric, truth, predicted, num_labels=num_labels, seed=seed)
    return Interval(value=value, low=low, high=high)


def _comparisons(
    look: Look, candidates: list[CandidateResult], measured: Mapping[str, Measured], seed: int
) -> list[Comparison]:
    """Every pair, better first, on the rows that both answered; significance by McNemar with Holm's correction."""
    scored = sorted((c for c in candidates if c.macro_f1), key=lambda c: -c.macro_f1.value if c.macro_f1 else 0.0)
    predicted = {c.id: np.asarray(measured[c.id].probabilities).argmax(-1) for c in scored}
    num_labels = len(look.task.labels)
    pairs = []
    for a, b in itertools.combinations(scored, 2):
        rows = min(a.test_rows, b.test_rows)
        truth = np.asarray(look.rows[2].targets[:rows])
        left, right = predicted[a.id][:rows], predicted[b.id][:rows]
        differences = [
            Interval(value=value, low=low, high=high)
            for value, low, high in (
                paired_bootstrap(metric, truth, left, right, num_labels=num_labels, seed=seed) for metric in METRICS
            )
        ]
        pairs.append((a.id, b.id, rows, differences, mcnemar(truth, left, right)))
    significant = holm([p for *_, p in pairs], level=SIGNIFICANCE)
    return [
        Comparison(
            a=a,
            b=b,
            test_rows=rows,
            accuracy_difference=differences[0],
            macro_f1_difference=differences[1],
            mcnemar_p=p,
            significant=bool(flag),
        )
        for (a, b, rows, differences, p), flag in zip(pairs, significant, strict=True)
    ]


def _label_more(
    look: Look, candidates: list[CandidateResult], measured: Mapping[str, Measured]
) -> dict[frozenset[str], int | None]:
    """For each pair: rows to label until the test rows among them separate the two, at the present share of test rows."""
    finished = [c.id for c in candidates if c.status == "finished"]
    share = look.splits.test / max(1, look.splits.train + look.splits.validation + look.splits.test)
    result: dict[frozenset[str], int | None] = {}
    for a, b in itertools.combinations(finished, 2):
        left, right = (np.asarray(measured[id].probabilities).argmax(-1) for id in (a, b))
        rows = min(len(left), len(right))
        truth = np.asarray(look.rows[2].targets[:rows])
        right_a, right_b = left[:rows] == truth, right[:rows] == truth
        needed = rows_needed(int((right_a & ~right_b).sum()), int((~right_a & right_b).sum()), rows)
        more = None if needed is None else max(0, needed - rows) / share
        result[frozenset((a, b))] = _two_digits(more) if more and more <= 50_000 else None
    return result


def _two_digits(value: float) -> int:
    """Rounded up to two leading digits; more would pretend."""
    power = 10 ** max(0, len(str(int(value))) - 2)
    return int(-(-value // power) * power)


def _forecast(candidates: list[CandidateResult], id: str | None, rows: int, seed: int) -> Forecast | None:
    """What twice the labels would bring, from the recommended candidate's learning curve of three points or more."""
    chosen = next((c for c in candidates if c.id == id), None)
    if chosen is None or len(chosen.curve) < 3:
        return None
    curve = fit_learning_curve([p.train_rows for p in chosen.curve], [p.macro_f1 for p in chosen.curve], seed=seed)
    value, low, high = curve.predict(2 * rows)
    return Forecast(
        rows_now=rows,
        macro_f1_now=chosen.curve[-1].macro_f1,
        rows_twice=2 * rows,
        macro_f1_twice=Interval(value=value, low=low, high=high),
    )
