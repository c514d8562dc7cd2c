"""safetensors: truncated, crafted and disguised files are refused; valid ones read as the library reads them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from kiban.errors import FormatError, UnsafeFormatError
from kiban.weights.safetensors import (
    DTYPE_BYTES,
    read_folder_tensors,
    read_safetensors,
    tensor_bytes,
    write_safetensors,
)

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def crafted(path: Path, header: Any, payload: bytes = bytes(8), *, length: int | None = None) -> Path:
    """A file with this header, given as bytes or as what its JSON says."""
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(data) if length is None else length).to_bytes(8, "little") + data + payload)
    return path


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Equal names, types, shapes and bytes (NaN included)."""
    if first.keys() != second.keys():
        return False
    pairs = [(tensor, second[name]) for name, tensor in first.items()]
    return all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.reshape(-1).view(torch.uint8), _raw(b))
        for a, b in pairs
    )


def _raw(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small valid file."""
    path = tmp_path / "model.safetensors"
    tensors = {"重み": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, -2]), "leer": torch.empty(0, 3)}
    path.write_bytes(tensor_bytes(tensors))
    return path


def test_a_file_cut_at_any_byte_is_refused(model: Path) -> None:
    data = model.read_bytes()
    for size in range(len(data)):
        model.write_bytes(data[:size])
        with pytest.raises(FormatError):
            read_safetensors(model)


def test_a_large_file_cut_at_any_4_kib_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(tensor_bytes({f"layers.{i}.weight": torch.zeros(512, 512) for i in range(10)}))
    for size in range(path.stat().st_size // 4096 * 4096, -1, -4096):
        os.truncate(path, size)
        with pytest.raises(FormatError):
            read_safetensors(path)


def test_a_file_with_bytes_behind_its_end_is_refused(model: Path) -> None:
    model.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(FormatError, match="too many"):
        read_safetensors(model)


HEADERS: dict[str, Any] = {
    "overlap": {"a": F32, "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
    "the same bytes twice": {"a": F32, "b": F32},
    "reversed offsets": {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
    "a hole at the beginning": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
    "a hole in the middle": {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "U8", "shape": [1], "data_offsets": [7, 8]},
    },
    "beyond the end": {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}},
    "shorter than the file": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
    "shape and offsets differ": {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
    "a product that wraps 64 bits": {"a": {"dtype": "F32", "shape": [2**32, 2**32, 2], "data_offsets": [0, 8]}},
    "a product that wraps to the right size": {"a": {"dtype": "U8", "shape": [2**61 + 1, 8], "data_offsets": [0, 8]}},
    "a size above 63 bits": {"a": {"dtype": "U8", "shape": [2**63], "data_offsets": [0, 2**63]}},
    "a negative size": {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
    "two negative sizes": {"a": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}},
    "a broken size": {"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}},
    "a truth value as size": {"a": {"dtype": "F64", "shape": [True], "data_offsets": [0, 8]}},
    "one offset": {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8]}},
    "three offsets": {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}},
    "offsets as text": {"a": {"dtype": "F32", "shape": [2], "data_offsets": "08"}},
    "too many dimensions": {"a": {"dtype": "F32", "shape": [1] * 65 + [2], "data_offsets": [0, 8]}},
    "an unknown type": {"a": {**F32, "dtype": "F33"}},
    "a list as type": {"a": {**F32, "dtype": ["F32"]}},
    "an object as type": {"a": {**F32, "dtype": {}}},
    "no type": {"a": {**F32, "dtype": None}},
    "a key too few": {"a": {"dtype": "F32", "shape": [2]}},
    "a key too many": {"a": {**F32, "stride": [1]}},
    "a list as tensor": {"a": [0, 8]},
    "metadata that is no text": {"a": F32, "__metadata__": {"format": 1}},
    "metadata as a list": {"a": F32, "__metadata__": []},
    "nothing but a hole": {},
    "a list": [],
    "a number": 1,
    "null": None,
    "repeated keys": b'{"a": %s, "a": %s}' % ((json.dumps(F32).encode(),) * 2),
    "repeated keys inside": b'{"a": {"dtype": "F32", "dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}',
    "the same key in two spellings": b'{"a": %s, "\\u0061": %s}' % ((json.dumps(F32).encode(),) * 2),
    "100,000 brackets": b"[" * 100_000,
    "100,000 levels": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "bad UTF-8": b'{"\xff\xfe": 1}',
    "Shift JIS": '{"重み": 1}'.encode("shift_jis"),
    "a lone surrogate": b'{"\\ud800": %s}' % json.dumps(F32).encode(),
    "a number of 10,000 digits": b'{"a": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 8]}}' % (b"9" * 10_000),
    "infinity": b'{"a": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 8]}}',
    "no JSON": b"{'a': 1}",
    "nothing": b"",
    "zeros": bytes(64),
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_crafted_header_is_refused(tmp_path: Path, header: Any) -> None:
    with pytest.raises(FormatError, match=r"model\.safetensors") as caught:
        read_safetensors(crafted(tmp_path / "model.safetensors", header))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**32 + 2, 2**63, 2**64 - 1])
def test_a_header_length_that_is_not_the_headers_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(FormatError):
        read_safetensors(crafted(tmp_path / "model.safetensors", {"a": F32}, length=length))


def test_a_repeated_key_among_many_is_found_at_once(tmp_path: Path) -> None:
    pairs = ",".join(f'"{i}":0' for i in range(300_000))
    with pytest.raises(FormatError, match="'299999': stands twice"):
        read_safetensors(crafted(tmp_path / "model.safetensors", f'{{{pairs},"299999":0}}'.encode()))


def test_the_message_names_file_tensor_and_byte(tmp_path: Path) -> None:
    path = crafted(tmp_path / "model.safetensors", HEADERS["a hole in the middle"])
    with pytest.raises(FormatError) as caught:
        read_safetensors(path)
    error, header_end = caught.value, 8 + len(json.dumps(HEADERS["a hole in the middle"]))
    assert (error.what, error.field, error.offset) == (str(path), "b", header_end + 7)


def test_no_flip_of_a_header_bit_raises_anything_but_our_errors(model: Path) -> None:
    data = model.read_bytes()
    for bit in range(8 * (8 + int.from_bytes(data[:8], "little"))):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        model.write_bytes(changed)
        try:
            read_safetensors(model)
        except (FormatError, UnsafeFormatError):
            continue


def test_a_missing_file_a_folder_and_a_pipe_are_format_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    for path in (tmp_path / "no", tmp_path, tmp_path / "pipe"):
        with pytest.raises(FormatError):
            read_safetensors(path)


@pytest.mark.parametrize("length", [0x0280, 0x7D0280, 0x580280])
def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path, length: int) -> None:
    header = json.dumps({"a": F32}).encode().ljust(length)
    tensors = read_safetensors(crafted(tmp_path / "model.safetensors", header))
    assert torch.equal(tensors["a"], torch.zeros(2))


def test_training_on_tensors_that_were_read_leaves_the_file_as_it_was(model: Path) -> None:
    before = model.read_bytes()
    for tensor in read_safetensors(model).values():
        tensor.zero_()
    assert model.read_bytes() == before


TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8]
TYPES += [torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
TYPES += [torch.uint16, torch.uint32, torch.uint64, torch.complex64]
ALPHABET = ["a", "layers", ".", "0", "重み", "ß", '"', "\\", "\n", "😀", "/", "\0", " "]


def random_file(path: Path, seed: int) -> None:
    """A valid file; every other one is written by hand: names in another order than bytes, any padding of the header."""
    numbers = np.random.default_rng(seed)
    tensors = {}
    for _ in range(int(numbers.integers(0, 9))):
        name = "".join(numbers.choice(ALPHABET, numbers.integers(0, 6)))
        shape = tuple(int(n) for n in numbers.integers(0, 5, numbers.integers(0, 5)))
        dtype = TYPES[numbers.integers(len(TYPES))]
        size = int(np.prod(shape)) * dtype.itemsize
        data = torch.from_numpy(numbers.integers(0, 2 if dtype == torch.bool else 256, size, dtype=np.uint8))
        tensors[name] = data.view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
    metadata = {"format": "pt", "文": "値"} if numbers.random() < 0.5 else None
    written = safetensors.torch.save(tensors, metadata)
    if seed % 2:
        length = int.from_bytes(written[:8], "little")
        entries = list(json.loads(written[8 : 8 + length]).items())
        shuffled = dict(entries[i] for i in numbers.permutation(len(entries)))
        text = json.dumps(shuffled, ensure_ascii=bool(numbers.random() < 0.5), indent=int(numbers.integers(0, 3)))
        header = text.encode() + b" " * int(numbers.integers(0, 9))
        written = len(header).to_bytes(8, "little") + header + written[8 + length :]
    path.write_bytes(written)


@pytest.mark.parametrize("seeds", [range(60), pytest.param(range(60, 560), marks=pytest.mark.slow)], ids=str)
def test_random_valid_files_give_the_librarys_tensors(tmp_path: Path, seeds: range) -> None:
    path = tmp_path / "model.safetensors"
    for seed in seeds:
        random_file(path, seed)
        with safe_open(path, framework="pt") as file:
            expected = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        assert same(read_safetensors(path), expected), seed


def test_a_written_file_may_be_read_by_whom_other_new_files_may(tmp_path: Path) -> None:
    write_safetensors(tmp_path, {"a": torch.ones(2)})
    (tmp_path / "other").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_type_is_written_and_read(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"a": torch.arange(8, dtype=torch.uint8).repeat(8).remainder(2).view(dtype)}
    write_safetensors(tmp_path, tensors)
    assert same(read_folder_tensors(tmp_path), tensors)


def test_the_size_of_every_type_is_torchs() -> None:
    from safetensors.torch import _TYPES

    assert set(_TYPES) <= set(DTYPE_BYTES)
    assert all(DTYPE_BYTES[name] == dtype.itemsize for name, dtype in _TYPES.items())
