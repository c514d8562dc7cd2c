"""What `kernels.cpp` computes: one call where torch needs ten small ones, and products with 8-bit activations, which torch
has for whole rows only (a scale for 32 numbers loses a tenth as much).

It is compiled on the machine that runs it, in a second, and kept in KIBAN_HOME. Without a C++ compiler, or on anything but
Linux on x86 with AVX2, nothing of this is there, and torch's own kernels serve.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import math
import subprocess
import tempfile
from collections.abc import Sequence
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kiban.config import home
from kiban.engine.packed import GROUP, fits_int4, quantise4
from kiban.engine.pages import PAGE, Part
from kiban.engine.probe import compiler_of_cpp, features, processor
from kiban.files import sync

LOGGER = logging.getLogger("kiban.engine")
SOURCE = Path(__file__).with_name("kernels.cpp")
NEEDED = ("avx2", "fma", "f16c")  # as Linux tells them
# No flag that would take NaN for impossible: a model that computes it has to be found out.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-shared", "-fPIC", "-fopenmp")
SECONDS = 120  # for the compiler
ROWS = 16  # of a block
EXPONENT = 10  # of the largest weight as it is stored
TINY = 2.0**-24  # the smallest number in half precision


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions; None where there can be none."""
    if not set(NEEDED) <= set(features().split()):
        LOGGER.info("no kernels of kiban's own: they need Linux and %s", ", ".join(NEEDED))
        return None
    compiler = compiler_of_cpp()
    if compiler is None:
        LOGGER.warning("there is no C++ compiler, so products and attention take slower kernels")
        return None
    about = f"{processor()}{features()}{FLAGS}".encode()
    name = f"kernels-{hashlib.sha256(SOURCE.read_bytes() + about).hexdigest()[:16]}.so"
    try:
        path = home() / "compiled" / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as scratch:
                made = Path(scratch) / name
                command = [compiler, *FLAGS, str(SOURCE), "-o", str(made)]
                subprocess.run(command, check=True, stderr=subprocess.PIPE, timeout=SECONDS)
                sync(made)  # half a library would end every process that opens it
                made.replace(path)
                sync(path.parent)
        found = ctypes.CDLL(str(path))  # lets go of Python's lock in every call
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or b""
        LOGGER.warning("kernels are not compiled or do not open: %s %s", error, told.decode("utf-8", "replace")[-500:])
        return None
    p, n = c_void_p, c_int64
    found.kiban_product.argtypes = [p, n, n, p, c_float, c_int, p, c_int, n, c_float, p, p, p, c_int]
    found.kiban_attend.argtypes = [p, n, n, n, n, n, p, n, p, n, p, p, p, c_int]
    return found


