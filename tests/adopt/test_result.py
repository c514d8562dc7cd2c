"""Results survive the file; anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kiban.adopt.result import (
    CandidateResult,
    Check,
    ClassScore,
    Comparison,
    CurvePoint,
    Finding,
    Forecast,
    Interval,
    Mistake,
    Profile,
    Recommendation,
    Result,
    Splits,
)
from kiban.errors import FormatError

HALF = Interval(value=0.5, low=0.25, high=0.75)
FULL = CandidateResult(
    id="a:b", strategy="a", model="b", status="finished", accuracy=HALF, macro_f1=HALF, p50_ms=1.5, model_bytes=2**40,
    per_class=(ClassScore(label="区分", precision=0.1, recall=0.2, f1=0.3, support=4),), confusion=((1, 2), (3, 4)),
    mistakes=(Mistake(row=7, text="本文\n\"'\u2028😀", truth="甲", predicted="乙", confidence=0.9),),
    curve=(CurvePoint(train_rows=10, macro_f1=0.4),), checks=(Check(requirement="p95<1ms", value=None, ok=False),),
    commercial_use=True,
)  # fmt: skip
RESULT = Result(
    kiban_version="0", created="2026", command="kiban adopt", source="表.csv", text_column="本文", label_column="区分",
    seed=1, labels=("甲", "乙"),
    profile=Profile(
        rows=9, usable_rows=8, language="ja", label_counts={"甲": 5, "乙": 3}, length_p50=3, length_p95=9,
        findings=(Finding(code="label_variants", severity="warning", values={"labels": ["甲", "甲 "]}),),
    ),
    splits=Splits(train=5, validation=1, test=2, groups=8),
    candidates=(FULL, CandidateResult(id="c", strategy="c", model=None, status="skipped", reason="大きい")),
    comparisons=(
        Comparison(a="a:b", b="c", test_rows=2, accuracy_difference=HALF, macro_f1_difference=HALF, mcnemar_p=1.0,
                   significant=False),
    ),
    pareto=("a:b",),
    recommendation=Recommendation(verdict="decided", id="a:b", rival=None, reason_ja="理由", reason_en="why"),
    forecast=Forecast(rows_now=5, macro_f1_now=0.5, rows_twice=10, macro_f1_twice=HALF),
    requirements=("cost<1円/1k",), yen_per_hour=15.0, yen_per_usd=150.0, environment={"cores": 2}, total_seconds=1.0,
)  # fmt: skip


def test_a_result_survives_the_file_and_japanese_stays_readable(tmp_path: Path) -> None:
    RESULT.save(tmp_path / "result.json")
    assert Result.read(tmp_path / "result.json") == RESULT
    text = (tmp_path / "result.json").read_text("utf-8")
    assert "区分" in text and "\\u" not in text.replace("\\u2028", "")
    assert Result.read(tmp_path / "result.json").candidate("c").reason == "大きい"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '"text"', '{"candidates": 3}', "\ufeff{}"])
def test_anything_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text, "utf-8")
    with pytest.raises(FormatError, match="is not the result of a kiban run"):
        Result.read(path)
    with pytest.raises(FormatError):
        Result.read(tmp_path / "none.json")


def test_a_field_that_is_missing_unknown_or_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    RESULT.save(tmp_path / "result.json")
    whole = json.loads((tmp_path / "result.json").read_text("utf-8"))
    for change in ({"splits": None}, {"colour": 1}, {"profile": [1]}, {"candidates": [[1]]}, {"comparisons": [{}]}):
        (tmp_path / "other.json").write_text(json.dumps({**whole, **change}), "utf-8")
        with pytest.raises(FormatError):
            Result.read(tmp_path / "other.json")
