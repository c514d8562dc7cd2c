"""Folders appear whole or not at all, whatever fails."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kiban.errors import FormatError, KibanError
from kiban.files import staged_folder, verify_folder
from kiban.weights.folder import write_folder


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "a" / "b") as staged:
        (staged / "file").write_text("x")
        _ = 1 / 0
    assert list((tmp_path / "a").iterdir()) == []


def test_the_folder_appears_only_at_the_end(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "b") as staged:
        (staged / "file").write_text("x")
        assert not (tmp_path / "b").exists()
        assert staged.parent == tmp_path and staged.name.startswith(".")  # a rename must not cross file systems
    assert (tmp_path / "b" / "file").read_text() == "x"
    assert not staged.exists()


def test_everything_is_flushed_to_disk_before_the_folder_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    flush = os.fsync

    def watch(handle: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        flush(handle)

    monkeypatch.setattr(os, "fsync", watch)
    with staged_folder(tmp_path / "a") as staged:
        (staged / "deep").mkdir()
        (staged / "deep" / "file").write_text("x")
        assert flushed == []
    members = [str(staged / name) for name in ("", "deep", "deep/file")]
    assert sorted(flushed[:-1]) == sorted(name.rstrip("/") for name in members)
    assert flushed[-1] == str(tmp_path)  # the rename itself, last


def test_an_empty_folder_may_be_there_and_a_full_one_or_a_file_may_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with staged_folder(tmp_path / "empty") as staged:
        (staged / "x").write_text("x")
    assert files_of(tmp_path / "empty") == {"x"}
    for name in ("full", "file", "empty"):
        with pytest.raises(KibanError, match="exists already"), staged_folder(tmp_path / name):
            raise AssertionError("the block must not run")
    assert (tmp_path / "full" / "mine").read_text() == (tmp_path / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "full", "file"}


def test_a_folder_that_fills_up_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    with pytest.raises(KibanError), staged_folder(tmp_path / "a"):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "mine").write_text("mine")
    assert files_of(tmp_path) == {"a/mine"}


@pytest.mark.parametrize("name", ["file/model", "x" * 300, "file/deep/er"])
def test_a_place_that_cannot_be_written_is_our_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(KibanError, match="could not be written") as caught:
        write_folder(tmp_path / name, tensors={}, config={}, files={}, manifest={})
    assert "disk" not in str(caught.value)
    assert files_of(tmp_path) == {"file"}


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a\\b", "", "a/../../x"])
def test_a_file_that_would_lie_outside_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match="leads out"):
        write_folder(tmp_path / "run" / "a", tensors={}, config={}, files={name: b"x"}, manifest={})
    assert files_of(tmp_path) == set()


@contextlib.contextmanager
def room(size: int) -> Iterator[None]:
    """Files of this process cannot grow beyond size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("part", ["tensors", "config", "files"])
def test_a_disk_without_room_is_our_error_and_leaves_nothing_behind(tmp_path: Path, part: str) -> None:
    values: dict[str, Any] = {"tensors": {}, "config": {}, "files": {}}
    values[part] = {"tensors": {"a": torch.ones(2**18)}, "config": {"a": "x" * 2**20}, "files": {"a": b"x" * 2**20}}[
        part
    ]
    with room(2**19), pytest.raises(KibanError, match="could not be written"):
        write_folder(tmp_path / "run" / "a", **values, manifest={})
    assert list((tmp_path / "run").iterdir()) == []
    write_folder(tmp_path / "run" / "a", **values, manifest={})
    verify_folder(tmp_path / "run" / "a")


KEEP_WRITING = """
import itertools, sys
from pathlib import Path
from kiban.files import staged_folder, write_manifest
for number in itertools.count(int(sys.argv[2])):
    with staged_folder(Path(sys.argv[1]) / str(number)) as staged:
        for i in range(5):
            (staged / f"part-{i}").write_bytes(bytes([number % 256]) * 50_000)
        write_manifest(staged, {})
    print(number, flush=True)
"""


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_every_folder_that_is_there_after_a_kill_is_whole(tmp_path: Path, kills: int) -> None:
    done = -1
    for number in range(kills):
        command = [sys.executable, "-c", KEEP_WRITING, str(tmp_path), str(done + 1000)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            done = int(child.stdout.readline())
            time.sleep(0.0007 * (number * 17 % 20))
            child.kill()
            done = max([done, *map(int, child.stdout.read().split())])
        found = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
        assert str(done) in {path.name for path in found}
        for path in found:
            verify_folder(path)
            assert len(files_of(path)) == 6
