"""Tensors of a checkpoint on disk: whole ones, or parts that each process writes for itself.

Parts have torch.distributed.checkpoint's layout in safetensors, which says where each part belongs (its older layout holds
a pickle). Either kind can be read by any number of processes, each taking what it needs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from kiban.errors import CheckpointError
from kiban.train.moments import Shapes
from kiban.train.parallel import Parallel
from kiban.weights.safetensors import check_header


def own(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def write_parts(folder: Path, tensors: Mapping[str, Tensor], parallel: Parallel) -> None:
    """Write what this process holds into a folder that all of them see.

    Raises CheckpointError, in every process, if one of them cannot write.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        dcp.save({name: t.detach() for name, t in tensors.items()}, storage_writer=writer, process_group=parallel.group)
    except (dcp.api.CheckpointException, OSError) as error:
        why = "a process could not write its part"
        raise CheckpointError(folder, why=f"{why}: {error}", hint="free some disk space and resume") from error


def shapes(folder: Path) -> Shapes:
    """Shape and dtype of every tensor of a checkpoint. Raises FormatError for a damaged file."""
    for path in sorted(folder.glob("*.safetensors")):
        check_header(path)
    found = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {n: (m.size, m.properties.dtype) for n, m in found.items() if isinstance(m, TensorStorageMetadata)}


def read(folder: Path, targets: Mapping[str, Tensor]) -> None:
    """Fill tensors from those of the same names; a split one takes its part. Raises CheckpointError if they do not fit."""
    there, wanted = (
        {n: tuple(s) for n, (s, _) in shapes(folder).items()},
        {n: tuple(t.shape) for n, t in targets.items()},
    )
    if there != wanted:
        name = sorted(n for n in {*there, *wanted} if there.get(n) != wanted.get(n))[0]
        why = f"has the shape {there.get(name)}, where the run has {wanted.get(name)}"
        hint = "resume with the model and the settings it was written with, or take a new folder"
        raise CheckpointError(folder, field=name, why=why, hint=hint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group, which is what no_dist says
        reader = dcp.HuggingFaceStorageReader(str(folder))
        dcp.load({name: t.detach() for name, t in targets.items()}, storage_reader=reader, no_dist=True)


def read_whole(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint in full, however it was written."""
    tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes(folder).items()}
    read(folder, tensors)
    return tensors
