"""Pictures with captions or classes, one after the other, from the layouts that they come in; nothing is decoded here.

Read are: a folder with metadata.jsonl or captions.jsonl (Hugging Face's imagefolder); JSONL, CSV and Parquet tables of
paths, Parquet also of bytes; WebDataset shards (.tar); a folder of pictures with a text beside each (cat.png, cat.txt,
cat.ja.txt); and a folder per class. Captions are texts by language: "caption" may be a text, a list of texts, or a
mapping from language to either; the language of a bare text is "".
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kiban.data.bad_rows import BadRows
from kiban.data.pair_rows import Columns, Record, Stored, table_records
from kiban.data.pair_samples import FOREIGN, PICTURES, folder_records, tar_records
from kiban.data.tables import OnBadRow
from kiban.errors import DatasetError, FormatError, LimitError
from kiban.files import inside

MAX_IMAGE_BYTES = 64 * 2**20  # of an encoded picture
METADATA = ("metadata.jsonl", "captions.jsonl", "metadata.csv", "metadata.parquet")
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
SHARD = ".tar"


@dataclass(frozen=True, slots=True)
class Pair:
    """An encoded picture and what is said of it. Either captions or label is there.

    name: the picture's within its folder, shard or table. captions: language -> texts, the main one first.
    row: the other columns. source, line and offset say where the row stands, as an error would.
    """

    name: str
    image: Path | Stored | bytes
    captions: Mapping[str, tuple[str, ...]]
    label: str | None
    source: Path
    line: int | None = None
    offset: int | None = None
    row: Mapping[str, Any] = field(default_factory=dict)

    def content(self) -> bytes:
        """The bytes of the picture's file. Raises DatasetError if it cannot be read, LimitError if it is too large."""
        if isinstance(self.image, bytes):
            return self.image
        place = self.image if isinstance(self.image, Stored) else Stored(self.image, 0, -1)
        try:
            with place.path.open("rb") as file:
                file.seek(place.offset)
                data = file.read(MAX_IMAGE_BYTES + 1 if place.size < 0 else place.size)
        except OSError as error:
            raise DatasetError(place.path, why=f"cannot be read: {error.strerror}") from error
        if len(data) > MAX_IMAGE_BYTES:
            raise LimitError(place.path, why=f"the picture is larger than {MAX_IMAGE_BYTES // 2**20} MiB")
        if len(data) < place.size:
            raise DatasetError(place.path, offset=place.offset, why="has been cut off since it was opened")
        return data


def choose_caption(
    captions: Mapping[str, Sequence[str]], *, seed: int, epoch: int, row: int, languages: Sequence[str] = ()
) -> tuple[str, str]:
    """(language, caption) that the row shows in this epoch: a function of the arguments alone, so that runs resume exactly.

    Uniform over the languages asked for that the pair has (all, if none is named), then over the language's captions.
    Raises DatasetError if it has none of them.
    """
    known = [name for name in (languages or sorted(captions)) if captions.get(name)]
    if not known:
        has = ", ".join(name or "captions without a language" for name in sorted(captions)) or "no caption"
        raise DatasetError(f"pair {row}", why=f"has no caption in {', '.join(languages) or 'any language'}, but {has}")
    digest = hashlib.blake2b(f"{seed}/{epoch}/{row}".encode(), digest_size=16).digest()
    language = known[int.from_bytes(digest[:8], "little") % len(known)]
    texts = captions[language]
    return language, texts[int.from_bytes(digest[8:], "little") % len(texts)]


def read_pairs(
    path: Path,
    *,
    columns: Columns | None = None,
    root: Path | None = None,
    on_bad_row: OnBadRow = "stop",
    quarantine: Path | None = None,
) -> Iterator[Pair]:
    """The pairs of a file or folder; see PairReader. Raises DatasetError at once if there is none to be had."""
    pairs = iter(PairReader(path, columns=columns, root=root, on_bad_row=on_bad_row, quarantine=quarantine))
    return itertools.chain([next(pairs)], pairs)


