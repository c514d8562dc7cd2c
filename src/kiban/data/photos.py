"""Pictures with their classes: a folder with a folder for each class, or a table with a column of paths.

Every picture is decoded once, so that a broken one is told before anything is learned from the others; what is kept of it
tells whether two are the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kiban.config import Progress, silent
from kiban.data.tables import BadRow, OnBadRow, Table
from kiban.errors import DatasetError
from kiban.files import sha256_of
from kiban.inputs.image import read_image

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
FOREIGN = (".avif", ".heic", ".jxl", ".svg", ".tif", ".tiff")  # pictures that are not read
LOOKED_AT = 500  # values of a column, to tell whether it holds paths
THUMBNAIL, WAVES = 16, 8  # pixels of a side, and waves along a side that the hash compares


@dataclass(frozen=True, slots=True)
class Place:
    """Where a picture is said to be. name: as the table or folder has it; line counts from 1; why: what is wrong."""

    path: Path
    name: str
    label: str
    line: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Photo:
    """A picture that can be read, and what is compared of it.

    pixels: digest of its size and colours. waves: perceptual hash of 64 bits, of which like pictures share nearly all.
    thumbnail: (16, 16, 3) uint8, proportions not kept.
    """

    path: Path
    name: str
    label: str
    line: int
    width: int
    height: int
    pixels: bytes
    waves: int
    thumbnail: NDArray[np.uint8]


@dataclass(frozen=True)
class Photos:
    """The pictures that can be read, and the rows that are not among them. sha256: of all names, classes and files."""

    photos: list[Photo]
    bad_rows: tuple[BadRow, ...]
    sha256: str


def in_folder(folder: Path) -> list[Place]:
    """The pictures of a folder whose folders are the classes, sorted; folders within a class belong to it.

    Hidden files and what is no picture are passed over. Raises DatasetError if there is none.
    """
    found: list[Place] = []
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() in (*PICTURES, *FOREIGN):
            label, _, inner = name.partition("/")
            why = "" if inner else "lies beside the folders of the classes and not in one"
            found.append(Place(path, name, label if inner else "", len(found) + 1, why))
    if not found:
        raise DatasetError(folder, why="holds no pictures", hint=f"pictures end in {', '.join(PICTURES)}")
    if all(place.why for place in found):
        hint = "make a folder of each class, or give a table with a column of paths and a column of labels"
        raise DatasetError(folder, why="holds pictures, but no folders that are classes", hint=hint)
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """All files in order, hidden ones left out. Links to folders are followed at the top only: there they cannot loop."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path
            continue
        for parent, folders, files in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from (Path(parent, name) for name in sorted(files) if not name.startswith("."))


def in_table(table: Table, source: Path, image: str, label: str) -> list[Place]:
    """The pictures of a table's rows, those without a path or a label left out. Paths start from the table's folder."""
    found = []
    for line, path, said in zip(table.lines, table.column(image), table.column(label), strict=True):
        name, given = ("" if value is None else str(value).strip() for value in (path, said))
        if name and given:
            found.append(Place(source.parent / name, name, given, line))
    return found


def path_column(table: Table, given: str | None = None) -> str | None:
    """The column given, or else the only one, if its values end as the names of pictures do; None if none does."""
    names = [name for name in (table.columns if given is None else (given,)) if _holds_paths(table.column(name))]
    return names[0] if len(names) == 1 else None


def _holds_paths(values: Sequence[object]) -> bool:
    texts = [value.strip().lower() for value in values[:LOOKED_AT] if isinstance(value, str) and value.strip()]
    ends = sum(text.endswith((*PICTURES, *FOREIGN)) and "\n" not in text for text in texts)
    return ends > 0.9 * len(texts) > 0


def read_photos(
    places: Sequence[Place], source: Path, *, on_bad_row: OnBadRow = "stop", progress: Progress = silent
) -> Photos:
    """Decode every picture once. Raises DatasetError at the first that cannot be used, or leaves it out as a bad row."""
    photos, bad, digest = [], [], hashlib.sha256()
    for done, place in enumerate(places):
        progress("pictures", done, len(places))
        why, sha256 = place.why, ""
        if not why:
            try:
                photos.append(_photo(place))
                sha256 = sha256_of(place.path)
            except DatasetError as error:
                why = error.why
        if why:
            if on_bad_row == "stop":
                hint = "mend it or leave it out, or pass --on-bad-row skip"
                line = None if source.is_dir() else place.line
                raise DatasetError(source, line=line, field=place.name, why=why, hint=hint)
            bad.append(BadRow(place.line, 0, why, place.name))
        digest.update(json.dumps([place.name, place.label, sha256]).encode())
    if not photos:
        raise DatasetError(source, why="holds no picture that can be used", hint=f"the first: {bad[0].why}")
    return Photos(photos, tuple(bad), digest.hexdigest())


def _photo(place: Place) -> Photo:
    image = read_image(place.path)
    pixels = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
    thumbnail = np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
    return Photo(
        place.path, place.name, place.label, place.line, image.width, image.height, pixels, _waves(image), thumbnail
    )


def _waves(image: Image.Image) -> int:
    """Which of the longest waves of a grey picture are above their median (Zauner 2010, section 3.2.1)."""
    from scipy.fft import dctn

    size = 4 * WAVES
    grey = np.asarray(image.resize((size, size), Image.Resampling.BOX).convert("L"), dtype=np.float32)
    low = dctn(grey, norm="ortho")[:WAVES, :WAVES].ravel()
    low[0] = 0.0  # the brightness
    bits: NDArray[np.uint8] = np.packbits(low > np.median(low))
    return int.from_bytes(bits.tobytes(), "big")
