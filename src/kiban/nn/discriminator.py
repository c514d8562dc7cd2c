"""A discriminator that judges an image patch by patch. Isola et al. 2017, section 3.2.2 and appendix 6.1.2 ("PatchGAN").

Deviation: group norms, which do not mix the rows of a batch as the paper's batch norms do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kiban.errors import ConfigError
from kiban.nn import init

SLOPE, STD = 0.2, 0.02


class PatchDiscriminator(nn.Module):
    """Images (B, 3, H, W) to logits (B, 1, h, w), above 0 where a patch looks real.

    num_layers convolutions halve the sides, two more do not: with 3, a logit sees 70 x 70 pixels. Raises ConfigError if
    num_groups does not divide dim.
    """

    def __init__(self, *, dim: int = 64, num_layers: int = 3, num_groups: int = 32, image_channels: int = 3) -> None:
        super().__init__()
        if num_layers < 1 or dim % num_groups:
            raise ConfigError(f"dim={dim}, num_layers={num_layers}: num_groups={num_groups} has to divide dim")
        layers: list[nn.Module] = [nn.Conv2d(image_channels, dim, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        before = dim
        for level in range(1, num_layers + 1):
            after = dim * min(2**level, 8)
            stride = 2 if level < num_layers else 1
            layers += [
                nn.Conv2d(before, after, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(num_groups, after),
                nn.LeakyReLU(SLOPE),
            ]
            before = after
        self.layers = nn.Sequential(*layers, nn.Conv2d(before, 1, 4, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        return torch.as_tensor(self.layers(image))

    def initialise(self, generator: torch.Generator | None) -> None:
        """Convolutions from N(0, 0.02^2), as the paper."""
        init.constants(self)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                init.normal(part.weight, STD, generator)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
