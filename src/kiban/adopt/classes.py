"""What tables of texts and pictures share: the usable rows, and what is found in their classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kiban.adopt.duplicates import normal_form
from kiban.adopt.result import Finding, Profile
from kiban.errors import DatasetError

MIN_ROWS = 30
MIN_CLASS_ROWS = 3
MAX_CLASSES = 200


@dataclass(frozen=True, kw_only=True)
class Looked:
    """The usable rows and what was found.

    inputs: what models read, texts or paths; names: how the report calls them. targets index labels; lines are places in
    the table as `Table.lines` has them; groups are the numbers of clusters of near-duplicates.
    """

    inputs: list[str]
    names: list[str]
    targets: list[int]
    lines: list[int]
    groups: list[int]
    labels: list[str]
    profile: Profile


def info(code: str, **values: Any) -> Finding:
    """Something worth knowing."""
    return Finding(code=code, severity="info", values=values)


def warning(code: str, **values: Any) -> Finding:
    """Something that may spoil the outcome."""
    return Finding(code=code, severity="warning", values=values)


def usable_classes(source: str, column: str | None, names: Sequence[str], findings: list[Finding]) -> list[int]:
    """The places of the rows whose class is not too rare: it needs one in each part of the split.

    names: the class of each row. column: of the table. Raises DatasetError if no classifier can be made of them.
    """
    _check_size(source, column, names)
    rare = sorted(name for name, count in Counter(names).items() if count < MIN_CLASS_ROWS)
    kept = [i for i, name in enumerate(names) if name not in rare]
    if rare:
        rows = len(names) - len(kept)
        findings.append(warning("rare_classes", classes=rare[:10], count=len(rare), rows=rows, least=MIN_CLASS_ROWS))
    if len(kept) < MIN_ROWS:
        why = f"only {len(kept)} rows have a label that {MIN_CLASS_ROWS} rows or more share"
        raise DatasetError(source, field=column, why=why, hint=f"label at least {MIN_ROWS} rows")
    if len({names[i] for i in kept}) < 2:
        raise DatasetError(source, field=column, why="has a single class with enough rows", hint="add rows")
    return kept


def _check_size(source: str, column: str | None, names: Sequence[str]) -> None:
    if len(names) < MIN_ROWS:
        why = f"only {len(names)} rows have both {'text and label' if column else 'a picture and a class'}"
        raise DatasetError(source, why=why, hint=f"label at least {MIN_ROWS} rows")
    classes = len(set(names))
    if classes > MAX_CLASSES or classes > len(names) / 2:
        why = f"has {classes} different values in {len(names)} rows, too many for classes"
        raise DatasetError(source, field=column, why=why, hint="choose the label column with --label")
    if classes < 2:
        raise DatasetError(source, field=column, why="has one value only; there is nothing to tell apart")


def class_findings(counts: Counter[str], findings: list[Finding]) -> None:
    """Classes that differ in spelling only, are uneven, or are numbers."""
    forms: dict[str, list[str]] = {}
    for name in counts:
        forms.setdefault(normal_form(name), []).append(name)
    for variants in forms.values():
        if len(variants) > 1:
            findings.append(warning("label_variants", labels=sorted(variants)))
    (most, high), (least, low) = counts.most_common()[0], counts.most_common()[-1]
    if high >= 10 * low:
        findings.append(warning("imbalance", most=most, most_rows=high, least=least, least_rows=low))
    if all(name.replace(".", "", 1).lstrip("-").isdigit() for name in counts) and len(counts) > 10:
        findings.append(warning("numeric_labels", classes=len(counts)))


def conflicts(numbers: Sequence[int], targets: Sequence[int], marks: Sequence[Any]) -> tuple[int, list[Any]] | None:
    """How many groups hold rows of different classes, and the marks of some rows of the first; None if none does."""
    seen: dict[int, set[int]] = {}
    places: dict[int, list[Any]] = {}
    for number, target, mark in zip(numbers, targets, marks, strict=True):
        seen.setdefault(number, set()).add(target)
        places.setdefault(number, []).append(mark)
    found = [number for number, classes in seen.items() if len(classes) > 1]
    return (len(found), places[found[0]][:4]) if found else None
