"""What a race leaves: plain records, written to `result.json`; the report and the Python API read only these."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kiban.errors import FormatError

Status = Literal["finished", "stopped_early", "failed", "skipped"]
Verdict = Literal["decided", "undecided", "none_meets_requirements"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A measured value with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class on the test rows; support is its number of rows."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A test row that was predicted wrongly, most confident first. confidence is in 0..1."""

    row: int  # where the row begins in the table's file, counted from 1
    text: str  # or the name of the picture
    truth: str
    predicted: str
    confidence: float
    picture: str = ""  # a small JPEG as base64


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Macro-F1 on the validation rows after fitting on train_rows rows."""

    train_rows: int
    macro_f1: float


@dataclass(frozen=True, kw_only=True)
class Check:
    """One requirement held against one candidate; value is None when it was not measured."""

    requirement: str
    value: float | None
    ok: bool


@dataclass(frozen=True, kw_only=True)
class CandidateResult:
    """One way to adopt one model, with everything measured. None means not measured (see reason)."""

    id: str  # "finetune_encoder:minilm-l6"; unique in a run
    strategy: str
    model: str | None  # catalogue name or folder; None for the baseline
    status: Status
    reason: str = ""  # why it was stopped, failed or skipped
    steps: int = 0  # optimiser steps of the last fit
    train_rows: int = 0  # rows of the last fit
    test_rows: int = 0  # held-out rows measured; fewer than the whole test set when stopped early
    accuracy: Interval | None = None
    macro_f1: Interval | None = None
    p50_ms: float | None = None  # one request at a time
    p95_ms: float | None = None
    rows_per_second: float | None = None  # in batches
    peak_memory_bytes: int | None = None  # of a fresh process that loads and predicts
    train_seconds: float | None = None
    model_bytes: int | None = None
    cost_per_1k_yen: float | None = None
    cost_per_1k_usd: float | None = None
    licence: str = "unknown"
    commercial_use: bool | None = None
    per_class: tuple[ClassScore, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()  # [truth][predicted], in the order of Result.labels
    mistakes: tuple[Mistake, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """a against b on the same test rows: a - b with 95% paired bootstrap intervals, and McNemar's exact test."""

    a: str
    b: str
    test_rows: int
    accuracy_difference: Interval
    macro_f1_difference: Interval
    mcnemar_p: float
    significant: bool


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something seen in the data. code is stable ("near_duplicates"), values fill the sentence in either language."""

    code: str
    severity: Literal["info", "warning"]
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What the data look like. Lengths are in characters of a text, or pixels of a picture's shorter side.

    language: of the texts, or of the names of the classes of pictures.
    """

    rows: int
    usable_rows: int
    language: Literal["ja", "en", "mixed", "other"]
    label_counts: dict[str, int]
    length_p50: int
    length_p95: int
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Numbers of rows."""

    train: int
    validation: int
    test: int
    groups: int  # clusters of near-duplicates that were kept on one side


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What the learning curve of the recommended candidate predicts."""

    rows_now: int
    macro_f1_now: float
    rows_twice: int
    macro_f1_twice: Interval


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The decision. id is None if nothing meets the requirements; label_more: rows to label until the leaders part."""

    verdict: Verdict
    id: str | None
    rival: str | None  # the candidate that it was weighed against
    reason_ja: str
    reason_en: str
    label_more: int | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """A whole run. The baseline is always among the candidates."""

    kiban_version: str
    created: str  # ISO 8601, UTC
    command: str  # repeats the run
    source: str  # name of the table or folder
    text_column: str  # "" for a folder of pictures, as the next
    label_column: str
    seed: int
    labels: tuple[str, ...]
    profile: Profile
    splits: Splits
    candidates: tuple[CandidateResult, ...]
    comparisons: tuple[Comparison, ...]
    pareto: tuple[str, ...]  # ids on the front of macro-F1 against cost
    recommendation: Recommendation
    forecast: Forecast | None
    requirements: tuple[str, ...]
    yen_per_hour: float  # price of this machine
    yen_per_usd: float
    environment: dict[str, Any]
    total_seconds: float
    kind: Literal["single_label", "image"] = "single_label"

    def candidate(self, id: str) -> CandidateResult:
        """The candidate of this id."""
        return next(c for c in self.candidates if c.id == id)

    def save(self, path: Path) -> None:
        """Write as JSON; Japanese stays readable."""
        path.write_text(json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read what `save` wrote. Raises FormatError if it is something else."""
        try:
            return typing.cast(Result, _build(cls, json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(path, why=f"is not the result of a kiban run: {error}") from error


def _build(kind: Any, value: Any) -> Any:
    """Turn JSON values back into the dataclasses that the type hints name."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return typing.cast(Any, kind)(**{key: _build(hints[key], item) for key, item in value.items()})
    if origin is tuple and isinstance(value, Sequence):
        return tuple(_build(args[0], item) for item in value)
    if origin in (types.UnionType, typing.Union) and value is not None:
        return _build(next(arg for arg in args if arg is not type(None)), value)
    return value
