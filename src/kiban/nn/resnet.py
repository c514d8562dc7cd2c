"""CLIP's ResNet (Radford et al. 2021, section 2.4): a stem of three convolutions, average pools where others use strides
(He et al. 2019's D, Zhang 2019), and a layer of attention in place of the global average pool."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.errors import ConfigError
from kiban.nn import init
from kiban.nn.attention import attend

EXPANSION = 4  # a block gives four times as many channels as its middle has
SHRINK = 32  # side of a picture to side of the last feature map


class ConvNorm(nn.Module):
    """A convolution that keeps the size (or halves it, stride 2), and batch normalisation. (B, C, H, W) in and out."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.norm(self.conv(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut (He et al. 2016, figure 5). stride 2: both end in an average pool.

    (B, inputs, H, W) to (B, 4 * width, H / stride, W / stride).
    """

    def __init__(self, inputs: int, width: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.reduce, self.middle = ConvNorm(inputs, width, 1), ConvNorm(width, width, 3)
        self.expand = ConvNorm(width, EXPANSION * width, 1)
        fits = stride == 1 and inputs == EXPANSION * width
        self.shortcut = None if fits else ConvNorm(inputs, EXPANSION * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self._pool(F.relu(self.middle(F.relu(self.reduce(x)))))
        beside = x if self.shortcut is None else self.shortcut(self._pool(x))
        return F.relu(self.expand(inner) + beside)

    def _pool(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x


class AttentionPool(nn.Module):
    """The mean of a feature map asks all of its places and itself: (B, D, S, S) to (B, E)."""

    def __init__(self, side: int, dim: int, num_heads: int, embed_dim: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"dim={dim} is not divisible by num_heads={num_heads}")
        self.num_heads = num_heads
        self.position = nn.Embedding(side**2 + 1, dim)
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.o = nn.Linear(dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        places = x.flatten(2).mT  # (B, S * S, D)
        places = torch.cat((places.mean(1, keepdim=True), places), dim=1) + self.position.weight
        q, k, v = (
            layer(part).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, 1 or S * S + 1, Dh)
            for layer, part in ((self.q, places[:, :1]), (self.k, places), (self.v, places))
        )
        return torch.as_tensor(self.o(attend(q, k, v).transpose(1, 2).flatten(1)))


class ModifiedResNet(nn.Module):
    """pixels (B, 3, S, S), S = image_size, to embeddings (B, E).

    num_blocks: blocks of each of the four stages, whose widths are width times 1, 2, 4 and 8.
    Raises ConfigError if image_size is not divisible by 32.
    """

    def __init__(
        self, num_blocks: Sequence[int], *, width: int, num_heads: int, image_size: int, embed_dim: int
    ) -> None:
        super().__init__()
        if image_size % SHRINK:
            raise ConfigError(f"image_size={image_size} is not divisible by {SHRINK}")
        half = width // 2
        self.stem = nn.ModuleList(
            (ConvNorm(3, half, 3, stride=2), ConvNorm(half, half, 3), ConvNorm(half, width, 3)),
        )
        self.stages, inputs = nn.ModuleList(), width
        for number, count in enumerate(num_blocks):
            middle, blocks = width * 2**number, nn.Sequential()
            for block in range(count):
                blocks.append(Bottleneck(inputs, middle, stride=2 if number and not block else 1))
                inputs = EXPANSION * middle
            self.stages.append(blocks)
        self.pool = AttentionPool(image_size // SHRINK, inputs, num_heads, embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels
        for layer in self.stem:
            x = F.relu(layer(x))
        x = F.avg_pool2d(x, 2)
        for stage in self.stages:
            x = stage(x)
        return torch.as_tensor(self.pool(x))

    def initialise(self, generator: torch.Generator | None) -> None:
        """As the released code: convolutions uniform, attention D^-1/2, and every block begins as its shortcut."""
        init.constants(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.expand.norm.weight)
        for parameter in self.pool.parameters():
            if parameter.ndim == 2:
                init.normal(parameter, self.pool.q.in_features**-0.5, generator)
