"""A Stable Diffusion arranged for speed on a CPU: states stay in the order (B, H, W, C) that convolutions and linear layers
both like, convolutions do with fewer products, and nothing is computed twice. What the text alone decides is done once for a
picture, and up to the first look at the text the branches of guidance are one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban import zoo
from kiban.engine.convolution import Conv
from kiban.engine.reordered import Reordered
from kiban.errors import ConfigError
from kiban.families.stable_diffusion import StableDiffusion
from kiban.generate.denoiser import Predictor
from kiban.nn.attention import attend
from kiban.nn.residual import ResBlock

LAYERS = ("kiban.nn.", "torch.nn.modules.")  # what LoRA puts in their place is computed by nobody here
MEMORY = 2.0  # that there has to be for a plan and its states, in sizes of U-Net and autoencoder

Texts = Iterator[tuple[Tensor, Tensor]]  # keys and values of the text, (B, H, S, Dh), for the cross-attentions in order


class DrawingPlan:
    """What `generate.draw` asks in place of a model's own U-Net and decoder, to rounding the same, in float32.

    The weights are those of the moment of construction. Raises ConfigError if the model is none that `fits`.
    """

    def __init__(self, loaded: zoo.Loaded) -> None:
        module = loaded.module
        if not self.fits(loaded) or not isinstance(module, StableDiffusion):
            raise ConfigError(loaded.source, why="is not a Stable Diffusion on the CPU in float32, or too large twice")
        self.scale, self._made_from = loaded.config.vae.latent_scale, _state_of(module)
        self._unet, self._decoder = _UNet(module.unet), _Decoder(module.vae)

    @staticmethod
    def fits(loaded: zoo.Loaded) -> bool:
        """Whether a plan can be made: plain layers in float32 on the CPU, and memory for their weights once more."""
        module = loaded.module
        if not isinstance(module, StableDiffusion):
            return False
        bodies = (module.unet, module.vae)
        weights = [p for body in bodies for p in body.parameters()]
        return (
            all(type(part).__module__.startswith(LAYERS) for body in bodies for part in body.modules())
            and all(p.device.type == "cpu" and p.dtype == torch.float32 for p in weights)
            and MEMORY * sum(4 * p.numel() for p in weights) < psutil.virtual_memory().available
        )

    def is_of(self, loaded: zoo.Loaded) -> bool:
        """Whether it still computes what this model does: no weight was changed, and no layer exchanged."""
        return isinstance(loaded.module, StableDiffusion) and self._made_from == _state_of(loaded.module)

    def prepare(self, *, context: Tensor, pooled: Tensor | None = None, sizes: Tensor | None = None) -> Predictor:
        """The U-Net that was told this: (x, timesteps) to its prediction, all as in `UNet`, but that x may have fewer rows.

        Its rows then belong to the first rows of the context, and to as many after them, and so on.
        """
        return self._unet.prepare(context, pooled, sizes)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """As `StableDiffusion.decode_image`."""
        return self._decoder(latents / self.scale)


def _state_of(module: StableDiffusion) -> list[tuple[str, int, int]]:
    """What differs once a weight was exchanged or changed; weights from inference mode count no changes."""
    return [
        (name, p.data_ptr(), 0 if p.is_inference() else p._version)
        for body in (module.unet, module.vae)
        for name, p in body.named_parameters()
    ]


class _Norm:
    """Group norm over (B, H, W, C)."""

    def __init__(self, norm: Any) -> None:
        self.num_groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight.detach(), norm.bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        normed = F.group_norm(x.permute(0, 3, 1, 2), self.num_groups, self.weight, self.bias, self.eps)
        return normed.permute(0, 2, 3, 1).contiguous()


class _Res:
    """A ResBlock over (B, H, W, C)."""

    def __init__(self, block: Any) -> None:
        assert isinstance(block, ResBlock)
        self.norm1, self.conv1 = _Norm(block.norm1), Conv(block.conv1)
        self.time = block.time
        self.norm2, self.conv2 = _Norm(block.norm2), Conv(block.conv2)
        self.skip = None if isinstance(block.skip, nn.Identity) else _linear(block.skip)

    def __call__(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        shift = None if self.time is None else _rows(self.time(emb), len(x))
        inner = self.conv1(self.norm1(x), silu=True, shift=shift)
        return self.conv2(self.norm2(inner), silu=True, plus=x if self.skip is None else self.skip(x))


class _Attention:
    """Self-attention over x (B, T, D), added to plus."""

    def __init__(self, attn: Any) -> None:
        self.num_heads = attn.num_heads
        parts = (attn.q, attn.k, attn.v)
        bias = None if attn.q.bias is None else torch.cat([part.bias.detach() for part in parts])
        self.qkv = Reordered(torch.cat([part.weight.detach() for part in parts]), bias)
        self.out = _linear(attn.o)

    def __call__(self, x: Tensor, plus: Tensor) -> Tensor:
        q, k, v = (_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, -1))
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2), plus=plus)


class _Block:
    """A CrossBlock whose text is settled."""

    def __init__(self, block: Any) -> None:
        cross, ffn = block.cross, block.ffn
        assert ffn.activation is F.gelu
        self.norm1, self.attn = block.norm1, _Attention(block.attn)
        self.norm2, self.q, self.out, self.num_heads = block.norm2, _linear(cross.q), _linear(cross.o), cross.num_heads
        self.k, self.v = cross.k, cross.v
        self.norm3, self.down = block.norm3, _linear(ffn.down)
        self.gate, self.up = _linear(ffn.gate, gelu=True), _linear(ffn.up)

    def text(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, Dh) of (B, S, Dc)."""
        return _heads(self.k(context), self.num_heads), _heads(self.v(context), self.num_heads)

    def __call__(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        x = _rows(self.attn(self.norm1(x), x), len(k))
        q = _heads(self.q(self.norm2(x)), self.num_heads)
        x = self.out(attend(q, k, v).transpose(1, 2).flatten(2), plus=x)
        normed = self.norm3(x)
        gate = self.gate(normed)
        if self.up.ops:
            both = torch.ops.mkldnn._linear_pointwise.binary(normed, gate, self.up.weight, self.up.bias, "mul")
        else:
            both = self.up(normed).mul_(gate)
        return self.down(both, plus=x)


class _Transformer:
    """A SpatialTransformer over (B, H, W, C)."""

    def __init__(self, part: Any) -> None:
        self.norm, self.proj_in, self.proj_out = _Norm(part.norm), _linear(part.proj_in), _linear(part.proj_out)
        self.blocks = [_Block(block) for block in part.blocks]

    def __call__(self, x: Tensor, texts: Texts) -> Tensor:
        inner = self.proj_in(self.norm(x).flatten(1, 2))  # (B, H*W, C)
        for block in self.blocks:
            inner = block(inner, *next(texts))
        x = _rows(x, len(inner))
        return self.proj_out(inner, plus=x.flatten(1, 2)).view(x.shape)


class _Level:
    """A level of the way down or up: res-blocks and a transformer behind each if there are any."""

    def __init__(self, level: Any) -> None:
        self.res, self.attn = [_Res(res) for res in level.res], [_Transformer(attn) for attn in level.attn]
        down, up = getattr(level, "downsample", None), getattr(level, "upsample", None)
        self.downsample, self.upsample = down and Conv(down), up and Conv(up.conv)

    def step(self, number: int, x: Tensor, emb: Tensor, texts: Texts) -> Tensor:
        x = self.res[number](x, emb)
        return self.attn[number](x, texts) if self.attn else x


class _UNet:
    def __init__(self, unet: Any) -> None:
        self.embed, self.conv_in = unet.embed, Conv(unet.conv_in)
        self.down, self.up = ([_Level(level) for level in levels] for levels in (unet.down, unet.up))
        self.mid = [_Res(res) for res in unet.mid.res]
        self.mid_attn = _Transformer(unet.mid.attn)
        self.norm_out, self.conv_out = _Norm(unet.norm_out), Conv(unet.conv_out)

    @torch.inference_mode()
    def prepare(self, context: Tensor, pooled: Tensor | None, sizes: Tensor | None) -> Predictor:
        attns = [attn for level in self.down for attn in level.attn] + [self.mid_attn]
        attns += [attn for level in self.up for attn in level.attn]
        texts = [block.text(context) for attn in attns for block in attn.blocks]

        @torch.inference_mode()
        def predict(x: Tensor, timesteps: Tensor) -> Tensor:
            if pooled is not None:
                timesteps = _rows(timesteps, len(pooled))
            emb = F.silu(self.embed(timesteps, pooled=pooled, sizes=sizes))
            return _rows(self(x, emb, iter(texts)), len(context))

        return predict

    def __call__(self, x: Tensor, emb: Tensor, texts: Texts) -> Tensor:
        """(B, Cin, H, W), (B, E) to (B, Cout, H, W)."""
        x = _rows(self.conv_in(x.permute(0, 2, 3, 1).contiguous()), len(emb))
        skips = [x]
        for level in self.down:
            for number in range(len(level.res)):
                x = level.step(number, x, emb, texts)
                skips.append(x)
            if level.downsample is not None:
                x = level.downsample(x)
                skips.append(x)
        first, second = self.mid
        x = second(self.mid_attn(first(x, emb), texts), emb)
        for level in self.up:
            for number in range(len(level.res)):
                x = level.step(number, torch.cat((x, _rows(skips.pop(), len(x))), dim=3), emb, texts)
            if level.upsample is not None:
                x = level.upsample(_enlarged(x, skips[-1].shape[1:3]))
        return self.conv_out(self.norm_out(x), silu=True).permute(0, 3, 1, 2)


class _Decoder:
    """The way from latents to images of a VAE."""

    def __init__(self, vae: Any) -> None:
        body = vae.decoder
        self.post_quant, self.conv_in = _linear(vae.post_quant), Conv(body.conv_in)
        self.mid = [_Res(res) for res in body.mid.res]
        self.norm, self.attn = _Norm(body.mid.attn.norm), _Attention(body.mid.attn.attn)
        self.levels = [
            ([_Res(res) for res in level.res], level.upsample and Conv(level.upsample.conv)) for level in body.levels
        ]
        self.norm_out, self.conv_out = _Norm(body.norm_out), Conv(body.conv_out)

    def __call__(self, latents: Tensor) -> Tensor:
        first, second = self.mid
        x = first(self.conv_in(self.post_quant(latents.permute(0, 2, 3, 1).contiguous())))
        x = second(self.attn(self.norm(x).flatten(1, 2), x.flatten(1, 2)).view(x.shape))
        for res, upsample in self.levels:
            for block in res:
                x = block(x)
            if upsample is not None:
                x = upsample(_enlarged(x, torch.Size((2 * x.shape[1], 2 * x.shape[2]))))
        return self.conv_out(self.norm_out(x), silu=True).permute(0, 3, 1, 2)


def _rows(x: Tensor, count: int) -> Tensor:
    """x (B, ...), repeated to so many rows."""
    return x if len(x) == count else x.repeat(count // len(x), *[1] * (x.ndim - 1))


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, T, H*Dh) to (B, H, T, Dh)."""
    return x.view(*x.shape[:2], num_heads, -1).transpose(1, 2)


def _enlarged(x: Tensor, size: torch.Size) -> Tensor:
    """Nearest neighbours, (B, h, w, C) to (B, H, W, C)."""
    return F.interpolate(x.permute(0, 3, 1, 2), size=size, mode="nearest").permute(0, 2, 3, 1).contiguous()


def _linear(layer: Any, *, gelu: bool = False) -> Reordered:
    """A linear layer, or a 1x1 convolution, which is one over the last axis."""
    bias = None if layer.bias is None else layer.bias.detach()
    return Reordered(layer.weight.detach().flatten(1), bias, gelu=gelu)
