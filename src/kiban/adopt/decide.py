"""From measurements to a decision: the Pareto front, and one candidate under the user's requirements.

The rule. Among the finished candidates that meet every requirement, the one with the best macro-F1 leads. If a cheaper
one is not significantly worse (paired test with Holm's correction), the cheapest such candidate is recommended instead:
quality that cannot be shown is not worth money. Costs come from timings, so those within a fifth of the lowest count as
the same, and the best macro-F1 among them wins. The verdict is "undecided" if the leader it displaces is 2 points of
macro-F1 or more above it, which more test rows might confirm. The test counts right answers; where it finds the one with
the lower macro-F1 significantly more accurate, that one is not worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kiban.adopt.result import CandidateResult, Comparison, Recommendation
from kiban.choose.pareto import front
from kiban.choose.requirements import Requirement

RELEVANT = 0.02  # macro-F1 that somebody would notice
SAME_COST = 1.2  # costs within this factor may differ by the noise of timing alone


def decide(
    candidates: Sequence[CandidateResult],
    comparisons: Sequence[Comparison],
    requirements: Sequence[Requirement],
    *,
    label_more: Mapping[frozenset[str], int | None],
) -> tuple[list[str], Recommendation]:
    """Ids on the Pareto front of macro-F1 against cost, and the recommendation.

    label_more: for a pair of ids, rows to label until a paired test would separate them; None if it never would.
    """
    scored = [c for c in candidates if c.macro_f1 and c.cost_per_1k_yen is not None]
    pareto = front([(c.id, _score(c), _cost(c)) for c in scored if c.status == "finished"])
    fit = [c for c in scored if c.status == "finished" and all(r.met_by(c) for r in requirements)]
    if not fit:
        return pareto, _nothing_fits(scored, requirements)
    leader = max(fit, key=lambda c: (_score(c), -_cost(c)))
    by_pair = {frozenset((c.a, c.b)): c for c in comparisons}
    as_good = [c for c in fit if c is leader or not _beats(leader, by_pair[frozenset((c.id, leader.id))])]
    lowest = min(_cost(c) for c in as_good)
    chosen = max((c for c in as_good if _cost(c) <= SAME_COST * lowest), key=lambda c: (_score(c), -_cost(c)))
    others = [c for c in fit if c is not chosen]
    if not others:
        return pareto, _alone(chosen, requirements)
    rival = leader if chosen is not leader else max(others, key=_score)
    pair = by_pair[frozenset((chosen.id, rival.id))]
    if chosen is not leader and _score(leader) - _score(chosen) >= RELEVANT:
        return pareto, _undecided(chosen, leader, label_more.get(frozenset((chosen.id, leader.id))))
    if chosen is not leader:
        return pareto, _cheaper(chosen, leader)
    return pareto, _best(chosen, rival, significant=_beats(chosen, pair))


def _beats(c: CandidateResult, pair: Comparison) -> bool:
    """True if c is significantly more accurate than the other of the pair."""
    gain = pair.accuracy_difference.value
    return pair.significant and (gain if pair.a == c.id else -gain) > 0


def _score(c: CandidateResult) -> float:
    return c.macro_f1.value if c.macro_f1 else 0.0


def _cost(c: CandidateResult) -> float:
    return c.cost_per_1k_yen or 0.0


def _f(c: CandidateResult) -> str:
    return f"{_score(c):.3f}"


def _yen(c: CandidateResult) -> str:
    return f"{c.cost_per_1k_yen:.2g}"


def _usd(c: CandidateResult) -> str:
    return f"{c.cost_per_1k_usd:.2g}"


def _times(dear: CandidateResult, cheap: CandidateResult) -> str:
    ratio = _cost(dear) / max(_cost(cheap), 1e-12)
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def _alone(c: CandidateResult, requirements: Sequence[Requirement]) -> Recommendation:
    ja = "要件を満たす唯一の候補です" if requirements else "最後まで測れた唯一の候補です"
    en = (
        "the only candidate that meets the requirements"
        if requirements
        else "the only candidate that was fully measured"
    )
    return Recommendation(
        verdict="decided",
        id=c.id,
        rival=None,
        reason_ja=f"{c.id} は{ja}（macro-F1 {_f(c)}、1,000件あたり{_yen(c)}円）。",
        reason_en=f"{c.id} is {en} (macro-F1 {_f(c)}, ${_usd(c)} per 1,000 requests).",
    )


def _best(c: CandidateResult, rival: CandidateResult, *, significant: bool) -> Recommendation:
    if significant:
        ja, en = "統計的に有意な差です", "a significant difference"
    elif _cost(c) < _cost(rival):
        ja, en = "差は有意ではありませんが、費用も低く済みます", "not a significant difference, but it is cheaper too"
    else:
        ja, en = "差は有意ではなく、費用もほぼ同じです", "not a significant difference, at about the same cost"
    return Recommendation(
        verdict="decided",
        id=c.id,
        rival=rival.id,
        reason_ja=f"{c.id} のmacro-F1が{_f(c)}で最も高く、次点 {rival.id} は{_f(rival)}でした（{ja}）。",
        reason_en=f"{c.id} has the best macro-F1, {_f(c)}; the next, {rival.id}, has {_f(rival)} ({en}).",
    )


def _cheaper(c: CandidateResult, leader: CandidateResult) -> Recommendation:
    ratio = _times(leader, c)
    return Recommendation(
        verdict="decided",
        id=c.id,
        rival=leader.id,
        reason_ja=(
            f"{c.id}（macro-F1 {_f(c)}）は首位の {leader.id}（{_f(leader)}）と有意な差がなく、費用は{ratio}分の1で済みます。"
        ),
        reason_en=(
            f"{c.id} (macro-F1 {_f(c)}) is not significantly worse than {leader.id} ({_f(leader)}) "
            f"and costs {ratio} times less."
        ),
    )


def _undecided(c: CandidateResult, rival: CandidateResult, more: int | None) -> Recommendation:
    ja = f"あと約{more:,}件ラベルを付けると" if more else "ラベルを増やすと"
    en = f"label about {more:,} more examples" if more else "label more examples"
    return Recommendation(
        verdict="undecided",
        id=c.id,
        rival=rival.id,
        reason_ja=(
            f"{c.id}（macro-F1 {_f(c)}）と {rival.id}（{_f(rival)}）の差はまだ確かめられません。"
            f"{ja}判断できる見込みで、当面は費用の低い {c.id} を勧めます。"
        ),
        reason_en=(
            f"{c.id} (macro-F1 {_f(c)}) and {rival.id} ({_f(rival)}) cannot be told apart yet: {en} to decide; "
            f"until then {c.id} is the choice, being cheaper."
        ),
        label_more=more,
    )


def _nothing_fits(scored: Sequence[CandidateResult], requirements: Sequence[Requirement]) -> Recommendation:
    """Name the candidate that misses the fewest requirements."""
    finished = [c for c in scored if c.status == "finished"]
    if not finished:
        ja, en = "最後まで測定できた候補がありません。", "No candidate could be measured to the end."
        return Recommendation(verdict="none_meets_requirements", id=None, rival=None, reason_ja=ja, reason_en=en)
    nearest = min(finished, key=lambda c: (sum(not r.met_by(c) for r in requirements), -_score(c)))
    missed = [r.text for r in requirements if not r.met_by(nearest)]
    return Recommendation(
        verdict="none_meets_requirements",
        id=None,
        rival=nearest.id,
        reason_ja=f"要件をすべて満たす候補はありません。最も近い {nearest.id} は「{'、'.join(missed)}」を満たしません。",
        reason_en=f"No candidate meets every requirement; the nearest, {nearest.id}, misses {', '.join(missed)}.",
    )
