"""The U-Net of latent diffusion. Rombach et al. 2022, section 3.2; Podell et al. 2023 (SDXL), section 2.1.

Deviations: no dropout (all published configurations set it to 0), and 1x1 convolutions around transformers are linear.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.errors import ConfigError
from kiban.nn.attention import Attention
from kiban.nn.cross_attention import CrossAttention, CrossBlock, SpatialTransformer
from kiban.nn.feedforward import GatedFeedForward
from kiban.nn.norm import LayerNorm
from kiban.nn.residual import ResBlock, Upsample, initialise_layers, zero
from kiban.nn.timestep import Embedder, sinusoids

TRANSFORMER_EPS = 1e-6  # of the group norm before the positions look at each other; res-blocks have 1e-5


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Sizes of a U-Net. channels, depths and num_heads have one entry per level, finest first.

    depths: transformer blocks behind every res-block of a level, 0 for none. The middle has as many as the deepest level
    that has any. num_res_blocks: per level on the way down; one more on the way up. context_dim: width of the text states.
    added_dim: width of the pooled text and the embedded sizes together (SDXL), 0 if the model takes none.
    size_dim: width of one embedded size. conv_projections: files hold the layers around a transformer as 1x1 convolutions.
    """

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    context_dim: int
    in_channels: int = 4
    out_channels: int = 4
    num_res_blocks: int = 2
    num_groups: int = 32
    norm_eps: float = 1e-5
    added_dim: int = 0
    size_dim: int = 256
    conv_projections: bool = False

    def __post_init__(self) -> None:
        if not len(self.channels) == len(self.depths) == len(self.num_heads):
            lengths = f"{len(self.channels)}, {len(self.depths)} and {len(self.num_heads)}"
            raise ConfigError(f"channels, depths and num_heads need one entry per level, but have {lengths}")
        if not any(self.depths):
            raise ConfigError(f"depths={self.depths}: at least one level needs a transformer block")
        for channels, heads in zip(self.channels, self.num_heads, strict=True):
            if channels % self.num_groups:
                raise ConfigError(f"channels={channels} is not divisible by num_groups={self.num_groups}")
            if heads < 1 or channels % heads:
                raise ConfigError(f"channels={channels} is not divisible by num_heads={heads}")
        if self.channels[0] % 2 or self.size_dim % 2:
            raise ConfigError(f"channels={self.channels[0]} and size_dim={self.size_dim} must be even for sinusoids")

    @property
    def middle_depth(self) -> int:
        """Transformer blocks in the middle."""
        return next(depth for depth in reversed(self.depths) if depth)

    @property
    def emb_dim(self) -> int:
        """Width of the embedded timestep."""
        return 4 * self.channels[0]


def res_block(c: UNetConfig, in_channels: int, out_channels: int) -> ResBlock:
    """A res-block with the config's norm, told the timestep."""
    norm = partial(nn.GroupNorm, c.num_groups, eps=c.norm_eps)
    return ResBlock(in_channels, out_channels, norm=norm, time=nn.Linear(c.emb_dim, out_channels))


def transformer(c: UNetConfig, channels: int, num_heads: int, depth: int) -> SpatialTransformer:
    """depth blocks that look at the image and at the text."""
    return SpatialTransformer(
        channels,
        norm=nn.GroupNorm(c.num_groups, channels, eps=TRANSFORMER_EPS),
        blocks=[
            CrossBlock(
                attn=Attention(channels, num_heads, bias=True, qkv_bias=False),
                cross=CrossAttention(channels, num_heads, context_dim=c.context_dim),
                ffn=GatedFeedForward(channels, 4 * channels, activation=F.gelu, bias=True),
                norm=partial(LayerNorm, channels, eps=1e-5),
            )
            for _ in range(depth)
        ],
    )


class DownLevel(nn.Module):
    """Res-blocks, a transformer behind each if attn has any, then a step to the next coarser level.

    x: (B, C, H, W), emb: (B, E), context: (B, S, Dc) to the states behind every block and step, the last being the output.
    """

    def __init__(
        self, *, res: Sequence[ResBlock], attn: Sequence[SpatialTransformer], downsample: nn.Module | None
    ) -> None:
        super().__init__()
        self.res, self.attn, self.downsample = nn.ModuleList(res), nn.ModuleList(attn), downsample

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> list[Tensor]:
        states = []
        for i, res in enumerate(self.res):
            x = res(x, emb)
            if self.attn:
                x = self.attn[i](x, context)
            states.append(x)
        if self.downsample is not None:
            states.append(self.downsample(x))
        return states


class Middle(nn.Module):
    """Res-block, transformer, res-block. Arguments as for a level; x keeps its shape."""

    def __init__(self, *, res: Sequence[ResBlock], attn: SpatialTransformer) -> None:
        super().__init__()
        self.res, self.attn = nn.ModuleList(res), attn

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        first, second = self.res
        return torch.as_tensor(second(self.attn(first(x, emb), context), emb))


class UpLevel(nn.Module):
    """Res-blocks that also read a state of the way down, a transformer behind each, then a step to the next finer level.

    skips: the states of the way down; those used are taken off its end.
    """

    def __init__(
        self, *, res: Sequence[ResBlock], attn: Sequence[SpatialTransformer], upsample: Upsample | None
    ) -> None:
        super().__init__()
        self.res, self.attn, self.upsample = nn.ModuleList(res), nn.ModuleList(attn), upsample

    def forward(self, x: Tensor, emb: Tensor, context: Tensor, skips: list[Tensor]) -> Tensor:
        for i, res in enumerate(self.res):
            x = res(torch.cat((x, skips.pop()), dim=1), emb)
            if self.attn:
                x = self.attn[i](x, context)
        if self.upsample is not None:
            # The size of the way down, which an odd size does not share with twice the coarser level's.
            x = self.upsample(x, skips[-1].shape[-2:])
        return x


