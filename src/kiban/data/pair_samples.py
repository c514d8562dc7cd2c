"""Pictures whose captions lie beside them: folders of files, and WebDataset shards, which are such folders as .tar."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path, PurePosixPath

from kiban.data.encoding import MAX_LINE_BYTES, UNFIT
from kiban.data.pair_rows import LANGUAGE, Columns, Record, Stored, captions_in, label_in, said_of
from kiban.data.seen import SeenHashes, hash64
from kiban.errors import DatasetError, FormatError, KibanError
from kiban.files import inside, parse_json

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
FOREIGN = (".avif", ".bmp", ".gif", ".heic", ".jxl", ".svg", ".tif", ".tiff")  # pictures that are not read
TEXT = re.compile(rf"(?:({LANGUAGE})\.)?txt")  # txt, ja.txt
BLOCK = 512  # of a .tar
MAX_PARTS = 100  # of a sample of a shard

# Folders --------------------------------------------------------------------------------------------------------------


def folder_records(folder: Path) -> Iterator[Record]:
    """The pictures of a folder, sorted; the class is the name of the folder that a picture lies in, unless it is this one.

    cat.txt is the caption of cat.png, cat.ja.txt the one in Japanese.
    """
    shown = (f for f in folder.rglob("*") if not any(part.startswith(".") for part in f.relative_to(folder).parts))
    names = sorted(f.relative_to(folder).as_posix() for f in shown if f.suffix.lower() in (*PICTURES, *FOREIGN, ".txt"))
    texts = dict[tuple[str, str], list[str]]()
    for name in (n for n in names if n.lower().endswith(".txt")):
        stem, _, language = name[:-4].rpartition(".")
        if not stem or not re.fullmatch(LANGUAGE, language):
            stem, language = name[:-4], ""
        texts.setdefault((stem, language), []).append(name)
    beside: dict[str, dict[str, str]] = {}
    for (stem, language), (name, *_) in texts.items():
        beside.setdefault(stem, {})[language] = name
    for name in (n for n in names if not n.lower().endswith(".txt")):
        yield _beside(folder, name, beside.get(name.rpartition(".")[0], {}))


def _beside(folder: Path, name: str, texts: dict[str, str]) -> Record:
    """The record of a picture file and the texts beside it."""
    path, parent = folder / name, PurePosixPath(name).parent.name
    if path.suffix.lower() in FOREIGN:
        return Record(name, source=path, why="is not PNG, JPEG or WebP")
    if UNFIT.search(name):
        return Record(source=folder, why=f"{name!r} is not a name in UTF-8")
    try:
        for member in (name, *texts.values()):
            inside(folder, member, source=folder)
    except FormatError as error:
        return Record(name, source=path, why=error.why)
    if not path.is_file():
        return Record(name, source=path, why="is not a file")
    captions: dict[str, tuple[str, ...]] = {}
    for language, text in texts.items():
        try:
            with (folder / text).open("rb") as file:
                data = file.read(MAX_LINE_BYTES + 1)
        except OSError as error:
            return Record(name, source=folder / text, why=f"cannot be read: {error.strerror}")
        part, why = _caption(data, language)
        if why:
            return Record(name, source=folder / text, why=why)
        captions |= part
    return Record(name, path, captions, parent or None, source=path)


def _caption(data: bytes, language: str) -> tuple[dict[str, tuple[str, ...]], str]:
    """(captions, what is wrong) of a text file, which is one caption."""
    if len(data) > MAX_LINE_BYTES:
        return {}, f"the text is longer than {MAX_LINE_BYTES // 2**20} MiB"
    try:
        return captions_in(" ".join(data.decode("utf-8-sig").split()), language)
    except UnicodeDecodeError:
        return {}, "is not UTF-8"


# Shards ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """A member of a shard: 000.ja.txt has the key 000 and the kind ja.txt. data is kept of small kinds only."""

    key: str
    kind: str
    stored: Stored
    data: bytes = b""
    why: str = ""


@dataclass
class _Sample:
    """The parts of a sample by kind."""

    pictures: list[_Part] = field(default_factory=list)
    captions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    values: dict[str, object] = field(default_factory=dict)
    label: str | None = None
    kinds: set[str] = field(default_factory=set)
    why: str = ""


def tar_records(path: Path, columns: Columns) -> Iterator[Record]:
    """The samples of a shard: neighbours with one key, such as 000.jpg, 000.txt, 000.ja.txt, 000.json and 000.cls.

    Links, devices, sparse members and names that lead out of the folder are bad rows. Raises DatasetError if the shard is
    damaged: what follows is lost.
    """
    seen = SeenHashes()
    for key, group in groupby(_members(path), key=lambda part: part.key):
        first, sample = None, _Sample()
        for part in group:
            first = first or part
            _add(sample, part, path)
        assert first is not None
        place = {"offset": first.stored.offset, "raw": key.encode("utf-8", "backslashreplace").decode()}
        if not sample.why and not seen.add(hash64(key)):
            sample.why = f"{key!r}: its parts don't stand side by side, or it is there twice"
        if not sample.why and len(sample.pictures) != 1:
            found = ", ".join(sorted(sample.kinds))
            sample.why = f"{key!r} has {len(sample.pictures) or 'no'} pictures, not one ({found})"
        if sample.why:
            yield Record(why=sample.why, **place)
            continue
        captions, label, why = said_of(sample.values, columns)
        known = {*columns.captions_of(list(sample.values)), columns.label_of(list(sample.values))}
        row = {name: value for name, value in sample.values.items() if name not in known}
        # img2dataset repeats the text in the JSON.
        captions, label = sample.captions or captions, sample.label if sample.label is not None else label
        picture = sample.pictures[0]
        yield Record(f"{key}.{picture.kind}", picture.stored, captions, label, row, why=why, **place)


def _add(sample: _Sample, part: _Part, path: Path) -> None:
    """Put a part where it belongs; what is wrong with it is wrong with the sample."""
    name = f"{part.key}.{part.kind}"
    if part.kind in sample.kinds and not part.why:
        sample.why = sample.why or f"{name!r} stands twice"
        return
    if len(sample.kinds) == MAX_PARTS:
        sample.why = sample.why or f"{part.key!r} has more than {MAX_PARTS} parts"
        return
    sample.kinds.add(part.kind)
    text, why = TEXT.fullmatch(part.kind), part.why
    if why:
        pass
    elif f".{part.kind}" in PICTURES:
        sample.pictures.append(part)
    elif text:
        found, why = _caption(part.data, text[1] or "")
        sample.captions |= found
    elif part.kind == "json":
        try:
            sample.values = parse_json(part.data, path)
        except KibanError as error:
            why = error.why
    elif part.kind == "cls":
        sample.label, why = label_in(part.data.decode("utf-8", "replace").strip())
    sample.why = sample.why or (f"{name!r} {why}" if why else "")


def _members(path: Path) -> Iterator[_Part]:
    """The regular files of a .tar, and what is wrong with other members; in a stream, which cannot lead backwards."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r|") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # the index of all members, which grows
                hidden = PurePosixPath(member.name).name.startswith(".") and "\\" not in member.name
                if not member.isdir() and not hidden:
                    yield _part(path, archive, member, size)
                if archive.offset > size + BLOCK:  # to go there tarfile would read the end over and over
                    raise DatasetError(path, offset=member.offset, why="is cut off", hint="copy it again")
            end = archive.offset
        with path.open("rb") as file:
            file.seek(end)
            if file.read(BLOCK).strip(b"\0"):  # tarfile takes a header that it cannot read for the end
                raise DatasetError(path, offset=end, why="is damaged", hint="copy it again")
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
        hint = "decompress it, if it is a .tar.gz; else copy it again"
        raise DatasetError(path, why=f"is not a readable .tar file: {error}", hint=hint) from error


def _part(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, size: int) -> _Part:
    name, place = PurePosixPath(member.name), Stored(path, member.offset_data, member.size)
    base, _, kind = name.name.partition(".")
    key, kind = (name.parent / base).as_posix(), kind.lower()
    if UNFIT.search(member.name):
        return _Part(ascii(key), ascii(kind), place, why="is not a name in UTF-8")
    if name.is_absolute() or ".." in name.parts or "\\" in member.name:
        return _Part(key, kind, place, why="leads out of the folder")
    if not member.isreg() or member.issparse():
        return _Part(key, kind, place, why="is a link or a special file")
    if member.size < 0 or place.offset + member.size > size:
        return _Part(key, kind, place, why="is cut off: the shard is damaged")
    if not (TEXT.fullmatch(kind) or kind in ("json", "cls")):
        return _Part(key, kind, place)
    if member.size > MAX_LINE_BYTES:
        return _Part(key, kind, place, why=f"is larger than {MAX_LINE_BYTES // 2**20} MiB")
    handle = archive.extractfile(member)
    assert handle is not None, "a regular file"
    return _Part(key, kind, place, handle.read())
