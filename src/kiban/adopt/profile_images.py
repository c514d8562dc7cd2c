"""Look at labelled pictures: what the classes are, and what a careful person would notice."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np

from kiban.adopt.classes import Looked, class_findings, conflicts, info, usable_classes, warning
from kiban.adopt.duplicate_images import photo_groups
from kiban.adopt.result import Finding, Profile
from kiban.data.photos import Photo, Photos
from kiban.inputs.japanese import detect_language

SMALL = 32  # pixels of the shorter side
LONG = 3.0  # times as long as wide, or more: models see the middle
COMMON_SIZE = 5  # pictures that share a size, so that it could tell the class


def profile_photos(found: Photos, source: str, column: str | None, *, rows: int) -> Looked:
    """The usable pictures and their profile.

    column: of the labels in the table, None for a folder. rows: how many there were. Raises DatasetError if no classifier
    can be made of them.
    """
    findings: list[Finding] = []
    if found.bad_rows:
        findings.append(warning("bad_pictures", rows=len(found.bad_rows), name=found.bad_rows[0].raw))
    empty = rows - len(found.photos) - len(found.bad_rows)
    if empty:
        findings.append(warning("empty_picture_rows", rows=empty))
    kept = usable_classes(source, column, [photo.label for photo in found.photos], findings)
    photos = [found.photos[i] for i in kept]
    counts = Counter(photo.label for photo in photos)
    labels = sorted(counts)
    targets = [labels.index(photo.label) for photo in photos]
    class_findings(counts, findings)
    numbers = photo_groups(photos)
    _duplicate_findings(photos, numbers, targets, findings)
    _size_findings(photos, counts, findings)
    sides = [min(photo.width, photo.height) for photo in photos]
    return Looked(
        inputs=[str(photo.path.absolute()) for photo in photos],
        names=[photo.name for photo in photos],
        targets=targets,
        lines=[photo.line for photo in photos],
        groups=numbers,
        labels=labels,
        profile=Profile(
            rows=rows,
            usable_rows=len(photos),
            language=_language(labels),
            label_counts=dict(counts.most_common()),
            length_p50=int(np.percentile(sides, 50)),
            length_p95=int(np.percentile(sides, 95)),
            findings=tuple(findings),
        ),
    )


def _language(labels: Sequence[str]) -> Literal["ja", "en", "mixed", "other"]:
    """Of the names of the classes: pictures speak none."""
    found = Counter(detect_language(label) for label in labels)
    if len(found) == 1:
        return found.most_common()[0][0]
    return "mixed" if found["ja"] + found["en"] >= 0.7 * len(labels) else "other"


def _duplicate_findings(
    photos: Sequence[Photo], numbers: Sequence[int], targets: Sequence[int], findings: list[Finding]
) -> None:
    exact = len(photos) - len({photo.pixels for photo in photos})
    near = len(photos) - len(set(numbers)) - exact
    if exact:
        findings.append(warning("exact_picture_copies", rows=exact))
    if near:
        findings.append(info("near_picture_copies", rows=near))
    if conflict := conflicts(numbers, targets, [photo.name for photo in photos]):
        findings.append(warning("conflicting_pictures", groups=conflict[0], names=conflict[1]))


def _size_findings(photos: Sequence[Photo], counts: Counter[str], findings: list[Finding]) -> None:
    small = sum(min(photo.width, photo.height) < SMALL for photo in photos)
    if small:
        findings.append(info("small_pictures", rows=small, side=SMALL))
    long = sum(max(photo.width, photo.height) >= LONG * min(photo.width, photo.height) for photo in photos)
    if long:
        findings.append(info("long_pictures", rows=long, times=int(LONG)))
    by_size: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    for photo in photos:
        by_size[photo.width, photo.height][photo.label] += 1
    told = sum(found.most_common(1)[0][1] for found in by_size.values() if found.total() >= COMMON_SIZE)
    largest = counts.most_common(1)[0][1]
    if told > 0.8 * len(photos) and told - largest > 0.2 * len(photos):
        findings.append(warning("class_by_size", percent=round(100 * told / len(photos))))
