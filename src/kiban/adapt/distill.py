"""What a student of a sentence encoder learns from: the teacher's embeddings, computed once and kept on disk.

Reimers & Gurevych 2020, "Making monolingual sentence embeddings multilingual using knowledge distillation".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kiban.config import Progress, silent
from kiban.errors import CheckpointError
from kiban.files import exclusive

CHUNK = 2048  # texts between two writes

Embed = Callable[[Sequence[str]], Tensor]


def teacher_embeddings(
    embed: Embed, texts: Sequence[str], path: Path, *, dim: int, key: str, progress: Progress = silent
) -> NDArray[np.float16]:
    """embed(texts), (N, D) float16, read from path as needed; what an interrupted call wrote there is not done again.

    key: names the teacher and its settings. Another key, or other texts, make the file anew. Raises CheckpointError if
    another process writes there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256("\0".join([key, str(dim), *texts]).encode("utf-8", "surrogatepass")).hexdigest()
    mark, part = path.with_suffix(".key"), path.with_suffix(".part")
    busy = CheckpointError(path, why="another process computes these embeddings", hint="wait for it")
    with exclusive(path.with_suffix(".lock"), error=busy):
        if not mark.exists() or mark.read_text(encoding="utf-8") != digest:
            path.unlink(missing_ok=True)
            part.unlink(missing_ok=True)
            mark.write_text(digest, encoding="utf-8")
        if not path.exists():
            _complete(part, embed, texts, dim, progress)
            part.replace(path)
    return np.memmap(path, dtype=np.float16, mode="r", shape=(len(texts), dim))


def _complete(part: Path, embed: Embed, texts: Sequence[str], dim: int, progress: Progress) -> None:
    with part.open("ab") as file:
        row = 2 * dim
        done = file.tell() // row
        file.truncate(done * row)  # a killed process may have left half a row
        for start in range(done, len(texts), CHUNK):
            found = embed(texts[start : start + CHUNK]).half().numpy()
            file.write(found.tobytes())
            file.flush()
            progress("teacher", min(start + CHUNK, len(texts)), len(texts))
