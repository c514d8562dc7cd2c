"""Pickles of every kind, under every name, are refused before anything of them runs."""

from __future__ import annotations

import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kiban.errors import UnsafeFormatError
from kiban.weights.gguf import read_gguf
from kiban.weights.safetensors import (
    FIRST_OPCODES,
    check_header,
    read_folder_tensors,
    read_safetensors,
    write_safetensors,
)


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def _pickle(protocol: int) -> Callable[[Path, Any], object]:
    return lambda path, value: path.write_bytes(pickle.dumps(value, protocol))


def _unframed(path: Path, value: Any) -> None:
    """Protocol 4 without the opcodes that say so."""
    data = pickle.dumps(value, 4)
    assert data[2:3] == b"\x95"
    path.write_bytes(data[11:])


def _numpy(path: Path, value: Any) -> None:
    array = np.empty(1, dtype=object)
    array[0] = value
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=True)


def _numpy_zip(path: Path, value: Any) -> None:
    array = np.empty(1, dtype=object)
    array[0] = value
    with path.open("wb") as file:
        np.savez(file, a=array)


def _empty_zip(path: Path, value: Any) -> None:
    with zipfile.ZipFile(path, "w"):
        pass


WRITERS: dict[str, Callable[[Path, Any], object]] = {
    **{f"protocol {n}": _pickle(n) for n in range(6)},
    "protocol 4 unframed": _unframed,
    "torch zip": lambda path, value: torch.save({"w": torch.zeros(2), "x": value}, path),
    "torch legacy": lambda path, value: torch.save(
        {"w": torch.zeros(2), "x": value}, path, _use_new_zipfile_serialization=False
    ),
    "numpy objects": _numpy,
    "numpy zip": _numpy_zip,
    "empty zip": _empty_zip,
}
NAMES = ("pytorch_model.bin", "model.pt", "model.ckpt", "model.pth", "a.npy", "a.npz", "model.safetensors", "model.PT")


def test_the_bomb_of_these_tests_goes_off_when_it_is_opened(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_pickle_is_refused_before_anything_runs(
    tmp_path: Path, name: str, write: Callable[[Path, Any], object]
) -> None:
    write(tmp_path / name, Bomb(tmp_path / "mark"))
    for read in (read_safetensors, check_header):
        with pytest.raises(UnsafeFormatError, match="convert it"):
            read(tmp_path / name)
    with pytest.raises(UnsafeFormatError):
        read_folder_tensors(tmp_path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value", [{}, [], {"重み": [1.5]}, (1, 2), 7, -3, 2.5, "文", b"bytes", {1}, 2**70, bytearray(b"ab")], ids=repr
)
def test_a_harmless_pickle_named_safetensors_is_still_a_pickle(tmp_path: Path, protocol: int, value: Any) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(value, protocol))
    with pytest.raises(UnsafeFormatError):
        read_safetensors(path)


def test_every_opcode_that_pickles_of_the_standard_library_begin_with_is_known() -> None:
    needs_nothing = {op.code.encode("latin-1") for op in pickletools.opcodes if not op.stack_before}
    # The stated protocol, the end, and what reads a memo or a stack that is empty at first.
    never = {op.encode("latin-1") for op in "\x80.ghjpqr\x94\x97"}
    assert {bytes([code]) for code in FIRST_OPCODES} == needs_nothing - never


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf", "model.ckpt"])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_pickle_given_where_a_gguf_file_is_expected_is_refused(
    tmp_path: Path, name: str, write: Callable[[Path, Any], object]
) -> None:
    write(tmp_path / name, Bomb(tmp_path / "mark"))
    with pytest.raises(UnsafeFormatError, match="convert it"):
        read_gguf(tmp_path / name)
    assert not (tmp_path / "mark").exists()


def test_a_pickle_beside_safetensors_is_left_alone(tmp_path: Path) -> None:
    write_safetensors(tmp_path, {"a": torch.ones(2)})
    (tmp_path / "training_args.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    assert torch.equal(read_folder_tensors(tmp_path)["a"], torch.ones(2))
    assert not (tmp_path / "mark").exists()