class PairReader(BadRows):
    """The pairs of a file or folder, in the same order each time. One row is in memory at a time, of CSV all.

    A pair of a shard or folder holds the place of its picture and not its bytes. columns: which columns of a table are
    meant, where their names don't tell. root: the folder that paths in a table start from and may not leave; if None,
    the table's own. on_bad_row="skip" leaves bad rows out, counts them and writes them to quarantine (JSON lines).
    Raises DatasetError if no file is read; iterating raises it at a bad row and if there is no usable one.
    """

    def __init__(
        self,
        path: Path,
        *,
        columns: Columns | None = None,
        root: Path | None = None,
        on_bad_row: OnBadRow = "stop",
        quarantine: Path | None = None,
    ) -> None:
        self.path, self.columns, self.root = Path(path), columns or Columns(), root
        super().__init__(on_bad_row, quarantine)
        self.files = _find(self.path)
        self.pairs = 0

    def __iter__(self) -> Iterator[Pair]:
        self.pairs = 0
        self._begin()
        for path in self.files or [self.path]:
            try:
                for record in self._records(path):
                    pair = self._pair(record, path)
                    if pair is not None:
                        self.pairs += 1
                        yield pair
            except DatasetError as error:
                # What has to do with the file as a whole; the rest of it is lost.
                if self.on_bad_row == "stop" or error.what != str(path):
                    raise
                self._bad(path, error.line, error.offset, error.why, "")
        if not self.pairs:
            hint = f"the first bad row: {self._first_bad}" if self._first_bad else ""
            raise DatasetError(self.path, why="holds no usable pair of picture and caption", hint=hint)

    def _records(self, path: Path) -> Iterator[Record]:
        if path.is_dir():
            return folder_records(path)
        if path.suffix.lower() == SHARD:
            return tar_records(path, self.columns)
        return table_records(path, self.columns)

    def _pair(self, record: Record, path: Path) -> Pair | None:
        """The pair of a record; a bad one is told, or counted."""
        image, why, at = record.image, record.why, record.source or path
        if not why and isinstance(image, str):
            home = self.root or path.parent
            try:
                image = inside(home, image, source=path)
                why = "" if image.is_file() else f"{record.name!r}: no such file in {home}"
            except FormatError as error:
                why = f"{record.name!r} {error.why}"
        if not why and isinstance(image, bytes | Stored):
            size = len(image) if isinstance(image, bytes) else image.size
            if not 0 < size <= MAX_IMAGE_BYTES:
                why = f"{record.name!r}: the picture has {size} bytes; 1 to {MAX_IMAGE_BYTES} are read"
        if not why and not record.captions and record.label is None:
            why = f"{record.name!r} has neither a caption nor a class"
        if why:
            self._bad(at, record.line, record.offset, why, record.raw)
            return None
        assert not isinstance(image, str)
        place = (at, record.line, record.offset)
        return Pair(record.name, image, record.captions, record.label, *place, record.row)


def _find(path: Path) -> list[Path]:
    """The tables or shards to read; none for a folder of pictures. Raises DatasetError if there is nothing to read."""
    if path.is_file():
        if path.suffix.lower() not in (SHARD, *TABLES):
            known = ", ".join((SHARD, *TABLES))
            why = f"has the unknown extension {path.suffix!r}"
            raise DatasetError(path, why=why, hint=f"read are {known}, and folders")
        return [path]
    if not path.is_dir():
        raise DatasetError(path, why="is not a file" if path.exists() else "no such file or folder")
    files = sorted(f for f in path.rglob("*") if not any(part.startswith(".") for part in f.relative_to(path).parts))
    kinds = (
        [f for f in files if f.name in METADATA],
        [f for f in files if f.suffix.lower() == SHARD],
        [f for f in files if f.suffix.lower() in TABLES],
    )
    found = next((kind for kind in kinds if kind), [])
    for first, second in itertools.pairwise(found):
        if first.name in METADATA and first.parent == second.parent:
            raise DatasetError(first.parent, why=f"holds {first.name} and {second.name}", hint="name the one to read")
    if not found and not any(f.suffix.lower() in (*PICTURES, *FOREIGN) for f in files):
        raise DatasetError(path, why="holds no picture, shard or table", hint=f"pictures are {', '.join(PICTURES)}")
    return found
