"""The residual network of He et al. 2016 with bottleneck blocks (table 1: 50, 101, 152 layers), without its classifier.

The stride of a stage lies in its first 1x1 convolution, as in the paper, or in the 3x3 one, as in most files since 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.nn import init
from kiban.nn.resnet import EXPANSION, ConvNorm


class StridedBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut (figure 5). (B, inputs, H, W) to (B, 4 * width, H / s, W / s).

    strides: of the first two convolutions; their product is s, that of the shortcut too.
    """

    def __init__(self, inputs: int, width: int, *, strides: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        outputs, stride = EXPANSION * width, strides[0] * strides[1]
        self.reduce = ConvNorm(inputs, width, 1, stride=strides[0])
        self.middle = ConvNorm(width, width, 3, stride=strides[1])
        self.expand = ConvNorm(width, outputs, 1)
        fits = stride == 1 and inputs == outputs
        self.shortcut = None if fits else ConvNorm(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.expand(F.relu(self.middle(F.relu(self.reduce(x)))))
        return F.relu(inner + (x if self.shortcut is None else self.shortcut(x)))


class ResNetV1(nn.Module):
    """pixels (B, 3, H, W) to the mean of the last feature map, (B, 32 * width).

    num_blocks: blocks of each of the four stages, whose widths are width times 1, 2, 4 and 8. stride_first: where the
    stride of a stage lies.
    """

    def __init__(self, num_blocks: Sequence[int], *, width: int, stride_first: bool) -> None:
        super().__init__()
        self.stem = ConvNorm(3, width, 7, stride=2)
        self.stages, inputs = nn.ModuleList(), width
        for number, count in enumerate(num_blocks):
            middle, blocks = width * 2**number, nn.Sequential()
            for block in range(count):
                stride = 2 if number and not block else 1
                strides = (stride, 1) if stride_first else (1, stride)
                blocks.append(StridedBottleneck(inputs, middle, strides=strides))
                inputs = EXPANSION * middle
            self.stages.append(blocks)
        self.embed_dim = inputs

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(pixels)), 3, stride=2, padding=1)
        for stage in self.stages:
            x = stage(x)
        return x.mean((2, 3))

    def initialise(self, generator: torch.Generator | None) -> None:
        """Convolutions as He et al. 2015; every block begins as its shortcut (Goyal et al. 2017, section 5.1)."""
        init.constants(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            elif isinstance(module, StridedBottleneck):
                nn.init.zeros_(module.expand.norm.weight)
