"""Every branch of the rule, on results made by hand."""

from __future__ import annotations

import itertools
from typing import Any

from kiban.adopt.decide import decide
from kiban.adopt.result import CandidateResult, Comparison, Interval, Recommendation
from kiban.choose.requirements import parse


def measured(id: str, f1: float, yen: float, **more: Any) -> CandidateResult:
    fields: dict[str, Any] = {
        "id": id, "strategy": id, "model": None, "status": "finished", "macro_f1": Interval(value=f1, low=0, high=1),
        "accuracy": Interval(value=f1, low=0, high=1), "cost_per_1k_yen": yen, "cost_per_1k_usd": yen / 150,
        "p95_ms": 100.0,
    }  # fmt: skip
    return CandidateResult(**{**fields, **more})


def pairs(candidates: list[CandidateResult], *significant: str) -> list[Comparison]:
    """All comparisons; significant are pairs such as "ab"; the more accurate of two is a - b > 0."""
    found = []
    for a, b in itertools.combinations(candidates, 2):
        assert a.accuracy and b.accuracy
        gain = Interval(value=a.accuracy.value - b.accuracy.value, low=0, high=0)
        found.append(
            Comparison(
                a=a.id, b=b.id, test_rows=100, accuracy_difference=gain, macro_f1_difference=gain, mcnemar_p=0.5,
                significant=a.id + b.id in significant or b.id + a.id in significant,
            )
        )  # fmt: skip
    return found


def decision(
    candidates: list[CandidateResult],
    *significant: str,
    require: str = "",
    more: dict[frozenset[str], int] | None = None,
) -> Recommendation:
    measured_ones = [c for c in candidates if c.macro_f1]
    return decide(candidates, pairs(measured_ones, *significant), parse(require), label_more=more or {})[1]


def test_the_best_is_recommended_if_it_is_significantly_better() -> None:
    found = decision([measured("a", 0.9, 50), measured("b", 0.8, 5)], "ab")
    assert (found.verdict, found.id, found.rival) == ("decided", "a", "b")
    assert "a significant difference" in found.reason_en and "有意な差です" in found.reason_ja
    assert "0.900" in found.reason_ja and "0.800" in found.reason_en


def test_a_cheaper_one_that_is_not_shown_to_be_worse_is_recommended() -> None:
    found = decision([measured("a", 0.85, 50), measured("b", 0.84, 5), measured("c", 0.83, 10)])
    assert (found.verdict, found.id, found.rival) == ("decided", "b", "a")
    assert "10 times less" in found.reason_en and "10分の1" in found.reason_ja


def test_two_points_that_are_not_shown_leave_it_undecided() -> None:
    candidates = [measured("a", 0.88, 50), measured("b", 0.85, 5)]
    found = decision(candidates, more={frozenset("ab"): 340})
    assert (found.verdict, found.id, found.rival, found.label_more) == ("undecided", "b", "a", 340)
    assert "340 more examples" in found.reason_en and "340件" in found.reason_ja
    never = decision(candidates)
    assert never.verdict == "undecided" and never.label_more is None and "None" not in never.reason_en
    assert decision([measured("a", 0.8699, 50), measured("b", 0.85, 5)]).verdict == "decided"


def test_the_cheapest_of_those_as_good_is_taken_and_the_worse_are_not() -> None:
    candidates = [measured("a", 0.9, 50), measured("b", 0.89, 20), measured("c", 0.5, 1)]
    assert decision(candidates, "ac").id == "b"
    assert decision(candidates, "ac", "bc").id == "b"
    assert decision(candidates, "ab", "ac").id == "a"


def test_the_leader_that_is_also_the_cheapest_needs_no_significance() -> None:
    found = decision([measured("a", 0.9, 5), measured("b", 0.89, 50)])
    assert (found.verdict, found.id, found.rival) == ("decided", "a", "b")
    assert "cheaper too" in found.reason_en and "費用も低く" in found.reason_ja


def test_costs_within_the_noise_of_timing_count_as_the_same() -> None:
    found = decision([measured("a", 0.9, 11), measured("b", 0.85, 10)])
    assert (found.verdict, found.id, found.rival) == ("decided", "a", "b")
    assert "about the same cost" in found.reason_en and "cheaper" not in found.reason_en
    assert decision([measured("a", 0.9, 12.1), measured("b", 0.85, 10)]).id == "b"
    free = decision([measured("a", 0.85, 0), measured("b", 0.9, 0)])  # a machine that costs nothing
    assert free.id == "b" and "about the same cost" in free.reason_en


def test_ties_go_to_the_cheaper_one_whatever_the_order() -> None:
    candidates = [measured("a", 0.9, 10), measured("b", 0.9, 5), measured("c", 0.9, 20)]
    assert {decision(list(order)).id for order in itertools.permutations(candidates)} == {"b"}


def test_one_with_the_lower_macro_f1_but_significantly_more_right_answers_is_not_worse() -> None:
    right = measured("b", 0.6, 5, accuracy=Interval(value=0.95, low=0, high=1))
    found = decision([measured("a", 0.61, 50, accuracy=Interval(value=0.8, low=0, high=1)), right], "ab")
    assert found.id == "b"
    dear = measured("b", 0.6, 50, accuracy=Interval(value=0.95, low=0, high=1))
    found = decision([measured("a", 0.61, 5, accuracy=Interval(value=0.8, low=0, high=1)), dear], "ab")
    assert found.id == "a" and "not a significant difference" in found.reason_en


def test_only_those_that_meet_every_requirement_can_win() -> None:
    candidates = [measured("a", 0.9, 50), measured("b", 0.8, 5, p95_ms=400.0), measured("c", 0.7, 6)]
    found = decision(candidates, "ab", "ac", "bc", require="cost<10円/1k, p95<300ms")
    assert (found.verdict, found.id, found.rival) == ("decided", "c", None)
    assert "only candidate that meets the requirements" in found.reason_en and "唯一" in found.reason_ja
    alone = decision([measured("a", 0.9, 50)])
    assert alone.id == "a" and "fully measured" in alone.reason_en


def test_if_none_meets_the_requirements_the_nearest_is_named() -> None:
    candidates = [measured("a", 0.9, 50, p95_ms=400.0), measured("b", 0.8, 50), measured("c", 0.7, 50)]
    found = decision(candidates, require="cost<10円/1k, p95<300ms")
    assert (found.verdict, found.id, found.rival) == ("none_meets_requirements", None, "b")
    assert "misses cost<10円/1k" in found.reason_en and "p95" not in found.reason_ja


def test_what_was_not_measured_to_the_end_never_wins() -> None:
    early = measured("a", 0.99, 1, status="stopped_early")
    failed = CandidateResult(id="c", strategy="c", model=None, status="failed")
    assert decision([early, measured("b", 0.5, 50), failed]).id == "b"
    found = decision([early, failed])
    assert (found.verdict, found.id, found.rival) == ("none_meets_requirements", None, None)
    assert "to the end" in found.reason_en
    assert decision([]).verdict == "none_meets_requirements"


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    candidates = [
        measured("a", 0.9, 50), measured("b", 0.8, 5), measured("c", 0.7, 6), measured("d", 0.99, 1, status="stopped_early"),
    ]  # fmt: skip
    assert decide(candidates, pairs(candidates), (), label_more={})[0] == ["b", "a"]