class Rounding:
    """x (..., K) to (..., N), both float32, by weights in 4 bits, as `packed.quantise4` makes them, or in 8 with a scale for
    each 32 columns; activations are rounded to 8 bits with a scale for each 32 of a row."""

    def __init__(self, bits: Literal[4, 8], weight: Tensor, bias: Tensor | None = None) -> None:
        """weight: (N, K), N divisible by 16 and K by 32. There must be a `library`."""
        assert fits_int4(weight)
        self.bits, (self.num_out, self.num_in) = bits, weight.shape
        self.bias = None if bias is None else bias.float().contiguous()
        # A power of two brings scales to where half precision has all its digits, and changes no digit.
        largest = float(weight.abs().amax())
        self.factor = 2.0 ** (math.frexp(largest)[1] - EXPONENT) if 0 < largest < math.inf else 1.0
        self.blocks = (_blocks4 if bits == 4 else _blocks8)(weight.float() / self.factor)

    def __call__(
        self,
        x: Tensor,
        *,
        norm: Tensor | None = None,
        floor: float = 0.0,
        gated: bool = False,
        plus: Tensor | None = None,
    ) -> Tensor:
        """norm (K,): x is divided by sqrt(|x|^2 + floor) and multiplied by it first. gated: x (..., 2K) is gate and up, and
        silu(gate) * up is multiplied. plus (..., N): added to the result."""
        code, x = library(), x.contiguous()
        assert code is not None and not (gated and norm is not None)
        assert x.dtype == torch.float32 and x.shape[-1] == self.num_in * (2 if gated else 1)
        assert (norm is None or norm.shape == (self.num_in,)) and (
            plus is None or plus.numel() == x.numel() // x.shape[-1] * self.num_out
        )
        rows, out = x.numel() // x.shape[-1], x.new_empty(*x.shape[:-1], self.num_out)
        code.kiban_product(
            x.data_ptr(), rows, self.num_in, _address(norm), floor, gated, self.blocks.data_ptr(), self.bits,
            self.num_out, self.factor, _address(self.bias), _address(plus), out.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return out

    @property
    def num_bytes(self) -> int:
        """Memory of the weights."""
        return self.blocks.numel()


class OneEach:
    """Attention of a step that brings one token of each answer, which may lie in any pages."""

    def __init__(self, parts: Sequence[Part]) -> None:
        pages = [page for part in parts for page in part.pages[: -(-part.end // PAGE)]]
        counts = torch.tensor([-(-part.end // PAGE) for part in parts])
        self._pages, self._first = torch.tensor(pages), counts.cumsum(0) - counts
        self._ends = torch.tensor([part.end for part in parts])

    def __call__(self, q: Tensor, both: Tensor) -> Tensor:
        """q: (1, B, H, Dh), of each answer without gaps; both: (2 Hkv, places, Dh) of the layer. Out: (1, B, H, Dh)."""
        code, (_, answers, heads, size) = library(), q.shape
        assert code is not None and q.stride(2) == size and both.is_contiguous()
        assert q.dtype == both.dtype == torch.float32 and answers == len(self._ends)
        out = q.new_empty(1, answers, heads, size)
        code.kiban_attend(
            q.data_ptr(), answers, q.stride(1), heads, both.shape[0] // 2, size, both.data_ptr(), both.shape[1],
            self._pages.data_ptr(), PAGE, self._first.data_ptr(), self._ends.data_ptr(), out.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        return out

    @staticmethod
    def fits(both: Tensor) -> bool:
        """Whether keys (L, 2, Hkv, places, Dh) are such as it takes, and there is a `library`."""
        usual = both.device.type == "cpu" and both.dtype == torch.float32 and both.shape[-1] % 16 == 0
        return usual and library() is not None


def _address(tensor: Tensor | None) -> int | None:
    assert tensor is None or (tensor.is_contiguous() and tensor.dtype == torch.float32)
    return None if tensor is None else tensor.data_ptr()


def _blocks4(weight: Tensor) -> Tensor:
    """Codes, scales and minima as kernels.cpp wants them, (N / 16, K / 32, 320) uint8."""
    codes, scale, minimum = quantise4(weight)
    low, high = _ordered(codes).chunk(2, dim=2)
    return torch.cat((low | high << 4, _halves(scale), _halves(minimum)), dim=-1)


def _blocks8(weight: Tensor) -> Tensor:
    """Codes and scales, (N / 16, K / 32, 544) uint8."""
    groups = weight.view(len(weight), -1, GROUP)
    scale = (groups.abs().amax(-1) / 127).half()
    codes = (groups / scale.float().clamp(min=TINY)[..., None]).round().clamp(-127, 127) + 128
    return torch.cat((_ordered(codes.to(torch.uint8).flatten(1)), _halves(scale)), dim=-1)


def _ordered(codes: Tensor) -> Tensor:
    """Codes (N, K) by block and group, and there by halves of the group, fours, rows, columns: (N / 16, K / 32, 512)."""
    shape = (len(codes) // ROWS, codes.shape[1] // GROUP)
    return codes.view(shape[0], ROWS, shape[1], 2, 4, 4).permute(0, 2, 3, 4, 1, 5).flatten(2)


def _halves(numbers: Tensor) -> Tensor:
    """What each row has for each group, (N, K / 32), in half precision by block and group: (N / 16, K / 32, 32) uint8."""
    ordered = numbers.half().view(-1, ROWS, numbers.shape[1]).transpose(1, 2)
    return ordered.contiguous().view(torch.uint8)
