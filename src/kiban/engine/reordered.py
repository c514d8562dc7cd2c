"""Linear layers whose weights oneDNN has laid out once, and which take the activation or the residual sum along.

`F.linear` lays weights out anew on every call with bf16, and writes and reads its whole output again for what follows it.
The operators are those that torch's own compiler uses on CPUs; where torch was built without oneDNN, plain ones serve.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

TYPICAL_ROWS = 512


def available(weight: Tensor) -> bool:
    """Whether torch can lay out this weight, here and in its dtype."""
    return weight.device.type == "cpu" and _works(weight.dtype)


@cache
def _works(dtype: torch.dtype) -> bool:
    """Tried, since it hangs on the processor too: without AVX-512 or newer instructions oneDNN refuses bf16."""
    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=dtype), TYPICAL_ROWS)
        torch.ops.mkldnn._linear_pointwise(torch.zeros(1, 16, dtype=dtype), weight, None, "none", [], "none")
    except (AttributeError, RuntimeError):
        return False
    return True


class Reordered:
    """x (..., K) to (..., N) by weight (N, K) and bias (N,), all of one dtype; gelu (the exact one) is applied if asked."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> None:
        self.bias, self.gelu, self.ops = bias, gelu, available(weight)
        self.num_out, self.num_in = weight.shape
        self.num_bytes = weight.numel() * weight.element_size()
        self.weight: Any = weight.contiguous()
        if self.ops:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, TYPICAL_ROWS)
            # To look operators up takes as long as some of them.
            linear = torch.ops.mkldnn._linear_pointwise
            self._plain, self._plus = linear.default, linear.binary

    def __call__(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        """plus: what is added to the result, of its shape."""
        if not self.ops:
            plain = F.linear(x, self.weight, self.bias)
            plain = F.gelu(plain) if self.gelu else plain
            return plain if plus is None else plain + plus
        result: Tensor
        if plus is not None:
            result = self._plus(x, plus, self.weight, self.bias, "add")
        else:
            result = self._plain(x, self.weight, self.bias, "gelu" if self.gelu else "none", [], "none")
        return result
