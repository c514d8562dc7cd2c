"""What a run can start from: a table of texts, or pictures in a folder or named by a table."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kiban.adopt.classes import Looked
from kiban.adopt.folder import sha256_of
from kiban.adopt.profile import guess_columns, guess_label, named_text, profile
from kiban.adopt.profile_images import profile_photos
from kiban.adopt.strategies.base import TaskKind
from kiban.config import Progress, silent
from kiban.data import photos
from kiban.data.tables import OnBadRow, Table, read_table
from kiban.errors import IntegrityError


@dataclass(frozen=True, kw_only=True)
class Source:
    """Labelled data, opened. text, label: the columns, "" of a folder. look(seed) profiles them."""

    name: str
    kind: TaskKind
    text: str
    label: str
    sha256: str
    look: Callable[[int], Looked]


def open_source(
    path: Path,
    *,
    text: str | None = None,
    label: str | None = None,
    on_bad_row: OnBadRow = "stop",
    quarantine: Path | None = None,
    sha256: str | None = None,
    progress: Progress = silent,
) -> Source:
    """Read a table or a folder of pictures. quarantine: where rows go that are left out.

    Raises DatasetError for data that cannot be read, IntegrityError if they have another sha256 than the one given.
    """
    if path.is_dir():
        source = _pictures(path, None, "", "", on_bad_row, quarantine, progress)
    else:
        table = read_table(path, on_bad_row=on_bad_row, quarantine=quarantine)
        for column in (text, label):
            if column:
                table.column(column)
        image = photos.path_column(table, text or named_text(table, label))
        if image is None:
            source = _texts(path, table, text or None, label or None)
        else:
            chosen = guess_label(table, image, label or None)
            source = _pictures(path, table, image, chosen, on_bad_row, quarantine, progress)
    if sha256 not in (None, source.sha256):
        what = "table" if source.kind == "single_label" else "set of pictures"
        raise IntegrityError(path, why=f"is not the {what} that the run began with", hint="start a new run")
    return source


def _texts(path: Path, table: Table, text: str | None, label: str | None) -> Source:
    text, label = guess_columns(table, text=text, label=label)

    def look(seed: int) -> Looked:
        return profile(table, text, label, seed=seed)

    facts = {"name": path.name, "text": text, "label": label, "sha256": sha256_of(path)}
    return Source(kind="single_label", look=look, **facts)


def _pictures(
    path: Path,
    table: Table | None,
    image: str,
    label: str,
    on_bad_row: OnBadRow,
    quarantine: Path | None,
    progress: Progress,
) -> Source:
    places = photos.in_folder(path) if table is None else photos.in_table(table, path, image, label)
    found = photos.read_photos(places, path, on_bad_row=on_bad_row, progress=progress)
    bad_rows = [*(table.bad_rows if table else ()), *found.bad_rows]
    if bad_rows and quarantine is not None:
        quarantine.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(bad.__dict__, ensure_ascii=False) + "\n" for bad in bad_rows]
        quarantine.write_text("".join(lines), encoding="utf-8")
    rows = len(places) if table is None else len(table.rows)

    def look(seed: int) -> Looked:
        return profile_photos(found, path.name, label or None, rows=rows)

    name = path.resolve().name
    return Source(name=name, kind="image", text=image, label=label, sha256=found.sha256, look=look)
