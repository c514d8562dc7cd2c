"""Requirements as people type them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kiban.choose.requirements import parse
from kiban.errors import RequirementError


@pytest.mark.parametrize(
    ("text", "attribute", "comparison", "limit"),
    [
        ("p95<300ms", "p95_ms", "<", 300),
        ("p95<0.3s", "p95_ms", "<", 300),
        ("p50 < 2秒", "p50_ms", "<", 2000),
        ("ｐ９５＜３００ｍｓ", "p95_ms", "<", 300),
        ("cost<50円/1k", "cost_per_1k_yen", "<", 50),
        ("費用＜５０円／１ｋ", "cost_per_1k_yen", "<", 50),
        ("コスト<1,500円/1000件", "cost_per_1k_yen", "<", 1500),
        ("cost<¥50/1k", "cost_per_1k_yen", "<", 50),
        ("cost<$0.2/1k", "cost_per_1k_usd", "<", 0.2),
        ("macro_f1>0.8", "macro_f1", ">", 0.8),
        ("macro-f1>=80%", "macro_f1", ">", 0.8),
        ("f1≧0.8", "macro_f1", ">", 0.8),
        ("正解率>90%", "accuracy", ">", 0.9),
        ("memory<2GB", "peak_memory_bytes", "<", 2e9),
        ("メモリ<2GiB", "peak_memory_bytes", "<", 2**31),
        ("size<500MB", "model_bytes", "<", 5e8),
        ("throughput>100件/秒", "rows_per_second", ">", 100),
        ("license=commercial", "commercial_use", "=", 1),
        ("ライセンス=商用可", "commercial_use", "=", 1),
    ],
)
def test_one_requirement_is_read(text: str, attribute: str, comparison: str, limit: float) -> None:
    (found,) = parse(text)
    assert (found.attribute, found.comparison) == (attribute, comparison)
    assert found.limit == pytest.approx(limit)


def test_several_are_separated_by_any_comma_and_thousands_stay_whole() -> None:
    texts = ("p95<300ms, cost<1,000円/1k, macro_f1>0.8", "p95<300ms、cost<1,000円/1k、macro_f1>0.8")
    assert [r.limit for r in parse(texts[0])] == [r.limit for r in parse(texts[1])] == [300, 1000, 0.8]
    assert parse("") == parse(" , ") == ()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("p59<300ms", "p95"),
        ("p95>300ms", "'<'"),
        ("macro_f1<0.5", "'>'"),
        ("p95<fast", "fast"),
        ("p95<300parsec", "parsec"),
        ("cost<50€/1k", "円/1k"),
        ("license=mine", "commercial"),
        ("quick", "quick"),
        ("memory<", "memory<"),
    ],
)
def test_what_cannot_be_read_is_quoted_with_what_to_write(text: str, told: str) -> None:
    with pytest.raises(RequirementError) as caught:
        parse(f"accuracy>0.1, {text}")
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_the_dict_form_means_the_same() -> None:
    given: dict[str, Any] = {"p95_ms": 300, "cost_yen_per_1k": 50, "macro_f1": 0.8, "memory_bytes": 2 * 10**9}
    told = [(r.attribute, r.limit) for r in parse(given)]
    assert told == [(r.attribute, r.limit) for r in parse("p95<300ms, cost<50円/1k, macro_f1>0.8, memory<2GB")]
    with pytest.raises(RequirementError, match="p95_ms"):
        parse({"p95": 300})


def test_a_limit_is_met_strictly_or_inclusively_as_written_and_never_by_the_unknown() -> None:
    measured = SimpleNamespace(p95_ms=300.0, macro_f1=SimpleNamespace(value=0.8), commercial_use=None)
    for text, met in (("p95<300ms", False), ("p95<=300ms", True), ("macro_f1>0.8", False), ("macro_f1>=0.8", True)):
        assert parse(text)[0].met_by(measured) is met, text
    (commercial,) = parse("license=commercial")
    assert not commercial.met_by(measured)
    assert commercial.met_by(SimpleNamespace(commercial_use=True))
    assert not commercial.met_by(SimpleNamespace(commercial_use=False))
