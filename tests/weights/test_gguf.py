"""GGUF: the bounded reader against the PyPI package's writer, and against files made to harm it."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from kiban.errors import FormatError, UnsafeFormatError
from kiban.weights.gguf import GGUF, MAX_VALUES, read_gguf

U8, U16, I32, U32, F32, BOOL, TEXT, ARRAY, U64 = 0, 2, 5, 4, 6, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def entry(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0, *, rank: int | None = None) -> bytes:
    """A tensor's place in the header; shape in GGUF's order, the innermost axis first."""
    rank = len(shape) if rank is None else rank
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", rank, *shape, kind, offset)


def crafted(
    values: list[bytes] = [],  # noqa: B006  # never changed
    entries: list[bytes] = [],  # noqa: B006
    payload: bytes = b"",
    *,
    version: int = 3,
    alignment: int = 32,
    num_values: int | None = None,
    num_tensors: int | None = None,
) -> bytes:
    """A file, byte by byte. values: key, kind and value each."""
    num_values = len(values) if num_values is None else num_values
    num_tensors = len(entries) if num_tensors is None else num_tensors
    header = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_values) + b"".join(values) + b"".join(entries)
    return header + bytes(-len(header) % alignment) + payload


def number(key: str, kind: int, code: str, value: Any) -> bytes:
    return text(key) + struct.pack(f"<I{code}", kind, value)


def array(key: str, inner: int, count: int, data: bytes = b"") -> bytes:
    return text(key) + struct.pack("<IIQ", ARRAY, inner, count) + data


ONE = entry("a", (8,))  # eight float32, 32 bytes

BAD: dict[str, bytes] = {
    "nothing": b"",
    "another magic": b"GGML" + bytes(60),
    "version 1": crafted(version=1),
    "version 4": crafted(version=4),
    "big-endian": crafted(version=3 << 24),
    "2^63 values": crafted(num_values=2**63),
    "2^63 tensors": crafted(num_tensors=2**63),
    "2^64 - 1 of both": crafted(num_values=2**64 - 1, num_tensors=2**64 - 1),
    "array of length 2^63": crafted([array("a", U8, 2**63)]),
    "array of length 2^64 - 1": crafted([array("a", U64, 2**64 - 1)]),
    "array of 2^63 texts": crafted([array("a", TEXT, 2**63)]),
    "array of 2^63 arrays": crafted([array("a", ARRAY, 2**63)]),
    "length that wraps to a small size": crafted([array("a", U64, 2**61 + 1, bytes(8))]),
    "text of length 2^63": crafted([text("a") + struct.pack("<IQ", TEXT, 2**63)]),
    "text of length 2^64 - 1": crafted([text("a") + struct.pack("<IQ", TEXT, 2**64 - 1)]),
    "key of length 2^63": crafted([struct.pack("<Q", 2**63)]),
    "kind of value 13": crafted([number("a", 13, "Q", 0)]),
    "kind of array 13": crafted([array("a", 13, 1, bytes(8))]),
    "arrays 100 deep": crafted([text("a") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 100]),
    "arrays 100,000 deep": crafted([text("a") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 100_000]),
    "a key twice": crafted([number("a", U8, "B", 1)] * 2),
    "a tensor twice": crafted(entries=[ONE, entry("a", (8,), 0, 32)], payload=bytes(64)),
    **{
        f"alignment {n}": crafted([number("general.alignment", U32, "I", n)], [ONE], bytes(64))
        for n in (0, 1, 3, 4, 24, 2**21, 2**31)
    },
    "alignment as text": crafted([text("general.alignment") + struct.pack("<I", TEXT) + text("32")], [ONE], bytes(32)),
    "alignment as truth": crafted([number("general.alignment", BOOL, "?", True)], [ONE], bytes(32)),
    "alignment as fraction": crafted([number("general.alignment", F32, "f", 32.0)], [ONE], bytes(32)),
    "rank 0": crafted(entries=[entry("a", ())], payload=bytes(32)),
    "rank 5": crafted(entries=[entry("a", (1, 1, 1, 1, 8))], payload=bytes(32)),
    "rank 2^32 - 1": crafted(entries=[entry("a", (8,), rank=2**32 - 1)], payload=bytes(32)),
    "an empty axis": crafted(entries=[entry("a", (8, 0))], payload=bytes(32)),
    "a product that wraps to the right size": crafted(entries=[entry("a", (2**61 + 1, 8))], payload=bytes(32)),
    "an axis of 2^64 - 1": crafted(entries=[entry("a", (2**64 - 1,))], payload=bytes(32)),
    "shorter than its shape": crafted(entries=[entry("a", (9,))], payload=bytes(32)),
    "behind the end": crafted(entries=[entry("a", (8,), offset=32)], payload=bytes(32)),
    "offset 2^63": crafted(entries=[entry("a", (8,), offset=2**63)], payload=bytes(32)),
    "offset that wraps into the header": crafted(entries=[entry("a", (8,), offset=2**64 - 32)], payload=bytes(32)),
    "offset off the alignment": crafted(entries=[entry("a", (4,), offset=4)], payload=bytes(32)),
    "overlap": crafted(entries=[entry("a", (16,)), entry("b", (8,), offset=32)], payload=bytes(64)),
    "the same bytes twice": crafted(entries=[entry("a", (8,)), entry("b", (8,))], payload=bytes(32)),
    "a row that is no whole block": crafted(entries=[entry("a", (16, 2), 2)], payload=bytes(32)),
    "an unknown type behind the end": crafted(entries=[entry("a", (8,), 99, offset=32)], payload=bytes(32)),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_a_crafted_file_is_refused_at_once(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(FormatError, match=r"model\.gguf"):
        read_gguf(path)
    assert time.perf_counter() - start < 1


def test_a_tensor_of_an_unknown_type_does_no_harm_until_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(crafted(entries=[ONE, entry("b", (256,), 10, 32)], payload=bytes(200)))
    with read_gguf(path) as file:
        assert torch.equal(file.tensors["a"].dequantise(), torch.zeros(8))
        with pytest.raises(FormatError, match=r"'b'.*type number 10.*Q4_K"):
            file.tensors["b"].dequantise()


def test_arrays_cannot_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    half = MAX_VALUES // 2
    path.write_bytes(crafted([array(key, U8, half, bytes(half)) for key in "abc"]))
    with pytest.raises(FormatError, match="too long"):
        read_gguf(path)


def test_a_missing_file_and_a_folder_are_format_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "no.gguf", tmp_path):
        with pytest.raises(FormatError):
            read_gguf(path)


def test_a_text_cut_inside_a_character_is_read_with_a_mark_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    pieces = [text("漢"), text("漢".encode()[:2]), text(b"\xff\xfe")]
    path.write_bytes(crafted([array("tokens", TEXT, 3, b"".join(pieces))]))
    with read_gguf(path) as file:
        assert file.metadata["tokens"] == ["漢", "\ufffd", "\ufffd\ufffd"]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file of the package's writer, whose last tensor ends with the file."""
    return written(tmp_path / "small.gguf", {"重み": np.arange(6, dtype=np.float32), "b": np.ones((2, 32), np.float16)})


