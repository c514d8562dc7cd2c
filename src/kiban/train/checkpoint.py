"""Checkpoints that survive a kill: written beside, flushed, renamed, and only then is an older one removed.

A checkpoint is a folder `step-N` with the tensors in safetensors, the rest in state.json, and a manifest of sha256s. Where
several processes train, the first one writes; of a model in parts each writes its own, and the first one the rest.
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
from kiban.train import sharded
from kiban.train.parallel import Parallel
from kiban.weights.safetensors import write_safetensors

KEEP = 2


def save(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], parallel: Parallel | None = None
) -> None:
    """Write `folder/step-N`, called by every process.

    Raises NonFiniteError if a parameter is not finite, CheckpointError if it cannot be written, in all processes alike.
    """
    parallel = parallel or Parallel()
    sick = [n for n, t in tensors.items() if t.is_floating_point() and not bool(sharded.own(t).isfinite().all())]
    if parallel.any(bool(sick)):
        what = sick[0] if sick else "a part of another process"
        raise NonFiniteError(what, why="holds NaN or infinity; no checkpoint was written", hint="lower the rate")
    path, parts = folder / f"step-{step}", folder / f".step-{step}.parts.tmp"
    if parallel.sharded:
        sharded.write_parts(parts, tensors, parallel)
    error = _publish(path, None if parallel.sharded else tensors, state, parts) if parallel.rank == 0 else None
    if parallel.first(error is not None):
        raise error or CheckpointError(path, why="the first process could not write it")
    if parallel.rank == 0:
        for old in steps(folder)[:-KEEP]:
            shutil.rmtree(folder / f"step-{old}", ignore_errors=True)


def _publish(
    path: Path, tensors: Mapping[str, Tensor] | None, state: Mapping[str, Any], parts: Path
) -> CheckpointError | None:
    """Let a checkpoint appear, with these tensors or the parts that lie ready; what went wrong, if something did."""
    try:
        shutil.rmtree(path, ignore_errors=True)  # an unverified leftover of this very step
        with staged_folder(path) as staged:
            if tensors is None:
                for part in parts.iterdir():
                    part.rename(staged / part.name)
            else:
                write_safetensors(staged, {name: t.detach().cpu().contiguous() for name, t in tensors.items()})
            (staged / "state.json").write_text(json.dumps(state), encoding="utf-8")
            write_manifest(staged, {"step": int(path.name.removeprefix("step-"))})
    except (KibanError, OSError) as error:
        found = CheckpointError(path, why=f"cannot be written: {error}", hint="free some disk space and resume")
        found.__cause__ = error
        return found
    finally:
        shutil.rmtree(parts, ignore_errors=True)
    return None


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, oldest first; temporary ones are not among them."""
    found = [path.name.removeprefix("step-") for path in folder.glob("step-*") if path.is_dir()]
    return sorted(int(name) for name in found if name.isdigit())


def newest(folder: Path, parallel: Parallel | None = None) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose files are all as they were written, and its state; None if the folder holds none.

    Raises CheckpointError if there are checkpoints, but every one of them is damaged.
    """
    parallel = parallel or Parallel()
    # One process reads all the files, the others believe it.
    step = parallel.first(_newest_whole(folder) if parallel.rank == 0 else 0)
    if step >= 0:
        path = folder / f"step-{step}"
        return path, read_json(path / "state.json")
    if steps(folder):
        raise CheckpointError(
            folder, why="holds checkpoints, but every one is damaged", hint="start again in a new folder"
        )
    return None


def _newest_whole(folder: Path) -> int:
    """The step of the newest checkpoint without damage; -1 if there is none."""
    for step in reversed(steps(folder)):
        path = folder / f"step-{step}"
        with contextlib.suppress(KibanError):
            if (path / "kiban.json").exists():
                verify_folder(path)
                read_json(path / "state.json")
                sharded.shapes(path)
                return step
    return -1


def load_newest(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """Step, whole tensors and state of the newest undamaged checkpoint. Raises as `newest`."""
    found = newest(folder)
    return found and (int(found[0].name.removeprefix("step-")), sharded.read_whole(found[0]), found[1])


@contextlib.contextmanager
def alone(folder: Path, parallel: Parallel | None = None) -> Iterator[None]:
    """Hold a folder for one trainer. Raises CheckpointError, in all its processes, if another trainer holds it."""
    parallel, error = parallel or Parallel(), None
    with contextlib.ExitStack() as held:
        try:
            if parallel.rank == 0:
                held.enter_context(_hold(folder))
        except CheckpointError as found:
            error = found
        if parallel.first(error is not None):
            raise error or _busy(folder)
        yield


@contextlib.contextmanager
def _hold(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / ".lock", error=_busy(folder)):
        for stale in folder.glob(".step-*.tmp"):  # of a trainer that was killed; the lock says nobody writes there
            shutil.rmtree(stale, ignore_errors=True)
        yield


def _busy(folder: Path) -> CheckpointError:
    return CheckpointError(folder, why="another trainer works here", hint="wait for it, or use a new folder")
