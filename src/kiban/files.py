"""Folders of files: written whole or not at all, with a sha256 for every file, and read without leaving the folder."""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import os
import shutil
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from kiban.errors import FormatError, IntegrityError, KibanError, LimitError

MAX_JSON_BYTES = 256 * 2**20
MANIFEST = "kiban.json"
# Names by which a file of a model folder is opened; one that the manifest does not know could stand in for one it does.
OPENED = (
    *(".safetensors", ".index.json", ".jinja", ".model", "tokenizer.json", "tokenizer_config.json", "vocab.txt"),
    *("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"),
)


def read_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object. Raises FormatError for anything else, LimitError if the file is larger than max_bytes."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise FormatError(path, why="is not a regular file")  # a pipe or a device might never end
        if facts.st_size > max_bytes:
            raise LimitError(path, why=f"is larger than {max_bytes} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise FormatError(path, why=f"cannot be read: {error.strerror}") from error
    return parse_json(data, path)


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """A JSON object from bytes; a repeated key is refused, since readers differ on which one counts."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise FormatError(path, field=twice, why="stands twice in the JSON")
        return result

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except UnicodeDecodeError as error:
        raise FormatError(path, offset=error.start, why="is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise FormatError(path, line=error.lineno, why=f"is not JSON: {error.msg}") from error
    except ValueError as error:  # Python bounds the digits of a whole number
        raise FormatError(path, why="holds a number of too many digits") from error
    except RecursionError:
        raise FormatError(path, why="is nested too deeply") from None
    if not isinstance(value, dict):
        raise FormatError(path, why="is not a JSON object")
    return value


def inside(folder: Path, name: str, *, source: Path) -> Path:
    """The path of a member of folder. Raises FormatError if the name, or a symbolic link, leads out of it."""
    parts = PurePosixPath(name)
    windows = "\\" in name or PureWindowsPath(name).drive
    if not name or parts.is_absolute() or ".." in parts.parts or "\0" in name or windows:
        raise FormatError(source, field=name, why="leads out of the folder")
    path, home = folder / parts, folder.resolve()
    try:
        path.is_file()  # complains of a name that the system cannot hold, as resolve does of a loop of links
        target = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise FormatError(source, field=name, why="cannot be the name of a file") from error
    # A cache of the hub links its files from a sibling folder of blobs, which is as much its own.
    if not any(target.is_relative_to(place) for place in (home, home.parent.parent / "blobs")):
        raise FormatError(source, field=name, why="is a link that leads out of the folder")
    return path


@contextlib.contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """A new folder that appears at path, complete and flushed to disk, when the block ends without an error.

    Raises KibanError if something is there already, or if the system cannot write it.
    """
    staged = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise KibanError(path, why="exists already", hint="give a new folder; kiban never overwrites a model")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        yield staged
        for file in [staged, *staged.rglob("*")]:
            sync(file)
        if path.exists():
            path.rmdir()
        staged.rename(path)
        sync(path.parent)
    except OSError as error:
        hint = "free some disk space" if error.errno == errno.ENOSPC else ""
        raise KibanError(path, why=f"could not be written: {error.strerror or error}", hint=hint) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """A path to write to; what is written appears at path at once, flushed to disk, when the block ends without an error.

    A file that is there is replaced. A kill leaves the old one or the new one.
    """
    staged = path.with_name(f".{path.name}.tmp")
    try:
        yield staged
        sync(staged)
        staged.replace(path)
        sync(path.parent)
    finally:
        staged.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write or replace a file at once, in UTF-8."""
    with staged_file(path) as staged:
        staged.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def exclusive(path: Path, *, seconds: float = 0.0, error: KibanError) -> Iterator[None]:
    """Hold a lock file, alone among all processes; the system lets go when the process ends, however it ends.

    Raises error if another process still holds it after so many seconds.
    """
    deadline = time.monotonic() + seconds
    with path.open("w") as file:
        while not _try_lock(file.fileno()):
            if time.monotonic() >= deadline:
                raise error
            time.sleep(0.2)
        yield


def _try_lock(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders; its renames are journalled
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def run_folder(name: str, when: datetime.datetime | None = None) -> Path:
    """Where a run of this name goes that was given no folder: `runs/name-20260401-093000`."""
    return Path("runs") / f"{name}-{when or datetime.datetime.now():%Y%m%d-%H%M%S}"


def sha256_of(path: Path) -> str:
    """The sha256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write kiban.json with the size and sha256 of every other file of the folder."""
    from kiban import __version__

    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name != MANIFEST]
    files = {n: {"sha256": sha256_of(folder / n), "bytes": (folder / n).stat().st_size} for n in names}
    values = {"kiban_version": __version__, **facts, "files": files}
    (folder / MANIFEST).write_text(json.dumps(values, ensure_ascii=False, indent=1), encoding="utf-8")


def verify_folder(folder: Path) -> None:
    """Check every file against kiban.json, if it is there.

    Raises IntegrityError naming the file that differs, is missing, or would be opened without being in the manifest.
    """
    path = folder / MANIFEST
    if not path.exists():
        return
    files = read_json(path).get("files")
    if not isinstance(files, dict):
        raise FormatError(path, field="files", why="is missing")
    for name, facts in files.items():
        member = inside(folder, name, source=path)
        if not member.is_file():
            raise IntegrityError(member, why="is missing", hint="copy the folder again")
        try:
            same = isinstance(facts, dict) and sha256_of(member) == facts.get("sha256")
        except OSError as error:
            raise IntegrityError(member, why=f"cannot be read: {error.strerror}") from error
        if not same:
            raise IntegrityError(member, why="has changed since it was written", hint="copy the folder again")
    for member in sorted(folder.iterdir()):
        if member.name not in files and member.name.endswith(OPENED):
            raise IntegrityError(member, why=f"is not one of the files that {MANIFEST} lists", hint="remove it")
