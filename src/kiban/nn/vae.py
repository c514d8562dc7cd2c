"""The variational autoencoder of latent diffusion. Rombach et al. 2022, section 3.1 and appendix G (the KL variant)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.errors import ConfigError
from kiban.nn.attention import Attention, Context
from kiban.nn.residual import ResBlock, Upsample, initialise_layers


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Sizes of the autoencoder. channels: one entry per level, finest first; each level but the last halves the image.

    num_res_blocks: per level of the encoder; the decoder has one more. latent_scale: what latents are multiplied by to
    have a deviation of 1, which diffusion expects; `VAE` itself gives and takes them unscaled.
    """

    channels: tuple[int, ...] = (128, 256, 512, 512)
    image_channels: int = 3
    latent_channels: int = 4
    num_res_blocks: int = 2
    num_groups: int = 32
    norm_eps: float = 1e-6
    latent_scale: float = 0.18215

    def __post_init__(self) -> None:
        if not self.channels:
            raise ConfigError("channels needs at least one level")
        for channels in self.channels:
            if channels % self.num_groups:
                raise ConfigError(f"channels={channels} is not divisible by num_groups={self.num_groups}")
        if not self.latent_scale > 0:
            raise ConfigError(f"latent_scale={self.latent_scale} must be above 0")

    @property
    def factor(self) -> int:
        """Pixels per latent position, along one side."""
        return int(2 ** (len(self.channels) - 1))


@dataclass(frozen=True)
class Gaussian:
    """Independent normal distributions: mean and logvar (B, C, h, w)."""

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """A draw, (B, C, h, w), differentiable in mean and logvar. A CPU generator gives the same on every device."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean.device)

    def mode(self) -> Tensor:
        """The most likely value, (B, C, h, w)."""
        return self.mean

    def kl(self) -> Tensor:
        """Kullback-Leibler divergence from N(0, 1), in nats, summed over each example: (B,)."""
        return 0.5 * (self.mean.pow(2) + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(1)


class ImageAttention(nn.Module):
    """x + attention of one head over the positions of norm(x). x: (B, C, H, W), same shape out."""

    def __init__(self, *, norm: nn.Module, attn: Attention) -> None:
        super().__init__()
        self.norm, self.attn = norm, attn

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.as_tensor(self.attn(self.norm(x).flatten(2).mT, Context()))  # (B, H*W, C)
        return x + mixed.mT.reshape(x.shape)


class Downsample(nn.Module):
    """Halves the sides of x (B, C, H, W). Zeros stand right and below only, as in the published weights' training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.conv(F.pad(x, (0, 1, 0, 1))))


class EncoderLevel(nn.Module):
    """Res-blocks, then half the size unless it is the last level."""

    def __init__(self, *, res: Sequence[ResBlock], downsample: Downsample | None) -> None:
        super().__init__()
        self.res, self.downsample = nn.Sequential(*res), downsample

    def forward(self, x: Tensor) -> Tensor:
        x = self.res(x)
        return x if self.downsample is None else torch.as_tensor(self.downsample(x))


class DecoderLevel(nn.Module):
    """Res-blocks, then twice the size unless it is the last level."""

    def __init__(self, *, res: Sequence[ResBlock], upsample: Upsample | None) -> None:
        super().__init__()
        self.res, self.upsample = nn.Sequential(*res), upsample

    def forward(self, x: Tensor) -> Tensor:
        x = self.res(x)
        return x if self.upsample is None else torch.as_tensor(self.upsample(x, (2 * x.shape[2], 2 * x.shape[3])))


class Middle(nn.Module):
    """Res-block, attention, res-block; x (B, C, H, W) keeps its shape."""

    def __init__(self, *, res: Sequence[ResBlock], attn: ImageAttention) -> None:
        super().__init__()
        self.res, self.attn = nn.ModuleList(res), attn

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.res
        return torch.as_tensor(second(self.attn(first(x))))


