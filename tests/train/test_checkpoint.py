"""Checkpoints: damaged ones are passed over, failed writes leave the old one, temporary ones are not seen."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from kiban.errors import CheckpointError
from kiban.train import checkpoint


def save(folder: Path, step: int) -> None:
    checkpoint.save(folder, step, {"w": torch.full((3,), float(step))}, {"step": step, "名前": "値"})


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_the_newest_comes_back_as_it_was_saved_and_only_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save(tmp_path, step)
    assert checkpoint.steps(tmp_path) == [2, 10]
    step, tensors, state = checkpoint.load_newest(tmp_path) or (0, {}, {})
    assert (step, state) == (10, {"step": 10, "名前": "値"})
    assert torch.equal(tensors["w"], torch.full((3,), 10.0))


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "kiban.json"])
def test_a_damaged_newest_one_is_passed_over(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(tmp_path / "step-2" / name)
    assert (checkpoint.load_newest(tmp_path) or (0,))[0] == 1
    damage(tmp_path / "step-1" / name)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load_newest(tmp_path)


def test_an_empty_folder_has_none(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path) is None
    (tmp_path / ".step-5.123.tmp").mkdir()
    (tmp_path / "step-x").mkdir()
    assert checkpoint.load_newest(tmp_path) is None


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_full_disk_is_told_and_the_old_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    save(tmp_path, 1)
    real, calls = os.fsync, [0]

    def full(handle: int) -> None:
        calls[0] += 1
        if calls[0] == nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert checkpoint.steps(tmp_path) == [1]
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    assert (checkpoint.load_newest(tmp_path) or (0,))[0] == 1


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 3)
    checkpoint.save(tmp_path, 3, {"w": torch.zeros(3)}, {})
    assert torch.equal((checkpoint.load_newest(tmp_path) or (0, {}))[1]["w"], torch.zeros(3))
