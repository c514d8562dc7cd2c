"""The tensors of a module that files hold: its parameters, and buffers such as the statistics of batch normalisation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kiban.errors import FormatError
from kiban.weights.names import NameTable, to_ours


def stored_tensors(module: nn.Module) -> dict[str, Tensor]:
    """By our names, shared ones once."""
    state = module.state_dict()  # knows which buffers are not kept
    buffers = {name: buffer for name, buffer in module.named_buffers() if name in state}
    return {**{name: p.detach() for name, p in module.named_parameters()}, **buffers}


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """tensor in dtype, unless it counts something."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def assign(
    module: nn.Module, names: NameTable, tensors: Mapping[str, Tensor], *, source: str, dtype: torch.dtype
) -> None:
    """Put published tensors in place of the module's, which is on the meta device. Raises FormatError on a wrong shape."""
    shared: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), []).append(name)
    expected = stored_tensors(module)
    ours = to_ours(names, tensors, wanted=expected, source=source)
    for name, own in expected.items():
        tensor = ours.get(name)
        if tensor is None:  # the table lets a file lack it (BERT's pooler)
            tensor = torch.zeros(own.shape, dtype=own.dtype)
        if tensor.shape != own.shape:
            raise FormatError(source, field=name, why=f"has shape {tuple(tensor.shape)}, expected {tuple(own.shape)}")
        ours[name] = in_dtype(tensor, dtype)
    module.load_state_dict(ours, strict=False, assign=True)
    for first, *rest in shared.values():
        for name in rest:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, module.get_parameter(first))
