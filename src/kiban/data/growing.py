"""A folder of files that grow, which a killed process leaves in a state that the next one goes on from."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from kiban.errors import ConfigError, DatasetError, FormatError, KibanError, LimitError
from kiban.files import exclusive, read_json, sync, write_manifest

NOTE, LOCK = ".note.json", ".lock"


class Growing:
    """Files that only grow. state is what the last commit was told; the files are as they were then."""

    def __init__(self, path: Path, purpose: Mapping[str, Any]) -> None:
        self.path, self._purpose = path, json.loads(json.dumps(purpose))
        self._handles: dict[str, BinaryIO] = {}
        self.state, self._sizes = self._recovered()
        self.manifest: dict[str, Any] = {}

    def _recovered(self) -> tuple[dict[str, Any], dict[str, int]]:
        """The state of the last commit, if it had the same purpose; what was written after it is cut off."""
        state, sizes = dict[str, Any](), dict[str, int]()
        with contextlib.suppress(FormatError, KeyError, TypeError):
            note = read_json(self.path / NOTE)
            if note["purpose"] == self._purpose:
                state, sizes = note["state"], note["sizes"]
        files = {p.relative_to(self.path).as_posix(): p for p in self.path.rglob("*") if p.is_file() and p.name != LOCK}
        if any(name not in files or files[name].stat().st_size < size for name, size in sizes.items()):
            state, sizes = {}, {}
        for name, path in files.items():
            if name not in sizes and not (name == NOTE and state):
                path.unlink()
            elif name in sizes:
                os.truncate(path, sizes[name])
        return state, sizes

    def append(self, name: str, data: bytes) -> None:
        """Write at the end of a file."""
        if name not in self._handles:
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handles[name] = path.open("ab")
        self._handles[name].write(data)
        self._sizes[name] = self._sizes.get(name, 0) + len(data)

    def remove(self, name: str) -> None:
        """Delete a file that is needed no more."""
        if name in self._handles:
            self._handles.pop(name).close()
        self._sizes.pop(name, None)
        (self.path / name).unlink(missing_ok=True)

    def flush(self) -> None:
        """Let readers see what was appended."""
        for handle in self._handles.values():
            handle.flush()

    def commit(self, state: Mapping[str, Any]) -> None:
        """From here the next process goes on, if this one ends."""
        for handle in self._handles.values():
            handle.flush()
            os.fsync(handle.fileno())
        self.state = dict(state)
        values = {"purpose": self._purpose, "state": self.state, "sizes": self._sizes}
        new = self.path / (NOTE + ".tmp")
        new.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
        sync(new)
        new.replace(self.path / NOTE)
        sync(self.path)

    def close(self) -> None:
        while self._handles:
            self._handles.popitem()[1].close()


@contextlib.contextmanager
def growing_folder(path: Path, purpose: Mapping[str, Any]) -> Iterator[Growing]:
    """A folder that appears at path, complete and with a manifest, when the block ends without an error.

    purpose: all that decides what is written; work that was begun for another purpose is thrown away. What an interrupted
    process has committed stays in a hidden folder beside path. Raises KibanError if something is at path already, if
    another process is writing there, or if the system cannot write it.
    """
    work = path.parent / f".{path.name}.unfinished"
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise KibanError(path, why="exists already", hint="give a new folder; kiban never overwrites data")
        work.mkdir(parents=True, exist_ok=True)
        busy = KibanError(path, why="is being written by another process")
        with exclusive(work / LOCK, error=busy):
            growing = Growing(work, purpose)
            try:
                yield growing
            finally:
                growing.close()
            (work / NOTE).unlink(missing_ok=True)
            (work / LOCK).unlink()  # still held; the manifest must not list it
            write_manifest(work, growing.manifest)
        for file in [work, *work.rglob("*")]:
            sync(file)
        if path.exists():
            path.rmdir()
        work.rename(path)
        sync(path.parent)
    except (DatasetError, FormatError, LimitError, ConfigError):
        shutil.rmtree(work, ignore_errors=True)  # the same would happen again
        raise
    except OSError as error:
        hint = "free some disk space and run it again: it goes on" if error.errno == errno.ENOSPC else ""
        raise KibanError(path, why=f"could not be written: {error.strerror or error}", hint=hint) from error
