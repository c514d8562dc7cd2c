"""Writing GGUF files, version 3."""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kiban.errors import KibanError
from kiban.files import staged_file

ALIGNMENT = 32
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
TYPES = {torch.float32: 0, torch.float16: 1}


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a file that is there whole or not at all. tensors: float32 or float16; metadata: as `read_gguf` gives it.

    Raises KibanError if path exists or cannot be written.
    """
    if path.exists():
        raise KibanError(path, why="exists already", hint="give a new name; kiban never overwrites a model")
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    head += [_text(key) + _value(value) for key, value in metadata.items()]
    offset, data = 0, []
    for name, tensor in tensors.items():
        kind = tensor if tensor.dtype in TYPES else tensor.float()
        shape = tuple(reversed(kind.shape))  # the format's order is the opposite of torch's
        head.append(_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, TYPES[kind.dtype], offset))
        raw = kind.detach().cpu().contiguous().numpy().tobytes()
        data.append(raw + bytes(-len(raw) % ALIGNMENT))
        offset += len(data[-1])
    whole = b"".join(head)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged_file(path) as staged, staged.open("wb") as file:
            file.write(whole + bytes(-len(whole) % ALIGNMENT))
            file.writelines(data)
    except OSError as error:
        hint = "free some disk space" if error.errno == errno.ENOSPC else ""
        raise KibanError(path, why=f"could not be written: {error.strerror or error}", hint=hint) from error


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    """A type number and the value; the elements of an array share the type of its first."""
    kind, raw = _plain(value)
    return struct.pack("<I", kind) + raw


def _plain(value: Any) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return BOOL, struct.pack("<?", value)
    if isinstance(value, int):
        return (UINT32, struct.pack("<I", value)) if value >= 0 else (INT32, struct.pack("<i", value))
    if isinstance(value, float):
        return FLOAT32, struct.pack("<f", value)
    if isinstance(value, str):
        return STRING, _text(value)
    assert isinstance(value, list) and value, f"no GGUF type for {value!r}"
    parts = [_plain(part) for part in value]
    assert len({kind for kind, _ in parts}) == 1, "an array holds one type"
    return ARRAY, struct.pack("<IQ", parts[0][0], len(value)) + b"".join(raw for _, raw in parts)
