"""safetensors files and folders. The header is checked by our own rules before the library maps the file.

The library accepts repeated keys, and leaves it to its caller that an index stays inside its folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kiban.errors import FormatError, KibanError, ModelNotFoundError, UnsafeFormatError
from kiban.files import inside, parse_json, read_json

MAX_HEADER_BYTES = 100 * 10**6  # the format's own limit
DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz", ".joblib", ".h5"}
# What a pickle can begin with if it does not state its protocol.
FIRST_OPCODES = b"(])}cFGIJKLMNPSTUVXBC\x82\x83\x84\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x95\x96"
CONVERT = "convert it where you trust it: safetensors.torch.save_file(torch.load(file, weights_only=True), new_file)"


def refuse_pickle(path: Path) -> None:
    """Raises UnsafeFormatError for files that can run code when opened, by name and by their first bytes."""
    start, last = b"", b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(9)
            file.seek(max(path.stat().st_size - 1, 0))
            last = file.read(1)
    known = start.startswith((b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY"))
    if path.suffix.lower() in PICKLES or known or _is_pickle(start, last):
        raise UnsafeFormatError(
            path, why="is or may hold a pickle, which can run code; kiban never opens one", hint=CONVERT
        )


def _is_pickle(start: bytes, last: bytes) -> bool:
    """Whether a file with these first nine bytes and this last one can be a pickle of any protocol."""
    if start[4:] == b"\0\0\0\0{":
        return False  # the length and brace of a safetensors header, and read as nothing else
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":  # protocols 2 to 5 say so; data may follow the last one
        return len(start) == 9 or last == b"."
    return last == b"." and start[:1] in FIRST_OPCODES


def check_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, fully checked. Raises FormatError, or UnsafeFormatError for a pickle."""
    try:
        refuse_pickle(path)
        size = path.stat().st_size
        if not path.is_file():
            raise FormatError(path, why="is not a regular file")
        with path.open("rb") as file:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            if len(first) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise FormatError(path, offset=0, why=f"header length {length} does not fit a file of {size} bytes")
            data = file.read(length)
    except OSError as error:
        raise FormatError(path, why=f"cannot be read: {error.strerror}") from error
    header = parse_json(data, path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(path, field="__metadata__", why="must hold strings")
    ranges = sorted((_range(path, name, entry), name) for name, entry in header.items())
    end = 0
    for (start, stop), name in ranges:
        if start != end:
            raise FormatError(
                path, field=name, offset=8 + length + start, why="overlaps another tensor or leaves a hole"
            )
        end = stop
    if end != size - 8 - length:
        raise FormatError(path, offset=8 + length + end, why=f"{size - 8 - length - end} bytes too many or too few")
    return header


def _range(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """Begin and end of a tensor's bytes, agreeing with its type and shape."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(path, field=name, why="needs dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPE_BYTES:
        raise FormatError(path, field=name, why=f"has the unknown type {entry['dtype']!r:.40}")
    whole = all(
        isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)
        for numbers in (shape, offsets)
    )
    if not whole or len(offsets) != 2 or len(shape) > 64:
        raise FormatError(path, field=name, why="has a shape or offsets that are not small whole numbers")
    # Python's integers do not wrap, so a product beyond 64 bits is simply too large.
    if offsets[1] - offsets[0] != math.prod(shape) * DTYPE_BYTES[entry["dtype"]]:
        raise FormatError(path, field=name, why="has offsets that do not match its shape and type")
    return offsets[0], offsets[1]


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, mapped from disk. Raises FormatError or UnsafeFormatError."""
    names = check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise FormatError(path, why=f"is not a safetensors file: {error}") from error


def read_folder_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a Hugging Face folder, single or in shards.

    Raises FormatError, UnsafeFormatError if there are only pickles, ModelNotFoundError if there is nothing.
    """
    index = inside(folder, "model.safetensors.index.json", source=folder)
    if (folder / "model.safetensors").exists():
        return read_safetensors(inside(folder, "model.safetensors", source=folder))
    if not index.exists():
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in PICKLES:
                refuse_pickle(path)
        raise ModelNotFoundError(folder, why="holds no model.safetensors")
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise FormatError(index, field="weight_map", why="must map tensor names to files")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        path = inside(folder, shard, source=index)
        if not path.is_file():
            raise FormatError(index, field=shard, why="the shard is missing", hint="fetch the folder again")
        for name, tensor in read_safetensors(path).items():
            if places.get(name) != shard:
                raise FormatError(index, field=name, why=f"stands in {shard}, but the index does not say so")
            tensors[name] = tensor
    lacking = sorted(set(places) - set(tensors))
    if lacking:
        raise FormatError(index, field=lacking[0], why="is in the index, but in no shard")
    return tensors


def write_safetensors(folder: Path, tensors: Mapping[str, Tensor], *, max_shard_bytes: int = 5 * 10**9) -> None:
    """Write model.safetensors, or shards with an index if there is more than max_shard_bytes.

    Raises KibanError if the system cannot write them.
    """
    shards: list[dict[str, Tensor]] = [{}]
    room = max_shard_bytes
    for name, tensor in tensors.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = max_shard_bytes
        shards[-1][name] = tensor.contiguous()
        room -= tensor.nbytes
    if len(shards) == 1:
        _write(folder / "model.safetensors", shards[0])
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(folder / name, shard)
        places.update(dict.fromkeys(shard, name))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        path.touch()
        mode = path.stat().st_mode & 0o777  # what others may do with a new file here; the library lets nobody read it
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(mode)
    except (SafetensorError, OSError) as error:  # the library's name for a full disk, and the system's
        raise KibanError(path, why=f"could not be written: {error}", hint="is the disk full?") from error


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A small safetensors file in memory."""
    return bytes(safetensors.torch.save(dict(tensors), metadata={"format": "pt"}))
