"""Training where each process holds a part of every parameter, and may share the work on each row with others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from kiban.errors import ConfigError
from kiban.nn.attention import Attention
from kiban.nn.feedforward import FeedForward, GatedFeedForward
from kiban.objectives.base import Batch, Loss, Objective
from kiban.train.blocks import blocks_of
from kiban.train.parallel.processes import Processes, copy_from_first

T = TypeVar("T")


class Sharded(Processes):
    """Parameters, gradients and moments in parts (Rajbhandari et al. 2020, ZeRO stage 3), with torch's FSDP2.

    A block is gathered when it is used; what stands outside the blocks stays gathered for the whole step, since objectives
    use the head by themselves. Gradients travel after every part, so that a process never holds all of them.
    tensor_parallel: processes that share a row, each with some of the heads and some of the feed-forward's width
    (Shoeybi et al. 2019, section 3).
    """

    sharded = True

    def __init__(self, device: torch.device, tensor_parallel: int = 1) -> None:
        super().__init__(device)
        self.places = self.world // tensor_parallel
        self.place, self.tensor_parallel = self.rank // tensor_parallel, tensor_parallel
        shape = (self.places, tensor_parallel)
        self.mesh: DeviceMesh = init_device_mesh(device.type, shape, mesh_dim_names=("rows", "width"))

    def apply(self, module: nn.Module) -> None:
        """Split the module. Raises ConfigError if its heads or widths do not divide."""
        copy_from_first(module)
        if self.tensor_parallel > 1:
            for part in [*module.modules()]:
                split_width(part, self.mesh["width"])
        for part in [*blocks_of(module), module]:
            shard: Any = fully_shard(part, mesh=self.mesh["rows"])
            # The trainer divides by the count of the whole batch, so gradients are added up and not averaged.
            shard.set_gradient_divide_factor(1.0)
            shard.set_force_sum_reduction_for_comms(True)
        # A method through which anything can be computed with the parameters at hand, not the forward pass alone.
        vars(module)["compute"] = _call
        register_fsdp_forward_method(module, "compute")

    def loss(self, module: nn.Module, objective: Objective, batch: Batch, *, last: bool) -> Loss:
        """The objective's loss of a part."""
        assert isinstance(module, FSDPModule)
        module.set_is_last_backward(last)
        losses: list[Loss] = []

        def total() -> Tensor:  # a tensor, for the backward pass begins where it leaves
            losses.append(objective(batch))
            return losses[0].total

        vars(module)["compute"](total)
        return losses[0]

    def inside(self, module: nn.Module, function: Callable[[], T]) -> T:
        """All run it, since parameters are gathered from all; what the first process finds counts."""
        assert isinstance(module, FSDPModule)
        try:
            found: T = self._told(vars(module)["compute"](function))
            return found
        finally:
            module.reshard()  # the next step must not see what was gathered here

    @torch.no_grad()
    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> float:
        """Scale gradients down to a norm, that of all parameters together; returns the norm before."""
        gradients = [p.grad for p in parameters if isinstance(p.grad, DTensor)]
        locals_ = [gradient.to_local() for gradient in gradients]
        norms = torch.stack(torch._foreach_norm(locals_)).double().square()
        # What several processes hold alike is counted once.
        copies = torch.tensor([self.world / _pieces(gradient) for gradient in gradients], device=norms.device)
        total = (norms / copies).sum()
        dist.all_reduce(total)
        norm = float(total.sqrt())
        torch._foreach_mul_(locals_, min(1.0, max_norm / (norm + 1e-6)))  # the same constant as torch's clip_grad_norm_
        return norm

    def whole(self, module: nn.Module) -> dict[str, Tensor]:
        """The module's state, every tensor in full, on the CPU of the first process."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return {name: torch.as_tensor(value) for name, value in get_model_state_dict(module, options=options).items()}


def _call(function: Callable[[], T]) -> T:
    return function()


def _pieces(tensor: DTensor) -> int:
    """Into how many processes' pieces a tensor is cut."""
    pieces = 1
    for size, placement in zip(tensor.device_mesh.shape, tensor.placements, strict=True):
        if not placement.is_replicate():  # torch does not call parts of parts a Shard
            pieces *= size
    return pieces


def split_width(module: nn.Module, mesh: DeviceMesh) -> None:
    """Give each process of the mesh some of an attention's heads, or some of a feed-forward's width.

    Raises ConfigError if they do not divide.
    """
    size = mesh.size()
    if isinstance(module, Attention):
        for name in ("num_heads", "num_kv_heads"):
            if getattr(module, name) % size:
                why = f"{size} does not divide {name}={getattr(module, name)}"
                raise ConfigError("parallel", field="tensor_parallel", why=why, hint="use a divisor of it")
        into, out = ["q", "k", "v"], "o"
        module.num_heads, module.num_kv_heads = module.num_heads // size, module.num_kv_heads // size
    elif isinstance(module, FeedForward | GatedFeedForward):
        if module.up.out_features % size:
            why = f"{size} does not divide ffn_dim={module.up.out_features}"
            raise ConfigError("parallel", field="tensor_parallel", why=why, hint="use a divisor of it")
        into, out = ["gate", "up"] if isinstance(module, GatedFeedForward) else ["up"], "down"
    else:
        return
    parallelize_module(module, mesh, {**dict.fromkeys(into, ColwiseParallel()), out: RowwiseParallel()})
