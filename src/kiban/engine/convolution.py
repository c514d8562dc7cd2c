"""Convolutions on (B, H, W, C), with weights laid out once, that take SiLU and sums along; 3x3 with fewer products.

Winograd's algorithm (Lavin & Gray 2016, section 4) makes a tile of m x m outputs with (m + 2)^2 products for every pair of
channels instead of 9 m^2: 4 times fewer at m = 4. Its steps are matrix products, so it needs nothing but torch. Deviation:
the points for m = 4 are 0, 2/3, -2/3, 3/2, -3/2 in place of 0, 1, -1, 2, -2, which halves the rounding error (of weights and
states near 1, about 5 times that of a plain sum).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.engine.reordered import available

POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)}
MIN_TILES = {2: 64, 4: 32}  # of a whole batch: the rows of a matrix product
MIN_CHANNELS = {2: 256, 4: 96}  # with fewer, moving tiles takes longer than their products save
MAX_KERNEL_BYTES = 192 * 2**20  # of one layer
PIECE_BYTES = 12 * 2**20  # of tiles at once: larger buffers are fetched anew from the system each time


@dataclass(frozen=True)
class _Transforms:
    """For tiles of m x m: tiles of the input to points, (n^2, n^2), n = m + 2; points and a constant to outputs,
    (m^2, n^2 + 1); kernels (3) to points (n, 3), float64."""

    into: Tensor
    out: Tensor
    kernel: Tensor


@cache
def _transforms(m: int) -> _Transforms:
    """Toom-Cook: polynomials are multiplied by their values at points, the last of them infinity."""
    n = m + 2

    def values(degree: int) -> Tensor:
        rows = [[point**power for power in range(degree)] for point in POINTS[m]]
        return torch.tensor([*rows, [0.0] * (degree - 1) + [1.0]], dtype=torch.float64)  # (n, degree)

    into, kernel, out = torch.linalg.inv(values(n)).mT, values(3), values(m).mT
    # Powers of two move between both sides without rounding; tiles then stay about as large as the input.
    size = 2 ** into.abs().amax(1, keepdim=True).log2().round()
    into, kernel = into / size, kernel * size
    both = torch.cat((torch.kron(out, out), torch.ones(m * m, 1, dtype=torch.float64)), dim=1)
    return _Transforms(torch.kron(into, into).float(), both.float(), kernel)


class Conv:
    """What an nn.Conv2d computes, (B, H, W, Cin) to (B, H', W', Cout) float32, all contiguous.

    The weights are those of the moment of construction, and laid out at the first call of a kind, for sizes like its. By
    tiles or not is decided by sizes alone, not measured, so that a picture is the same each time.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        assert layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        self.weight = layer.weight.detach()
        self.bias = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias.detach()
        self.stride, self.padding, self.dilation = list(layer.stride), list(layer.padding), list(layer.dilation)
        shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        self.by_tiles = shape == ((3, 3), (1, 1), (1, 1), (1, 1))
        self._direct: Any = None
        self._kernels: dict[int, Tensor] = {}

    def __call__(
        self, x: Tensor, *, silu: bool = False, shift: Tensor | None = None, plus: Tensor | None = None
    ) -> Tensor:
        """conv(SiLU(x) if silu else x) + shift + plus. shift: (B, Cout); plus: of the shape of the result."""
        m = self.tile(*x.shape[:3])
        if m is not None:
            return self._by_tiles(x, m, silu=silu, shift=shift, plus=plus)
        result = self._plain((F.silu(x) if silu else x).permute(0, 3, 1, 2), plus)
        return result if shift is None else result.add_(shift[:, None, None])

    def tile(self, batch: int, height: int, width: int) -> int | None:
        """The m for inputs of this size, None for a plain convolution."""
        channels = self.weight.shape[:2]
        for m, bound in ((4, MAX_KERNEL_BYTES), (2, 2 * MAX_KERNEL_BYTES)):
            tiles = batch * -(-height // m) * -(-width // m)
            small = (m + 2) ** 2 * channels.numel() * 4 <= bound
            if self.by_tiles and tiles >= MIN_TILES[m] and min(channels) >= MIN_CHANNELS[m] and small:
                return m
        return None

    def _plain(self, x: Tensor, plus: Tensor | None) -> Tensor:
        """x: (B, Cin, H, W) in the memory of (B, H, W, Cin)."""
        if not available(self.weight):
            result = F.conv2d(x, self.weight, self.bias, stride=self.stride, padding=self.padding).permute(0, 2, 3, 1)
            return result.contiguous() if plus is None else result + plus
        ops, sizes = torch.ops.mkldnn, (self.padding, self.stride, self.dilation, 1)
        if self._direct is None:
            self._direct = ops._reorder_convolution_weight(self.weight, *sizes, list(x.shape))
        if plus is None:
            result = ops._convolution_pointwise(x, self._direct, self.bias, *sizes, "none", [], "")
        else:
            plus = plus.permute(0, 3, 1, 2)
            work = ops._convolution_pointwise.binary
            result = work(x, plus, self._direct, self.bias, *sizes, "add", None, None, [], None)
        return torch.as_tensor(result).permute(0, 2, 3, 1).contiguous()

    def _by_tiles(self, x: Tensor, m: int, *, silu: bool, shift: Tensor | None, plus: Tensor | None) -> Tensor:
        n, (batch, height, width, channels), made = m + 2, x.shape, self.weight.shape[0]
        tall, wide = -(-height // m), -(-width // m)
        padded = x.new_empty(batch, m * tall + 2, m * wide + 2, channels)
        padded[:, 0] = padded[:, height + 1 :] = padded[:, :, 0] = padded[:, :, width + 1 :] = 0
        inner = padded[:, 1 : height + 1, 1 : width + 1]
        if silu:
            torch.ops.aten.silu.out(x, out=inner)
        else:
            inner.copy_(x)
        size = (batch, m * tall, m * wide, made)
        out = x.new_empty(size) if plus is None else F.pad(plus, (0, 0, 0, size[2] - width, 0, size[1] - height))
        constant = (self.bias if shift is None else self.bias + shift).expand(batch, made)
        transforms, kernel = _transforms(m), self._kernel(m)
        for images, rows in _pieces(batch, tall, n * n * wide * channels * 4):
            part = padded[images, m * rows.start : m * rows.stop + 2].unfold(1, n, m).unfold(2, n, m)
            num_tiles = part.shape[:3].numel()  # (b, r, wide, C, n, n)
            tiles = transforms.into @ part.permute(4, 5, 0, 1, 2, 3).reshape(n * n, -1)
            points = x.new_empty(n * n + 1, num_tiles, made)
            torch.bmm(tiles.view(n * n, num_tiles, channels), kernel, out=points[:-1])
            points[-1].view(part.shape[0], -1, made).copy_(constant[images, None])
            found = (transforms.out @ points.view(n * n + 1, -1)).view(m, m, *part.shape[:3], made)
            place = out[images, m * rows.start : m * rows.stop].view(part.shape[0], -1, m, wide, m, made)
            place = place.permute(2, 4, 0, 1, 3, 5)  # (m, m, b, r, wide, Cout)
            place.copy_(found) if plus is None else place.add_(found)
        return out[:, :height, :width].contiguous()

    def _kernel(self, m: int) -> Tensor:
        """The weights at the points, (n^2, Cin, Cout)."""
        if m not in self._kernels:
            at = _transforms(m).kernel
            self._kernels[m] = torch.cat(
                [
                    torch.einsum("ia,jb,ocab->ijco", at, at, some.double()).float().flatten(0, 1)
                    for some in torch.split(self.weight, 64)  # the float64 copy is large
                ],
                dim=2,
            )
        return self._kernels[m]


def _pieces(batch: int, tall: int, row_bytes: int) -> Iterator[tuple[slice, slice]]:
    """Images and rows of tiles that are computed at once."""
    if batch * tall * row_bytes <= PIECE_BYTES:
        yield slice(0, batch), slice(0, tall)
        return
    step = max(1, PIECE_BYTES // row_bytes)
    for image in range(batch):
        for row in range(0, tall, step):
            yield slice(image, image + 1), slice(row, min(row + step, tall))
