"""Texts made uniform, and those that break a rule of quality left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kiban.data.growing import Growing, growing_folder
from kiban.data.personal import mask
from kiban.data.prepare import (
    DROPPED,
    SAMPLES,
    SHOWN,
    Block,
    Compression,
    Inputs,
    Means,
    Parts,
    Pass,
    add_counts,
    json_line,
    purpose,
    settings_of,
)
from kiban.data.quality import Document, Rules, broken_rule
from kiban.data.sources import KIND
from kiban.data.tidy import NormalForm, tidy


@dataclass
class Cleaned:
    """What has become of a block: the kept documents as JSON lines, and counts."""

    lines: bytes = b""
    kept: int = 0
    characters: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)  # documents that were kept
    language_characters: Counter[str] = field(default_factory=Counter)
    masked: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[str, bytes]] = field(default_factory=list)  # rule, JSON line


@dataclass(frozen=True)
class Cleaner:
    """The work on a block."""

    rules: Rules
    form: NormalForm

    def __call__(self, block: Block) -> Cleaned:
        result, lines = Cleaned(), list[bytes]()
        for id, raw in block:
            text = tidy(raw, self.form)
            if self.rules.personal_data == "mask":
                text, found = mask(text)
                result.masked.update(found)
            document = Document(text)
            rule = broken_rule(document, self.rules)
            if rule is not None:
                result.dropped[rule] += 1
                if result.dropped[rule] <= SAMPLES:
                    row = {"rule": rule, "id": id, "language": document.language, "text": text[:SHOWN]}
                    result.samples.append((rule, json_line(row)))
                continue
            lines.append(json_line({"id": id, "text": text}))
            result.kept += 1
            result.characters += len(text)
            result.languages[document.language] += 1
            result.language_characters[document.language] += len(text)
        result.lines = b"".join(lines)
        return result


def clean(
    inputs: Inputs,
    out: Path,
    *,
    rules: Rules | None = None,
    form: NormalForm = "NFC",
    compress: Compression = None,
    means: Means | None = None,
) -> dict[str, Any]:
    """Write the documents that break no rule, each in its tidy form; returns the manifest.

    Raises DatasetError for bad rows (unless they are skipped) and if nothing is left, KibanError if out exists.
    """
    rules = rules or Rules()
    settings = {"rules": settings_of(rules), "form": form, "compress": compress}
    with growing_folder(out, purpose("clean", inputs, settings)) as folder:
        stage = Pass("cleaning", folder, inputs, means or Means())
        totals, parts = stage.counts, Parts(folder, stage.counts, compress=compress)

        def handle(done: Cleaned) -> None:
            parts.append(done.lines)
            for name in ("kept", "characters"):
                totals[name] = totals.get(name, 0) + getattr(done, name)
            for name in ("languages", "language_characters", "masked"):
                add_counts(totals.setdefault(name, {}), getattr(done, name))
            _keep_samples(folder, totals.setdefault("dropped", {}), done)
            add_counts(totals["dropped"], done.dropped)

        stage.run(Cleaner(rules, form), handle)
        rows = stage.account(totals["kept"], totals["dropped"])
        languages = {
            code: {"documents": number, "characters": totals["language_characters"][code]}
            for code, number in sorted(totals["languages"].items(), key=lambda pair: (-pair[1], pair[0]))
        }
        facts = {"characters": totals["characters"], "languages": languages, "masked": totals["masked"]}
        folder.manifest = {"kind": KIND, "made_by": "clean", **rows, **facts, **inputs.facts(), "settings": settings}
    return folder.manifest


def _keep_samples(folder: Growing, before: dict[str, int], done: Cleaned) -> None:
    """Write the first dropped documents of each rule, for people to look at."""
    seen = Counter(before)
    for rule, line in done.samples:
        if seen[rule] < SAMPLES:
            seen[rule] += 1
            folder.append(DROPPED, line)
