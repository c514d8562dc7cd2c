"""Look at a labelled table: which rows can be used, what the classes are, and what a careful person would notice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, Literal

import numpy as np

from kiban.adopt.duplicates import groups, normal_form
from kiban.adopt.noise import doubtful_rows
from kiban.adopt.result import Finding, Profile
from kiban.data.tables import Table
from kiban.errors import DatasetError
from kiban.inputs.japanese import detect_language

MIN_ROWS = 30
MIN_CLASS_ROWS = 3
MAX_CLASSES = 200
NOISE_LIMIT = 5000  # rows looked at for wrong labels
SCALARS = (str, int, float, Decimal, date, time, timedelta)  # what a cell can hold
TEXT_NAMES = (
    "text",
    "本文",
    "テキスト",
    "内容",
    "body",
    "message",
    "説明",
    "description",
    "review",
    "content",
    "sentence",
)
LABEL_NAMES = (
    "label",
    "区分",
    "ラベル",
    "分類",
    "カテゴリ",
    "category",
    "class",
    "target",
    "sentiment",
    "種別",
    "section",
)


@dataclass(frozen=True)
class Looked:
    """The usable rows and what was found. targets index labels; lines are places in the table as `Table.lines` has them;
    groups are the numbers of the clusters of near-duplicates (`duplicates.groups`)."""

    texts: list[str]
    targets: list[int]
    lines: list[int]
    groups: list[int]
    labels: list[str]
    profile: Profile


def guess_columns(table: Table, *, text: str | None = None, label: str | None = None) -> tuple[str, str]:
    """The text and the label column, as given or by their names, else by their contents.

    Raises DatasetError that lists the columns if it is not clear.
    """
    for name in (text, label):
        if name is not None:
            table.column(name)
    text = text or _named(table, TEXT_NAMES, label) or _longest(table, label)
    label = label or _named(table, LABEL_NAMES, text) or _few_values(table, text)
    if text is None or label is None:
        missing = "text" if text is None else "label"
        raise DatasetError(
            table.source,
            why=f"the {missing} column is not clear",
            hint=f"--{missing} one of {', '.join(table.columns)}",
        )
    if text == label:
        raise DatasetError(table.source, field=text, why="is both the text and the label column")
    return text, label


def _named(table: Table, names: Sequence[str], other: str | None) -> str | None:
    found = [c for c in table.columns if c.lower() in names and c != other]
    return found[0] if len(found) == 1 else None


def _longest(table: Table, label: str | None) -> str | None:
    """The only column of long texts."""
    sizes = {c: np.mean([len(str(v or "")) for v in table.column(c)[:500]]) for c in table.columns if c != label}
    ranked = sorted(sizes, key=lambda c: -sizes[c])
    clear = ranked and sizes[ranked[0]] >= 15 and (len(ranked) < 2 or sizes[ranked[0]] > 2 * sizes[ranked[1]])
    return ranked[0] if clear else None


def _few_values(table: Table, text: str | None) -> str | None:
    """The only column whose values repeat as those of a label do."""
    limit = min(50, max(2, len(table.rows) // 10))
    found = [c for c in table.columns if c != text and 2 <= len({str(v) for v in table.column(c)}) <= limit]
    return found[0] if len(found) == 1 else None


def profile(table: Table, text_column: str, label_column: str, *, seed: int = 0) -> Looked:
    """The usable rows of a table and its profile. Raises DatasetError if no classifier can be made of it."""
    findings: list[Finding] = []
    texts, names, lines = _usable(table, text_column, label_column, findings)
    _check_size(table, label_column, texts, names)
    texts, names, lines = _drop_rare(texts, names, lines, findings)
    if len(texts) < MIN_ROWS:
        why = f"only {len(texts)} rows have a label that {MIN_CLASS_ROWS} rows or more share"
        raise DatasetError(table.source, field=label_column, why=why, hint=f"label at least {MIN_ROWS} rows")
    counts = Counter(names)
    labels = sorted(counts)
    if len(labels) < 2:
        raise DatasetError(table.source, field=label_column, why="has a single class with enough rows", hint="add rows")
    targets = [labels.index(name) for name in names]
    lengths = np.asarray([len(text) for text in texts])
    language = _language(texts, findings)
    if table.encoding not in ("utf-8", "utf-8-sig", "unicode", "parquet"):
        findings.append(_info("encoding", encoding=table.encoding))
    if table.bad_rows:
        findings.append(_warning("bad_rows", rows=len(table.bad_rows), line=table.bad_rows[0].line))
    _label_findings(counts, findings)
    numbers = groups(texts)
    _duplicate_findings(texts, numbers, targets, lines, findings)
    _text_findings(texts, targets, labels, lengths, findings)
    _noise_findings(texts, targets, labels, lines, language, seed, findings)
    return Looked(
        texts,
        targets,
        lines,
        numbers,
        labels,
        Profile(
            rows=len(table.rows),
            usable_rows=len(texts),
            language=language,
            label_counts=dict(counts.most_common()),
            length_p50=int(np.percentile(lengths, 50)),
            length_p95=int(np.percentile(lengths, 95)),
            findings=tuple(findings),
        ),
    )


def _info(code: str, **values: Any) -> Finding:
    return Finding(code=code, severity="info", values=values)


def _warning(code: str, **values: Any) -> Finding:
    return Finding(code=code, severity="warning", values=values)


def _usable(
    table: Table, text_column: str, label_column: str, findings: list[Finding]
) -> tuple[list[str], list[str], list[int]]:
    texts, names, lines = [], [], []
    empty_text = empty_label = 0
    pairs = zip(table.column(text_column), table.column(label_column), strict=True)
    for line, (text, name) in zip(table.lines, pairs, strict=True):
        text, name = _cell(table, line, text_column, text), _cell(table, line, label_column, name)
        if not text:
            empty_text += 1
        elif not name:
            empty_label += 1
        else:
            texts.append(text)
            names.append(name)
            lines.append(line)
    if empty_text:
        findings.append(_warning("empty_text", rows=empty_text))
    if empty_label:
        findings.append(_warning("empty_label", rows=empty_label))
    return texts, names, lines


def _cell(table: Table, line: int, column: str, value: Any) -> str:
    """The text of a cell; empty for a missing value. Raises DatasetError if the cell holds several values."""
    if value is None or value != value:  # NaN is what a frame has for "missing"
        return ""
    if not isinstance(value, SCALARS):
        why = f"is a {type(value).__name__}, not a text or a number"
        raise DatasetError(table.source, line=line, field=column, why=why, hint="write one value a row, as a text")
    return str(value).strip()


def _check_size(table: Table, label_column: str, texts: list[str], names: list[str]) -> None:
    if len(texts) < MIN_ROWS:
        why = f"only {len(texts)} rows have both text and label"
        raise DatasetError(table.source, why=why, hint=f"label at least {MIN_ROWS} rows")
    classes = len(set(names))
    if classes > MAX_CLASSES or classes > len(names) / 2:
        why = f"has {classes} different values in {len(names)} rows, too many for classes"
        raise DatasetError(table.source, field=label_column, why=why, hint="choose the label column with --label")
    if classes < 2:
        raise DatasetError(table.source, field=label_column, why="has one value only; there is nothing to tell apart")


def _drop_rare(
    texts: list[str], names: list[str], lines: list[int], findings: list[Finding]
) -> tuple[list[str], list[str], list[int]]:
    """A class needs a row in each part of the split; rarer ones are left out."""
    rare = sorted(name for name, count in Counter(names).items() if count < MIN_CLASS_ROWS)
    if not rare:
        return texts, names, lines
    kept = [i for i, name in enumerate(names) if name not in rare]
    findings.append(
        _warning("rare_classes", classes=rare[:10], count=len(rare), rows=len(names) - len(kept), least=MIN_CLASS_ROWS)
    )
    return [texts[i] for i in kept], [names[i] for i in kept], [lines[i] for i in kept]


def _language(texts: Sequence[str], findings: list[Finding]) -> Literal["ja", "en", "mixed", "other"]:
    counts = Counter(detect_language(text) for text in texts[:5000])
    total = sum(counts.values())
    top, rows = counts.most_common(1)[0]
    if rows >= 0.9 * total:
        return top
    shares = {name: round(100 * n / total) for name, n in counts.most_common()}
    findings.append(
        _info("mixed_languages", ja=shares.get("ja", 0), en=shares.get("en", 0), other=shares.get("other", 0))
    )
    return "mixed" if counts["ja"] + counts["en"] >= 0.7 * total else "other"


def _label_findings(counts: Counter[str], findings: list[Finding]) -> None:
    forms: dict[str, list[str]] = {}
    for name in counts:
        forms.setdefault(normal_form(name), []).append(name)
    for variants in forms.values():
        if len(variants) > 1:
            findings.append(_warning("label_variants", labels=sorted(variants)))
    (most, high), (least, low) = counts.most_common()[0], counts.most_common()[-1]
    if high >= 10 * low:
        findings.append(_warning("imbalance", most=most, most_rows=high, least=least, least_rows=low))
    if all(name.replace(".", "", 1).lstrip("-").isdigit() for name in counts) and len(counts) > 10:
        findings.append(_warning("numeric_labels", classes=len(counts)))


def _duplicate_findings(
    texts: Sequence[str],
    numbers: Sequence[int],
    targets: Sequence[int],
    lines: Sequence[int],
    findings: list[Finding],
) -> None:
    exact = len(texts) - len({normal_form(text) for text in texts})
    near = len(texts) - len(set(numbers)) - exact
    if exact:
        findings.append(_warning("exact_duplicates", rows=exact))
    if near:
        findings.append(_info("near_duplicates", rows=near))
    seen: dict[int, set[int]] = {}
    places: dict[int, list[int]] = {}
    for number, target, line in zip(numbers, targets, lines, strict=True):
        seen.setdefault(number, set()).add(target)
        places.setdefault(number, []).append(line)
    conflicts = [number for number, found in seen.items() if len(found) > 1]
    if conflicts:
        findings.append(_warning("conflicting_labels", groups=len(conflicts), lines=places[conflicts[0]][:4]))


def _text_findings(
    texts: Sequence[str], targets: Sequence[int], labels: Sequence[str], lengths: Any, findings: list[Finding]
) -> None:
    long = int((lengths > 2000).sum())
    if long:
        findings.append(_info("long_texts", rows=long, longest=int(lengths.max())))
    told = sum(
        len(labels[t]) >= 2 and labels[t].lower() in text.lower() for text, t in zip(texts, targets, strict=True)
    )
    if told > 0.3 * len(texts):
        findings.append(_warning("label_in_text", percent=round(100 * told / len(texts))))


def _noise_findings(
    texts: list[str],
    targets: list[int],
    labels: list[str],
    lines: list[int],
    language: str,
    seed: int,
    findings: list[Finding],
) -> None:
    if len(texts) > NOISE_LIMIT:
        return
    doubts = doubtful_rows(texts, targets, language=language, seed=seed)
    if len(doubts) >= max(3, 0.01 * len(texts)):
        examples = [
            {"line": lines[d.row], "label": labels[targets[d.row]], "rather": labels[d.rather]} for d in doubts[:3]
        ]
        percent = round(100 * len(doubts) / len(texts), 1)
        findings.append(_warning("label_noise", rows=len(doubts), percent=percent, examples=examples))
