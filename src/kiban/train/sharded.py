"""Tensors of a checkpoint on disk: whole ones, or parts that each process writes for itself.

Parts have torch.distributed.checkpoint's layout in safetensors, which says where each part belongs (its older layout holds
a pickle). Either kind can be read by any number of processes, each taking what it needs. That library takes a second or
two to load, and is loaded only where something is in parts.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from kiban.errors import CheckpointError, FormatError
from kiban.train.moments import Shapes
from kiban.train.parallel import Parallel
from kiban.weights.safetensors import check_header, read_folder_tensors

PARTS = "shard-*.safetensors"


def own(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return torch.as_tensor(tensor.to_local()) if hasattr(tensor, "to_local") else tensor


def write_parts(folder: Path, tensors: Mapping[str, Tensor], parallel: Parallel) -> None:
    """Write what this process holds into a folder that all of them see.

    Raises CheckpointError, in every process, if one of them cannot write.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save({n: t.detach() for n, t in tensors.items()}, storage_writer=writer, process_group=parallel.group)
    except CheckpointException as error:
        if parallel.rank == 0:  # by now every process has written or failed
            shutil.rmtree(folder, ignore_errors=True)
        reasons = "; ".join(f"process {rank}: {failure[0]}" for rank, failure in sorted(error.failures.items()))
        raise CheckpointError(
            folder, why=f"cannot be written: {reasons}", hint="free some disk space and resume"
        ) from error


def shapes(folder: Path) -> Shapes:
    """Shape and dtype of every tensor of a checkpoint. Raises FormatError for a damaged file."""
    if not any(folder.glob(PARTS)):
        return {name: (tensor.shape, tensor.dtype) for name, tensor in read_folder_tensors(folder).items()}
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    for path in sorted(folder.glob(PARTS)):
        check_header(path)
    try:
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(folder, why=f"its parts do not say where they belong: {error}") from error
    return {n: (m.size, m.properties.dtype) for n, m in found.items() if isinstance(m, TensorStorageMetadata)}


@torch.no_grad()
def read(folder: Path, targets: Mapping[str, Tensor]) -> None:
    """Fill tensors from those of the same names; a split one takes its part. Raises CheckpointError if they do not fit."""
    there = {name: tuple(shape) for name, (shape, _) in shapes(folder).items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in targets.items()}
    if there != wanted:
        name = min(n for n in {*there, *wanted} if there.get(n) != wanted.get(n))
        why = f"has the shape {there.get(name)}, where the run has {wanted.get(name)}"
        hint = "resume with the model and the settings it was written with, or take a new folder"
        raise CheckpointError(folder, field=name, why=why, hint=hint)
    if not any(folder.glob(PARTS)) and all(own(tensor) is tensor for tensor in targets.values()):
        for name, tensor in read_folder_tensors(folder).items():
            targets[name].copy_(tensor)
        return
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it was told to ask no other process
        reader = HuggingFaceStorageReader(str(folder))
        load({name: tensor.detach() for name, tensor in targets.items()}, storage_reader=reader, no_dist=True)


def read_whole(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint in full, however it was written."""
    tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes(folder).items()}
    read(folder, tensors)
    return tensors
