"""The state of optimisers by the names of parameters, so that it fits however parameters are grouped or split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

Shapes = Mapping[str, tuple[torch.Size, torch.dtype]]


def moments(optimizers: Sequence[torch.optim.Optimizer], parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """`optimizer.{number}.{kind}.{parameter}` of all that the optimisers remember."""
    found = {}
    for number, optimizer in enumerate(optimizers):
        for name, parameter in parameters.items():
            for kind, value in optimizer.state.get(parameter, {}).items():
                found[f"optimizer.{number}.{kind}.{name}"] = torch.as_tensor(value)
    return found


def make_room(
    optimizers: Sequence[torch.optim.Optimizer], parameters: Mapping[str, nn.Parameter], shapes: Shapes
) -> None:
    """Let optimisers that have not stepped yet hold zeros for every state of such a name and shape."""
    for number, optimizer in enumerate(optimizers):
        for full, (shape, dtype) in shapes.items():
            area, _, rest = full.partition(f"optimizer.{number}.")
            kind, _, name = rest.partition(".")
            if area or name not in parameters:
                continue
            parameter = parameters[name]
            zeros = partial(torch.zeros_like, parameter) if shape == parameter.shape else partial(torch.zeros, shape)
            optimizer.state[parameter][kind] = zeros(dtype=dtype, device=parameter.device).detach()


def random_state(device: torch.device) -> Tensor:
    """Where torch's random numbers stand, those of the device behind those of the CPU: (N,) uint8, on the CPU."""
    rows = [torch.get_rng_state()]
    if device.type == "cuda":
        rows.append(torch.cuda.get_rng_state(device))
    return torch.cat(rows)


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Go back to where `random_state` was taken."""
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size].clone())  # torch 2.13 crashes on a view that begins later
    if device.type == "cuda" and len(state) > size:
        torch.cuda.set_rng_state(state[size:].clone(), device)
