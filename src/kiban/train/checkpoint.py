"""Checkpoints that survive a kill: written beside, flushed, renamed, and only then is an older one removed.

A checkpoint is a folder `step-N` with the tensors in safetensors, the rest in state.json, and a manifest of sha256s.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from kiban.errors import CheckpointError, KibanError, NonFiniteError
from kiban.files import exclusive, read_json, staged_folder, verify_folder, write_manifest
from kiban.weights.safetensors import read_folder_tensors, write_safetensors

KEEP = 2


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write `folder/step-N`. Raises NonFiniteError if a parameter is not finite, CheckpointError if it cannot be written."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise NonFiniteError(name, why="holds NaN or infinity; no checkpoint was written", hint="lower the rate")
    path = folder / f"step-{step}"
    try:
        shutil.rmtree(path, ignore_errors=True)  # an unverified leftover of this very step
        with staged_folder(path) as staged:
            write_safetensors(staged, {name: t.detach().cpu().contiguous() for name, t in tensors.items()})
            (staged / "state.json").write_text(json.dumps(state), encoding="utf-8")
            write_manifest(staged, {"step": step})
    except NonFiniteError:
        raise
    except (KibanError, OSError) as error:
        raise CheckpointError(
            path, why=f"cannot be written: {error}", hint="free some disk space and resume"
        ) from error
    for old in steps(folder)[:-KEEP]:
        shutil.rmtree(folder / f"step-{old}", ignore_errors=True)


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, oldest first; temporary ones are not among them."""
    found = [path.name.removeprefix("step-") for path in folder.glob("step-*") if path.is_dir()]
    return sorted(int(name) for name in found if name.isdigit())


def load_newest(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint whose files are all as they were written; None if the folder holds none.

    Raises CheckpointError if there are checkpoints, but every one of them is damaged.
    """
    found = steps(folder)
    for step in reversed(found):
        path = folder / f"step-{step}"
        with contextlib.suppress(KibanError):
            if not (path / "kiban.json").exists():
                continue
            verify_folder(path)
            return step, read_folder_tensors(path), read_json(path / "state.json")
    if found:
        raise CheckpointError(
            folder, why="holds checkpoints, but every one is damaged", hint="start again in a new folder"
        )
    return None


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder for one trainer. Raises CheckpointError if another trainer holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    busy = CheckpointError(folder, why="another trainer works here", hint="wait for it, or use a new folder")
    with exclusive(folder / ".lock", error=busy):
        for stale in folder.glob(".step-*.tmp"):  # of a trainer that was killed; the lock says nobody writes there
            shutil.rmtree(stale, ignore_errors=True)
        yield