def written(path: Path, tensors: dict[str, Any], fill: Callable[[Any], None] | None = None) -> Path:
    """A file of the package's writer."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.name", "名前")
    writer.add_array("tokens", ["あ", "い", ""])
    writer.add_array("scores", [0.5, -1.0])
    if fill is not None:
        fill(writer)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_cut_at_any_byte_is_refused(small: Path) -> None:
    data = small.read_bytes()
    for size in range(len(data)):
        small.write_bytes(data[:size])
        with pytest.raises(FormatError):
            read_gguf(small)


def test_a_large_file_cut_at_any_4_kib_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "big.gguf", {f"blk.{i}": np.zeros((512, 512), np.float32) for i in range(10)})
    for size in range(path.stat().st_size // 4096 * 4096, -1, -4096):
        os.truncate(path, size)
        with pytest.raises(FormatError):
            read_gguf(path)


def test_without_the_padding_behind_the_last_tensor_nothing_is_lost(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf", {"a": np.arange(3, dtype=np.float32)})
    os.truncate(path, path.stat().st_size - 20)
    with read_gguf(path) as file:
        assert file.tensors["a"].dequantise().tolist() == [0.0, 1.0, 2.0]
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(FormatError):
        read_gguf(path)


def test_no_flip_of_a_header_bit_raises_anything_but_our_errors(small: Path) -> None:
    data = small.read_bytes()
    for bit in range(8 * (len(data) - 160)):  # the tensors take 32 and 128 bytes
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        small.write_bytes(changed)
        try:
            with read_gguf(small) as file, np.errstate(all="ignore"):
                for tensor in file.tensors.values():
                    tensor.dequantise()
        except (FormatError, UnsafeFormatError):
            continue


def test_all_kinds_of_values_read_as_they_were_written(tmp_path: Path) -> None:
    kinds = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64", "bool")
    limits = [255, -128, 65535, -(2**15), 2**32 - 1, -(2**31), 2**64 - 1, -(2**63), 0.1, 0.1, True]

    def fill(writer: Any) -> None:
        for kind, value in zip(kinds, limits, strict=True):
            getattr(writer, f"add_{kind}")(kind, value)
        writer.add_array("flags", [True, False])
        writer.add_array("ids", [1, -2, 3])
        writer.add_string("長い", "漢字" * 1000)

    with read_gguf(written(tmp_path / "a.gguf", {"a": np.zeros(1, np.float32)}, fill)) as file:
        found = file.metadata
    expected = dict(zip(kinds, limits, strict=True)) | {"float32": float(np.float32(0.1))}
    assert {kind: found[kind] for kind in kinds} == expected
    assert [type(found[kind]) for kind in kinds] == [type(value) for value in limits]
    assert (found["flags"], found["ids"], found["長い"]) == ([True, False], [1, -2, 3], "漢字" * 1000)
    assert (found["general.architecture"], found["general.name"]) == ("llama", "名前")
    assert (found["tokens"], found["scores"]) == (["あ", "い", ""], [0.5, -1.0])


def test_version_2_nested_arrays_and_another_alignment_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    inner = struct.pack("<IQ2i", I32, 2, 1, -1) + struct.pack("<IQ", U16, 0)
    values = [array("nested", ARRAY, 2, inner), number("general.alignment", U32, "I", 64)]
    payload = struct.pack("<2f", 1.0, 2.0) + bytes(56) + struct.pack("<f", 3.0)
    path.write_bytes(
        crafted(values, [entry("a", (2, 1)), entry("b", (1,), offset=64)], payload, version=2, alignment=64)
    )
    with read_gguf(path) as file:
        assert file.metadata["nested"] == [[1, -1], []]
        assert file.tensors["a"].dequantise().tolist() == [[1.0, 2.0]]
        assert file.tensors["b"].dequantise().tolist() == [3.0]


PLAIN = (np.float32, np.float16)
QUANTISED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16")


@pytest.mark.parametrize("seeds", [range(60), pytest.param(range(60, 560), marks=pytest.mark.slow)], ids=str)
def test_random_files_of_the_package_read_as_the_package_reads_them(tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        numbers = np.random.default_rng(seed)
        writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
        if seed % 3:
            writer.add_custom_alignment(int(2 ** numbers.integers(3, 10)))
        expected = {}
        for i in range(int(numbers.integers(1, 6))):
            rows = tuple(int(n) for n in numbers.integers(1, 5, numbers.integers(0, 4)))
            if numbers.random() < 0.5:
                values = numbers.standard_normal((*rows, int(numbers.integers(1, 9)))).astype(PLAIN[i % 2])
                writer.add_tensor(f"重み.{i}", values)
                expected[f"重み.{i}"] = values.astype(np.float32)
            else:
                kind = gguf.GGMLQuantizationType[QUANTISED[numbers.integers(len(QUANTISED))]]
                values = numbers.standard_normal((*rows, 32 * int(numbers.integers(1, 3)))).astype(np.float32)
                blocks = gguf.quants.quantize(values, kind)
                writer.add_tensor(f"重み.{i}", blocks, raw_dtype=kind)
                expected[f"重み.{i}"] = gguf.quants.dequantize(blocks, kind).reshape(values.shape)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with read_gguf(tmp_path / "a.gguf") as file:
            assert file.tensors.keys() == expected.keys()
            for name, tensor in file.tensors.items():
                found = tensor.dequantise()
                assert tensor.shape == found.shape == expected[name].shape
                assert np.array_equal(found.numpy(), expected[name]), (seed, name)


def test_tensors_outlive_the_file(tmp_path: Path) -> None:
    file = GGUF(written(tmp_path / "a.gguf", {"a": np.arange(3, dtype=np.float32)}))
    values = file.tensors["a"].dequantise()
    file.close()
    assert values.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.weights
def test_a_real_file_reads_as_the_package_reads_it(smollm2_gguf: Path) -> None:
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2_gguf).tensors}
    with read_gguf(smollm2_gguf) as file:
        assert file.tensors.keys() == theirs.keys()
        for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.29.ffn_down.weight", "output_norm.weight"):
            tensor, other = file.tensors[name], theirs[name]
            expected = gguf.quants.dequantize(other.data, other.tensor_type)
            assert np.array_equal(tensor.dequantise().numpy(), expected.reshape(tensor.shape))
