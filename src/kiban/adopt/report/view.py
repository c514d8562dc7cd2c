"""From a Result to what the template prints: strings in one language, plots as SVG. Nothing here touches files."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from typing import Any

from kiban.adopt.report import plots
from kiban.adopt.report.about import About
from kiban.adopt.report.formats import DASH, Formats, Lang
from kiban.adopt.report.names import STRATEGIES, candidate_name, model_name, strategy_name
from kiban.adopt.report.svg import Canvas
from kiban.adopt.report.words import reason, say
from kiban.adopt.result import CandidateResult, Check, Comparison, Result

WIDE, NARROW = 860.0, 350.0  # pixels: a desk and a telephone
MAX_COMPARISONS, MAX_MISTAKES, MAX_TEXT, MAX_MIXED_UP = 5, 12, 320, 6


class View:
    """What the template reads. Methods without an argument are sections of the report."""

    def __init__(self, result: Result, lang: Lang) -> None:
        self.images = result.kind == "image"
        self.result, self.lang, self.formats = result, lang, Formats(lang, images=self.images)
        scored = [c for c in result.candidates if c.macro_f1]
        rest = [c for c in result.candidates if not c.macro_f1]
        order = ("stopped_early", "finished", "failed", "skipped")
        self.candidates = sorted(scored, key=lambda c: -c.macro_f1.value if c.macro_f1 else 0.0)
        self.scored = list(self.candidates)
        self.candidates += sorted(rest, key=lambda c: order.index(c.status))
        self.number = {c.id: i for i, c in enumerate(self.candidates, 1)}
        self.about = About(result, lang)

    def say(self, key: str, **values: object) -> str:
        """A sentence of the report."""
        return say(key, self.lang, images=self.images, **values)

    def name(self, id: str) -> str:
        """A candidate in a sentence."""
        found = next((c for c in self.candidates if c.id == id), None)
        return candidate_name(found.strategy, found.model, self.lang) if found else id

    @cached_property
    def shown(self) -> CandidateResult | None:
        """The candidate whose details are shown: the recommended one, else the best."""
        chosen = next((c for c in self.scored if c.id == self.result.recommendation.id), None)
        return chosen or (self.scored[0] if self.scored else None)

    # The decision ---------------------------------------------------------------------------------------------------

    @property
    def subtitle(self) -> str:
        r = self.result
        rows = self.formats.count(r.profile.rows)
        columns = {} if self.images else {"text": r.text_column, "label": r.label_column}
        return self.say("subtitle", source=r.source, labels=len(r.labels), rows=rows, **columns)

    @property
    def headline(self) -> str:
        advice = self.result.recommendation
        known = advice.verdict == "none_meets_requirements" or advice.id
        verdict = advice.verdict if known else "none_meets_requirements"
        return self.say(f"headline_{verdict}", name=self.name(advice.id) if advice.id else "")

    @property
    def reason(self) -> str:
        advice = self.result.recommendation
        text = advice.reason_ja if self.lang == "ja" else advice.reason_en
        # The sentence speaks of ids, as the command line does; here people read names.
        ids = "|".join(re.escape(id) for id in sorted(self.number, key=len, reverse=True))
        return re.sub(f" ?({ids}) ?", self._in_sentence, text) if ids else text

    def _in_sentence(self, found: re.Match[str]) -> str:
        return f"「{self.name(found[1])}」" if self.lang == "ja" else found[0].replace(found[1], self.name(found[1]))

    @property
    def label_more(self) -> str:
        advice = self.result.recommendation
        if not advice.label_more:
            return ""
        n = self.formats.count(advice.label_more)
        if advice.rival:
            return self.say("label_more", rival=self.name(advice.rival), n=n)
        return self.say("label_more_alone", n=n)

    def tiles(self) -> list[dict[str, str]]:
        """The numbers of the candidate shown."""
        c, f = self.shown, self.formats
        if c is None:
            return []
        value = c.macro_f1.value if c.macro_f1 else None
        other = f.usd(c.cost_per_1k_usd) if self.lang == "ja" else f.yen(c.cost_per_1k_yen)
        return [
            {
                "name": self.say("quality"),
                "value": f.score(value),
                "note": self.say("ci", interval=f.interval(c.macro_f1)),
            },
            {
                "name": self.say("cost"),
                "value": f.money(c.cost_per_1k_yen, c.cost_per_1k_usd),
                "note": "" if other == DASH else other,
            },
            {
                "name": self.say("p95"),
                "value": f.milliseconds(c.p95_ms),
                "note": self.say("p95_note", p50=f.milliseconds(c.p50_ms)),
            },
            {
                "name": self.say("memory"),
                "value": f.bytes(c.peak_memory_bytes),
                "note": self.say("memory_note", size=f.bytes(c.model_bytes)),
            },
            {
                "name": self.say("licence"),
                "value": self._licence(c),
                "note": self.say(f"commercial_{c.commercial_use}"),
            },
        ]

    def _licence(self, c: CandidateResult) -> str:
        return self.say("licence_unknown") if c.licence == "unknown" else c.licence

    def requirements(self) -> list[dict[str, Any]]:
        """Each requirement: what was measured, or how many candidates meet it if none is recommended."""
        if self.result.recommendation.id and self.shown:
            checks = {c.requirement: c for c in self.shown.checks}
            return [self._requirement(text, checks.get(text)) for text in self.result.requirements]
        told = []
        for text in self.result.requirements:
            checks = {c.id: check for c in self.scored for check in c.checks if check.requirement == text}
            met = sum(check.ok for check in checks.values())
            told.append(
                {"text": text, "ok": met > 0, "word": "", "note": self.say("met_by", n=met, total=len(self.scored))}
            )
        return told

    def _requirement(self, text: str, check: Check | None) -> dict[str, Any]:
        value = self.formats.checked(check) if check else ""
        missing = check is None or (check.value is None and not check.ok)
        note = self.say("measured_as", value=value) if value else self.say("not_measured") if missing else ""
        ok = bool(check and check.ok)
        return {"text": text, "ok": ok, "word": self.say("met" if ok else "unmet"), "note": note}

    # Candidates -----------------------------------------------------------------------------------------------------

    def pareto(self) -> Callable[[float], Canvas] | None:
        """The plot of quality against cost, by its width; None if nothing was measured."""
        points = []
        for c in self.scored:
            cost = c.cost_per_1k_yen if self.lang == "ja" else c.cost_per_1k_usd
            if c.macro_f1 and cost and cost > 0:
                facts = {"on_front": c.id in self.result.pareto, "recommended": c.id == self.result.recommendation.id}
                points.append(
                    plots.Point(number=self.number[c.id], name=self.name(c.id), cost=cost, quality=c.macro_f1, **facts)
                )
        if not points:
            return None
        told = [f"{p.number} {p.name}: {self.formats.score(p.quality.value)}" for p in points]
        alt = self.say("pareto_alt", points=", ".join(told))
        x_title = self.say("pareto_x", unit=self.say("unit"))
        return lambda width: plots.pareto(points, width=width, x_title=x_title, y_title="macro-F1", alt=alt)

    @property
    def not_plotted(self) -> str:
        names = [self.name(c.id) for c in self.candidates if not (c.macro_f1 and c.cost_per_1k_yen)]
        comma = "、" if self.lang == "ja" else ", "
        return self.say("without_cost", names=comma.join(names)) if names else ""

    def table(self) -> list[dict[str, Any]]:
        """A row for every candidate, in the order of the numbers."""
        return [self._row(c) for c in self.candidates]

    def _row(self, c: CandidateResult) -> dict[str, Any]:
        f = self.formats
        met = self.say("requirements_met", n=sum(check.ok for check in c.checks), total=len(c.checks))
        return {
            "number": self.number[c.id],
            "strategy": strategy_name(c.strategy, self.lang),
            "model": model_name(c.model),
            "recommended": c.id == self.result.recommendation.id,
            "front": c.id in self.result.pareto,
            "f1": f.score(c.macro_f1.value if c.macro_f1 else None),
            "f1_interval": f.interval(c.macro_f1) if c.macro_f1 else "",
            "tested_on": self.say("tested_on", rows=f.rows(c.test_rows)) if c.test_rows else "",
            "accuracy": f.score(c.accuracy.value if c.accuracy else None),
            "accuracy_interval": f.interval(c.accuracy) if c.accuracy else "",
            "p50": f.milliseconds(c.p50_ms),
            "p95": f.milliseconds(c.p95_ms),
            "throughput": f.per_second(c.rows_per_second),
            "memory": f.bytes(c.peak_memory_bytes),
            "training": f.seconds(c.train_seconds),
            "trained_on": self.say("trained_on", rows=f.rows(c.train_rows)) if c.train_rows else "",
            "size": f.bytes(c.model_bytes),
            "yen": f.yen(c.cost_per_1k_yen),
            "usd": f.usd(c.cost_per_1k_usd),
            "licence": self._licence(c),
            "commercial": self.say(f"commercial_{c.commercial_use}"),
            "status": c.status,
            "status_text": self.say(f"status_{c.status}"),
            "reason": reason(c.reason, self.lang),
            "requirements": met if c.checks else "",
        }

    def methods(self) -> list[tuple[str, str]]:
        """The strategies of this run in a sentence each."""
        used = {c.strategy for c in self.candidates}
        return [told[self.lang] for strategy, told in STRATEGIES.items() if strategy in used]

    def comparisons(self) -> list[dict[str, Any]]:
        """Pairs with the candidate shown first, then the best of the others."""
        shown = self.shown.id if self.shown else ""
        ranked = sorted(
            self.result.comparisons,
            key=lambda c: (shown not in (c.a, c.b), sum(self.number.get(i, len(self.number)) for i in (c.a, c.b))),
        )
        return [self._comparison(c) for c in ranked[:MAX_COMPARISONS]]

    def _comparison(self, c: Comparison) -> dict[str, Any]:
        f = self.formats
        better = c.a if c.accuracy_difference.value >= 0 else c.b
        judged = self.say("judged_better", a=self.name(better)) if c.significant else self.say("judged_open")
        if not c.significant and not c.macro_f1_difference.low <= 0 <= c.macro_f1_difference.high:
            better = c.a if c.macro_f1_difference.value > 0 else c.b
            judged = self.say("judged_mixed", a=self.name(better))
        return {
            "pair": self.say("against", a=self.name(c.a), b=self.name(c.b)),
            "f1": f.signed(c.macro_f1_difference.value),
            "f1_interval": f.interval(c.macro_f1_difference, signed=True),
            "accuracy": f.signed(c.accuracy_difference.value),
            "accuracy_interval": f.interval(c.accuracy_difference, signed=True),
            "judged": judged,
            "p": f"McNemar {f.p_value(c.mcnemar_p)}, n = {f.count(c.test_rows)}",
        }

    # The candidate shown --------------------------------------------------------------------------------------------

    def classes(self) -> list[dict[str, Any]]:
        """Scores by class, worst first."""
        f = self.formats
        scores = sorted(self.shown.per_class, key=lambda s: s.f1) if self.shown else []
        return [
            {
                "label": s.label,
                "precision": f.score(s.precision),
                "recall": f.score(s.recall),
                "f1": f.score(s.f1),
                "bar": f"{100 * min(1.0, max(0.0, s.f1)):.1f}",
                "support": f.count(s.support),
            }
            for s in scores
        ]

    def mixed_up(self) -> list[str]:
        """The most frequent pairs of true and predicted class."""
        labels, matrix = self.result.labels, self.shown.confusion if self.shown else ()
        pairs = [(n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if n and i != j]
        pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
        return [
            self.say("confusion_item", truth=labels[i], predicted=labels[j], n=self.formats.rows(n))
            for n, i, j in pairs[:MAX_MIXED_UP]
        ]

    def confusion(self) -> Callable[[float], Canvas] | None:
        """The heat map by its width; None if there is none or it could not be read."""
        if not self.shown or not self.shown.confusion or len(self.result.labels) > plots.MAX_CONFUSION:
            return None
        labels, matrix = self.result.labels, self.shown.confusion
        titles = {"x_title": self.say("predicted_axis"), "y_title": self.say("truth_axis")}
        summary = " ".join(self.mixed_up()) or self.say("confusion_none")
        alt = self.say("confusion_alt", summary=summary)
        return lambda width: plots.confusion(labels, matrix, width=width, alt=alt, **titles)

    def mistakes(self) -> list[dict[str, Any]]:
        """Confident mistakes with the beginning of their text, or their picture."""
        told = []
        for m in self.shown.mistakes[:MAX_MISTAKES] if self.shown else ():
            text = m.text if len(m.text) <= MAX_TEXT else m.text[:MAX_TEXT] + "…"
            facts = {"truth": m.truth, "predicted": m.predicted, "confidence": self.formats.percent(m.confidence)}
            told.append({"row": self.formats.count(m.row), "text": text, "picture": m.picture, **facts})
        return told

    def curve(self) -> Callable[[float], Canvas] | None:
        """The learning curves by width; None if no candidate has two points."""
        chosen = self.shown.id if self.shown else None
        lines = [
            plots.Line(
                number=self.number[c.id],
                name=self.name(c.id),
                points=tuple(sorted((p.train_rows, p.macro_f1) for p in c.curve)),
                recommended=c.id == chosen,
            )
            for c in self.candidates
            if len(c.curve) >= 2
        ]
        if not lines:
            return None
        ends = ", ".join(f"{one.name}: {self.formats.score(one.points[-1][1])}" for one in lines)
        titles = {"x_title": self.say("curve_x"), "y_title": "macro-F1", "words": self.say("forecast_label")}
        alt = self.say("curve_alt", summary=f"{ends}. {self.forecast}")
        forecast = self.result.forecast
        return lambda width: plots.curves(lines, forecast, width=width, alt=alt, **titles)

    @property
    def forecast(self) -> str:
        told, f = self.result.forecast, self.formats
        if told is None:
            return ""
        return self.say(
            "forecast",
            now=f.rows(told.rows_now),
            twice=f.rows(told.rows_twice),
            a=f.score(told.macro_f1_now),
            b=f.score(told.macro_f1_twice.value),
            interval=f.interval(told.macro_f1_twice),
        )
