"""Look at a labelled table: which rows can be used, what the classes are, and what a careful person would notice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, Literal

import numpy as np

from kiban.adopt.classes import Looked, class_findings, conflicts, info, usable_classes, warning
from kiban.adopt.duplicates import groups, normal_form
from kiban.adopt.noise import doubtful_rows
from kiban.adopt.result import Finding, Profile
from kiban.data.tables import Table
from kiban.errors import DatasetError
from kiban.inputs.japanese import detect_language

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


def guess_columns(table: Table, *, text: str | None = None, label: str | None = None) -> tuple[str, str]:
    """The text and the label column, as given or by their names, else by their contents.

    Raises DatasetError that lists the columns if it is not clear.
    """
    for name in (text, label):
        if name is not None:
            table.column(name)
    text = text or named_text(table, label) or _longest(table, label)
    if text is None:
        raise _unclear(table, "text")
    return text, guess_label(table, text, label)


def guess_label(table: Table, text: str, label: str | None = None) -> str:
    """The label column beside that of the texts. Raises DatasetError as above."""
    label = label or _named(table, LABEL_NAMES, text) or _few_values(table, text)
    if label is None:
        raise _unclear(table, "label")
    if text == label:
        raise DatasetError(table.source, field=text, why="is both the text and the label column")
    return label


def named_text(table: Table, label: str | None = None) -> str | None:
    """The only column with a name that columns of texts have."""
    return _named(table, TEXT_NAMES, label)


def _unclear(table: Table, missing: str) -> DatasetError:
    hint = f"--{missing} one of {', '.join(table.columns)}"
    return DatasetError(table.source, why=f"the {missing} column is not clear", hint=hint)


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
    kept = usable_classes(table.source, label_column, names, findings)
    texts, names, lines = [texts[i] for i in kept], [names[i] for i in kept], [lines[i] for i in kept]
    counts = Counter(names)
    labels = sorted(counts)
    targets = [labels.index(name) for name in names]
    lengths = np.asarray([len(text) for text in texts])
    language = _language(texts, findings)
    if table.encoding not in ("utf-8", "utf-8-sig", "unicode", "parquet"):
        findings.append(info("encoding", encoding=table.encoding))
    if table.bad_rows:
        findings.append(warning("bad_rows", rows=len(table.bad_rows), line=table.bad_rows[0].line))
    class_findings(counts, findings)
    numbers = groups(texts)
    _duplicate_findings(texts, numbers, targets, lines, findings)
    _text_findings(texts, targets, labels, lengths, findings)
    _noise_findings(texts, targets, labels, lines, language, seed, findings)
    return Looked(
        inputs=texts,
        names=texts,
        targets=targets,
        lines=lines,
        groups=numbers,
        labels=labels,
        profile=Profile(
            rows=len(table.rows),
            usable_rows=len(texts),
            language=language,
            label_counts=dict(counts.most_common()),
            length_p50=int(np.percentile(lengths, 50)),
            length_p95=int(np.percentile(lengths, 95)),
            findings=tuple(findings),
        ),
    )


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
        findings.append(warning("empty_text", rows=empty_text))
    if empty_label:
        findings.append(warning("empty_label", rows=empty_label))
    return texts, names, lines


def _cell(table: Table, line: int, column: str, value: Any) -> str:
    """The text of a cell; empty for a missing value. Raises DatasetError if the cell holds several values."""
    if value is None or value != value:  # NaN is what a frame has for "missing"
        return ""
    if not isinstance(value, SCALARS):
        why = f"is a {type(value).__name__}, not a text or a number"
        raise DatasetError(table.source, line=line, field=column, why=why, hint="write one value a row, as a text")
    return str(value).strip()


def _language(texts: Sequence[str], findings: list[Finding]) -> Literal["ja", "en", "mixed", "other"]:
    counts = Counter(detect_language(text) for text in texts[:5000])
    total = sum(counts.values())
    top, rows = counts.most_common(1)[0]
    if rows >= 0.9 * total:
        return top
    shares = {name: round(100 * n / total) for name, n in counts.most_common()}
    findings.append(
        info("mixed_languages", ja=shares.get("ja", 0), en=shares.get("en", 0), other=shares.get("other", 0))
    )
    return "mixed" if counts["ja"] + counts["en"] >= 0.7 * total else "other"


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
        findings.append(warning("exact_duplicates", rows=exact))
    if near:
        findings.append(info("near_duplicates", rows=near))
    if conflict := conflicts(numbers, targets, lines):
        findings.append(warning("conflicting_labels", groups=conflict[0], lines=conflict[1]))


def _text_findings(
    texts: Sequence[str], targets: Sequence[int], labels: Sequence[str], lengths: Any, findings: list[Finding]
) -> None:
    long = int((lengths > 2000).sum())
    if long:
        findings.append(info("long_texts", rows=long, longest=int(lengths.max())))
    told = sum(
        len(labels[t]) >= 2 and labels[t].lower() in text.lower() for text, t in zip(texts, targets, strict=True)
    )
    if told > 0.3 * len(texts):
        findings.append(warning("label_in_text", percent=round(100 * told / len(texts))))


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
        findings.append(warning("label_noise", rows=len(doubts), percent=percent, examples=examples))
