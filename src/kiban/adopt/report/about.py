"""The closing sections of the report: the data, how it was measured, what is missing, the machine."""

from __future__ import annotations

from kiban.adopt.findings import sentence
from kiban.adopt.report.formats import Formats, Lang
from kiban.adopt.report.names import strategy_name
from kiban.adopt.report.words import say
from kiban.adopt.result import Result
from kiban.adopt.strategies import BY_KIND


class About:
    """What the template reads for these sections."""

    def __init__(self, result: Result, lang: Lang) -> None:
        self.images = result.kind == "image"
        self.result, self.lang, self.formats = result, lang, Formats(lang, images=self.images)

    def say(self, key: str, **values: object) -> str:
        """A sentence of the report."""
        return say(key, self.lang, images=self.images, **values)

    @property
    def data_facts(self) -> str:
        p, f = self.result.profile, self.formats
        return self.say(
            "data_facts",
            rows=f.count(p.rows),
            usable=f.count(p.usable_rows),
            language=self.say(f"language_{p.language}"),
            p50=f.count(p.length_p50),
            p95=f.count(p.length_p95),
        )

    def findings(self) -> list[dict[str, str]]:
        """What the profile found, warnings first."""
        found = sorted(self.result.profile.findings, key=lambda finding: finding.severity != "warning")
        return [
            {"severity": one.severity, "word": self.say(one.severity), "text": sentence(one, self.lang)}
            for one in found
        ]

    def method(self) -> list[str]:
        """How it was measured, a paragraph each."""
        r, f = self.result, self.formats
        splits = {k: f.count(v) for k, v in (("train", r.splits.train), ("test", r.splits.test))}
        told = [self.say("method_splits", validation=f.count(r.splits.validation), **splits)]
        if r.splits.groups:
            told.append(self.say("method_groups", groups=f.count(r.splits.groups)))
        told += [self.say(key) for key in ("method_f1", "method_statistics", "method_speed")]
        told.append(self.say("method_cost", yen=f"{r.yen_per_hour:,g}", rate=f"{r.yen_per_usd:,g}"))
        told.append(self.say("method_time", time=f.seconds(r.total_seconds), seed=r.seed))
        return told

    def missing(self) -> list[str]:
        """What a reader might expect in the race and does not find."""
        japanese = self.result.profile.language in ("ja", "mixed")
        told = [self.say("missing_vision")] if self.images else [self.say("missing_japanese")] if japanese else []
        told.append(self.say("missing_hosted"))
        tried = {c.strategy for c in self.result.candidates}
        left = [strategy_name(one, self.lang) for one in BY_KIND[self.result.kind] if one not in tried]
        comma = "、" if self.lang == "ja" else ", "
        return [*told, self.say("missing_strategies", names=comma.join(left))] if left else told

    def environment(self) -> list[tuple[str, str]]:
        """The machine, known facts by their names in this language."""
        told = []
        for key, value in self.result.environment.items():
            known = {"kiban", "python", "torch", "system", "processor", "cores", "threads", "memory_bytes"}
            name = self.say(f"env_{key}") if key in known else key
            size = key.endswith("_bytes") and isinstance(value, int | float)
            told.append((name, self.formats.bytes(value) if size else str(value)))
        return told

    @property
    def footer(self) -> str:
        moment = self.formats.moment(self.result.created)
        return self.say("footer", version=self.result.kiban_version, created=moment)