class Encoder(nn.Module):
    """Images (B, 3, H, W) to twice the latent channels, (B, 2C, H/f, W/f): means and log variances."""

    def __init__(self, c: VAEConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(c.image_channels, c.channels[0], 3, padding=1)
        self.levels = nn.Sequential(*_encoder_levels(c))
        self.mid = _middle(c)
        self.norm_out = _norm(c)(c.channels[-1])
        self.conv_out = nn.Conv2d(c.channels[-1], 2 * c.latent_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return torch.as_tensor(self.conv_out(F.silu(self.norm_out(self.mid(self.levels(self.conv_in(image)))))))


class Decoder(nn.Module):
    """Latents (B, C, h, w) to images (B, 3, fh, fw)."""

    def __init__(self, c: VAEConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(c.latent_channels, c.channels[-1], 3, padding=1)
        self.mid = _middle(c)
        self.levels = nn.Sequential(*_decoder_levels(c))
        self.norm_out = _norm(c)(c.channels[0])
        self.conv_out = nn.Conv2d(c.channels[0], c.image_channels, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        return torch.as_tensor(self.conv_out(F.silu(self.norm_out(self.levels(self.mid(self.conv_in(latent)))))))


class VAE(nn.Module):
    """Images in [-1, 1] to distributions of latents, and back."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        c = config
        self.config = config
        self.encoder, self.decoder = Encoder(c), Decoder(c)
        self.quant = nn.Conv2d(2 * c.latent_channels, 2 * c.latent_channels, 1)
        self.post_quant = nn.Conv2d(c.latent_channels, c.latent_channels, 1)

    def encode(self, image: Tensor) -> Gaussian:
        """(B, 3, H, W) in [-1, 1] to latents of (B, C, H/f, W/f), unscaled; a rest of less than f pixels is cut off."""
        mean, logvar = self.quant(self.encoder(image)).chunk(2, dim=1)
        # Beyond these bounds the deviation leaves the range of float16 and the KL that of use.
        return Gaussian(mean, logvar.clamp(-30.0, 20.0))

    def decode(self, latent: Tensor) -> Tensor:
        """Unscaled latents (B, C, h, w) to images (B, 3, f*h, f*w), not clamped to [-1, 1]."""
        return torch.as_tensor(self.decoder(self.post_quant(latent)))

    def forward(self, image: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Gaussian]:
        """The image decoded from a sample of its latents, and their distribution: one step of training."""
        latents = self.encode(image)
        return self.decode(latents.sample(generator)), latents

    def initialise(self, generator: torch.Generator | None) -> None:
        """torch's default, as the released code does."""
        initialise_layers(self, generator)


def _norm(c: VAEConfig) -> partial[nn.GroupNorm]:
    return partial(nn.GroupNorm, c.num_groups, eps=c.norm_eps)


def _middle(c: VAEConfig) -> Middle:
    width, norm = c.channels[-1], _norm(c)
    return Middle(
        res=[ResBlock(width, width, norm=norm) for _ in range(2)],
        attn=ImageAttention(norm=norm(width), attn=Attention(width, 1, bias=True)),
    )


def _encoder_levels(c: VAEConfig) -> Iterator[EncoderLevel]:
    before = c.channels[0]
    for level, channels in enumerate(c.channels):
        inputs = [before] + [channels] * (c.num_res_blocks - 1)
        last = level == len(c.channels) - 1
        yield EncoderLevel(
            res=[ResBlock(width, channels, norm=_norm(c)) for width in inputs],
            downsample=None if last else Downsample(channels),
        )
        before = channels


def _decoder_levels(c: VAEConfig) -> Iterator[DecoderLevel]:
    """Coarsest first."""
    before = c.channels[-1]
    for level, channels in reversed(list(enumerate(c.channels))):
        inputs = [before] + [channels] * c.num_res_blocks
        yield DecoderLevel(
            res=[ResBlock(width, channels, norm=_norm(c)) for width in inputs],
            upsample=Upsample(channels) if level else None,
        )
        before = channels
