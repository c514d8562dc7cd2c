"""ControlNet. Zhang et al. 2023. A trained copy of a U-Net's way down looks at a picture and corrects the U-Net's states.

All that leaves the copy, and the picture that enters it, passes a convolution that begins at zero: at first nothing changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.errors import ConfigError
from kiban.nn.residual import initialise_layers, zero
from kiban.nn.unet import UNet, UNetConfig


@dataclass(frozen=True, kw_only=True)
class ControlNetConfig:
    """unet: of the U-Net that is controlled. hint_channels: one entry per size of the hint, each half the one before.

    The last size is that of the latents: four entries for an autoencoder of 8 pixels per position.
    """

    unet: UNetConfig
    hint_channels: tuple[int, ...] = (16, 32, 96, 256)

    def __post_init__(self) -> None:
        if not self.hint_channels or min(self.hint_channels) < 1:
            raise ConfigError(f"hint_channels={self.hint_channels} needs at least one entry above 0")


class HintEncoder(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] to (B, C, H/f, W/f), section 3.3: convolutions with SiLU, the last 0 at first."""

    def __init__(self, channels: tuple[int, ...], out_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for before, after in pairwise(channels):
            self.blocks += [nn.Conv2d(before, before, 3, padding=1), nn.Conv2d(before, after, 3, padding=1, stride=2)]
        self.conv_out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)

    def forward(self, hint: Tensor) -> Tensor:
        x = F.silu(self.conv_in(hint))
        for block in self.blocks:
            x = F.silu(block(x))
        return torch.as_tensor(self.conv_out(x))


class ControlNet(nn.Module):
    """What a picture adds to the states of a U-Net, in the form of `UNet`'s control."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        c = config.unet
        self.config = config
        self.encoder = UNet(c)
        del self.encoder.up, self.encoder.norm_out, self.encoder.conv_out  # the way up is the U-Net's alone
        self.hint = HintEncoder(config.hint_channels, c.channels[0])
        widths = [c.channels[0]]
        for channels in c.channels:
            widths += [channels] * (c.num_res_blocks + 1)
        widths.pop()  # no step down behind the coarsest level
        self.zeros = nn.ModuleList(nn.Conv2d(width, width, 1) for width in widths)
        self.zero_mid = nn.Conv2d(c.channels[-1], c.channels[-1], 1)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        hint: Tensor,
        *,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> list[Tensor]:
        """hint: (B, 3, f*H, f*W) in [0, 1], all else as for `UNet`. Out: what its `control` is.

        Raises ConfigError if the hint has not the size of the picture.
        """
        body = self.encoder
        emb = F.silu(body.embed(timesteps, pooled=pooled, sizes=sizes))
        seen = self.hint(hint)
        if seen.shape[-2:] != x.shape[-2:]:
            factor = 2 ** (len(self.config.hint_channels) - 1)
            wanted = " x ".join(str(factor * side) for side in x.shape[-2:])
            raise ConfigError("hint", why=f"has {hint.shape[-2]} x {hint.shape[-1]} pixels, not {wanted}")
        states = [body.conv_in(x) + seen]
        for level in body.down:
            states += level(states[-1], emb, context)
        middle = body.mid(states[-1], emb, context)
        return [layer(state) for layer, state in zip(self.zeros, states, strict=True)] + [self.zero_mid(middle)]

    def copy_from(self, unet: UNet) -> None:
        """Take the weights of the U-Net's way down and middle (figure 3, "trainable copy")."""
        own = unet.state_dict()
        self.encoder.load_state_dict({name: own[name] for name in self.encoder.state_dict()})

    def initialise(self, generator: torch.Generator | None) -> None:
        """torch's default, and zeros where the copy begins and ends; the copy's own weights are the U-Net's to give."""
        initialise_layers(self, generator)
        for layer in (self.hint.conv_out, *self.zeros, self.zero_mid):
            zero(layer)


class ControlledUNet(nn.Module):
    """A U-Net and what controls it, as one network. scale: how strongly."""

    def __init__(self, unet: UNet, control: ControlNet, *, scale: float = 1.0) -> None:
        super().__init__()
        self.unet, self.control, self.scale = unet, control, scale

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        *,
        hint: Tensor,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> Tensor:
        """As `UNet`, and hint as for `ControlNet`."""
        added = self.control(x, timesteps, context, hint, pooled=pooled, sizes=sizes)
        control = [self.scale * more for more in added]
        return torch.as_tensor(self.unet(x, timesteps, context, pooled=pooled, sizes=sizes, control=control))
