"""How a process finds the others: the environment that torchrun sets."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Literal

import torch

from kiban.errors import ConfigError
from kiban.train.parallel.base import Parallel

Kind = Literal["auto", "none", "ddp", "fsdp"]


def parallel_of(
    kind: Kind, *, tensor_parallel: int = 1, device: torch.device | str = "cpu", timeout: float = 30.0
) -> Parallel:
    """The processes that torchrun started, gloo on the CPU and nccl on CUDA; without torchrun this process alone.

    ddp: each holds the whole model. fsdp: each holds a part, and with tensor_parallel above 1 so many of them share the
    work on each row. auto: ddp, or fsdp where tensor_parallel asks for it. timeout: seconds after which a step is given up
    when another process does not answer. Raises ConfigError for what cannot be combined.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if tensor_parallel < 1 or world % tensor_parallel:
        why = f"{tensor_parallel} does not divide the {world} processes"
        raise ConfigError("parallel", field="tensor_parallel", why=why, hint="start them with torchrun")
    if tensor_parallel > 1 and kind in ("ddp", "none"):
        why = f"{kind!r} keeps the model whole"
        raise ConfigError("parallel", field="tensor_parallel", why=why, hint='use "fsdp"')
    if kind == "none" or world == 1:
        if world > 1:
            why = f"torchrun started {world} processes"
            raise ConfigError(
                "parallel", field="none", why=why, hint='use "ddp" or "fsdp", or start it without torchrun'
            )
        return Parallel()
    place = _join(torch.device(device).type, timeout)
    from kiban.train.parallel.processes import Replicated

    if kind == "fsdp" or tensor_parallel > 1:
        from kiban.train.parallel.sharded import Sharded

        return Sharded(place, tensor_parallel)
    return Replicated(place)


def _join(kind: str, timeout: float) -> torch.device:
    """Meet the others, unless that is done already; returns this process's own device."""
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    place = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        backend, limit = ("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"), timedelta(seconds=timeout)
        store, rank, world = next(rendezvous("env://", timeout=limit))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            # When torchrun restarts processes, its store still holds the addresses of those that were killed. Machines count
            # restarts each for itself, so this is for one alone.
            store = PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
    return place