class UNet(nn.Module):
    """A noisy latent, its timestep and a text to what the model predicts of it (the noise, say)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        c = config
        self.config = config
        self.time = Embedder(c.channels[0], c.emb_dim)
        self.added = Embedder(c.added_dim, c.emb_dim) if c.added_dim else None
        self.conv_in = nn.Conv2d(c.in_channels, c.channels[0], 3, padding=1)
        self.down = nn.ModuleList(down_levels(c))
        coarsest = c.channels[-1]
        self.mid = Middle(
            res=[res_block(c, coarsest, coarsest) for _ in range(2)],
            attn=transformer(c, coarsest, c.num_heads[-1], c.middle_depth),
        )
        self.up = nn.ModuleList(_up_levels(c))
        self.norm_out = nn.GroupNorm(c.num_groups, c.channels[0], eps=c.norm_eps)
        self.conv_out = nn.Conv2d(c.channels[0], c.out_channels, 3, padding=1)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        *,
        pooled: Tensor | None = None,
        sizes: Tensor | None = None,
        control: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """(B, Cin, H, W), (B,) int64 or float of 0 .. 999, (B, S, Dc) to (B, Cout, H, W), of any H and W.

        pooled (B, Dp) and sizes (B, N) in pixels, for models with added_dim: the pooled text and the sizes and crops of
        SDXL. control: what a ControlNet adds to the states of the way down, in their order, and last to the middle's.
        Raises ConfigError if these do not fit the configuration.
        """
        emb = F.silu(self.embed(timesteps, pooled=pooled, sizes=sizes))  # every res-block begins with SiLU of it
        skips = [self.conv_in(x)]
        for level in self.down:
            skips += level(skips[-1], emb, context)
        x = self.mid(skips[-1], emb, context)
        if control is not None:
            if len(control) != len(skips) + 1:
                raise ConfigError("control", why=f"has {len(control)} residuals, this model takes {len(skips) + 1}")
            *added, last = control
            skips, x = [skip + more for skip, more in zip(skips, added, strict=True)], x + last
        for level in self.up:
            x = level(x, emb, context, skips)
        return torch.as_tensor(self.conv_out(F.silu(self.norm_out(x))))

    def embed(self, timesteps: Tensor, *, pooled: Tensor | None = None, sizes: Tensor | None = None) -> Tensor:
        """The condition of all res-blocks, (B, E). Arguments as in `forward`."""
        dtype = self.time.up.weight.dtype
        emb = self.time(sinusoids(timesteps, self.config.channels[0]).to(dtype))
        if self.added is None:
            if pooled is not None or sizes is not None:
                raise ConfigError("pooled and sizes", why="this model takes neither (its added_dim is 0)")
            return torch.as_tensor(emb)
        if pooled is None or sizes is None:
            raise ConfigError("pooled and sizes", why="this model needs both: the pooled text, and sizes in pixels")
        more = torch.cat((pooled, sinusoids(sizes, self.config.size_dim).flatten(1).to(pooled.dtype)), dim=1)
        if more.shape[1] != self.config.added_dim:
            why = f"embed to a width of {more.shape[1]}, this model takes {self.config.added_dim}"
            raise ConfigError("pooled and sizes", why=why)
        return torch.as_tensor(emb + self.added(more.to(dtype)))

    def initialise(self, generator: torch.Generator | None) -> None:
        """torch's default; what ends a res-block, a transformer and the model is 0 (Dhariwal & Nichol 2021, code)."""
        initialise_layers(self, generator)
        for part in self.modules():
            if isinstance(part, ResBlock):
                zero(part.conv2)
            elif isinstance(part, SpatialTransformer):
                zero(part.proj_out)
        zero(self.conv_out)


def down_levels(c: UNetConfig) -> Iterator[DownLevel]:
    """The way down, finest first; a ControlNet has the same."""
    before = c.channels[0]
    for level, (channels, depth, heads) in enumerate(zip(c.channels, c.depths, c.num_heads, strict=True)):
        inputs = [before] + [channels] * (c.num_res_blocks - 1)
        last = level == len(c.channels) - 1
        yield DownLevel(
            res=[res_block(c, width, channels) for width in inputs],
            attn=[transformer(c, channels, heads, depth) for _ in inputs if depth],
            downsample=None if last else nn.Conv2d(channels, channels, 3, stride=2, padding=1),
        )
        before = channels


def _up_levels(c: UNetConfig) -> Iterator[UpLevel]:
    """The way up, coarsest first."""
    skips = [c.channels[0]]
    for channels in c.channels:
        skips += [channels] * (c.num_res_blocks + 1)
    skips.pop()  # no step down behind the coarsest level
    before = c.channels[-1]
    for level in reversed(range(len(c.channels))):
        channels, depth, heads = c.channels[level], c.depths[level], c.num_heads[level]
        inputs = [before] + [channels] * c.num_res_blocks
        yield UpLevel(
            res=[res_block(c, width + skips.pop(), channels) for width in inputs],
            attn=[transformer(c, channels, heads, depth) for _ in inputs if depth],
            upsample=Upsample(channels) if level else None,
        )
        before = channels
