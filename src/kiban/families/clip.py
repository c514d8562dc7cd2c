"""CLIP. Radford et al. 2021. A text tower and a vision tower (ViT or ResNet) whose embeddings of one pair agree.

Deviations: the initial weights of the vision transformer follow the text tower's, since the paper states none; images
have the tower's own size, positions are not interpolated. Nothing of the released sizes is unpublished; ViT-H/14 and bigG
are OpenCLIP's (Cherti et al. 2023), whose text towers Stable Diffusion 2 and XL use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.config import Family, Traits
from kiban.errors import ConfigError, LimitError
from kiban.inputs.tokenizer import Tokenizer, pad_batch
from kiban.nn import init
from kiban.nn.attention import Attention, Context
from kiban.nn.block import PreNormBlock
from kiban.nn.feedforward import FeedForward
from kiban.nn.norm import LayerNorm
from kiban.nn.patch import PatchEmbedding
from kiban.nn.resnet import ModifiedResNet
from kiban.nn.stack import Stack
from kiban.weights import clip_config, clip_names
from kiban.weights.names import NameTable

FIRST_SCALE, MAX_SCALE = math.log(1 / 0.07), math.log(100)


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), a near form of GELU (Hendrycks & Gimpel 2016, section 2) that OpenAI's weights are made for."""
    return x * torch.sigmoid(1.702 * x)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What both kinds of transformer have. embed_dim None: no projection, as in Stable Diffusion's text encoders.

    quick_gelu: OpenAI's form of GELU, else the exact one.
    """

    num_layers: int
    dim: int
    num_heads: int
    ffn_dim: int
    embed_dim: int | None
    norm_eps: float = 1e-5
    quick_gelu: bool = True

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.dim % self.num_heads:
            raise ConfigError(f"dim={self.dim} is not divisible by num_heads={self.num_heads}")


@dataclass(frozen=True, kw_only=True)
class TextConfig(TransformerConfig):
    """A text tower. eos_id: its state stands for the text, where it comes first; None: that of the largest id does.

    Raises ConfigError for an eos_id of 2, which configurations of Hugging Face use to say "the largest id".
    """

    vocab_size: int = 49408
    max_seq_len: int = 77
    eos_id: int | None = 49407

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eos_id == 2:
            hint = "give the end of text another id, or None if it has the largest"
            raise ConfigError("eos_id", why="2 means the largest id in Hugging Face's files", hint=hint)


@dataclass(frozen=True, kw_only=True)
class VisionConfig(TransformerConfig):
    """A vision transformer. Sizes in pixels."""

    image_size: int
    patch_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise ConfigError(f"image_size={self.image_size} is not divisible by patch_size={self.patch_size}")


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """A ResNet; see `kiban.nn.resnet`."""

    num_blocks: tuple[int, ...]
    width: int
    num_heads: int
    image_size: int
    embed_dim: int


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Two towers that end in one space."""

    text: TextConfig
    vision: VisionConfig | ResNetConfig

    def __post_init__(self) -> None:
        if self.text.embed_dim is None or self.text.embed_dim != self.vision.embed_dim:
            why = f"text has {self.text.embed_dim}, vision {self.vision.embed_dim}"
            raise ConfigError("embed_dim", why=why, hint="both towers need the same one")

    @property
    def embed_dim(self) -> int:
        """Width of the common space."""
        return int(self.text.embed_dim or 0)


def _blocks(c: TransformerConfig) -> Stack:
    return Stack(
        PreNormBlock(
            attn=Attention(c.dim, c.num_heads, bias=True, layer=layer),
            ffn=FeedForward(c.dim, c.ffn_dim, activation=quick_gelu if c.quick_gelu else F.gelu),
            norm=partial(LayerNorm, c.dim, eps=c.norm_eps),
        )
        for layer in range(c.num_layers)
    )


def _projection(c: TransformerConfig) -> nn.Module:
    return nn.Identity() if c.embed_dim is None else nn.Linear(c.dim, c.embed_dim, bias=False)


def _initialise(tower: nn.Module, c: TransformerConfig, generator: torch.Generator | None) -> None:
    """Matrices as the released code: D^-1/2, (2D)^-1/2 into the feed-forward, 1/sqrt(2L) of D^-1/2 out of a branch."""
    init.constants(tower)
    width = c.dim**-0.5
    stds = {"attn.o.weight": width, "ffn.down.weight": width, "ffn.up.weight": (2 * c.dim) ** -0.5}
    for name, parameter in tower.named_parameters():
        if parameter.ndim == 2:
            branch = name.endswith(("attn.o.weight", "ffn.down.weight"))
            std = next((std for end, std in stds.items() if name.endswith(end)), width)
            init.normal(parameter, std * (2 * c.num_layers) ** -0.5 if branch else std, generator)


class TextTower(nn.Module):
    """tokens (B, T) int64 to what stands for each text, (B, E), or (B, D) in a tower without projection.

    Attention looks back only, so that padding behind the end of a text changes nothing in front of it.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        c = config
        self.config = config
        self.embed, self.position = nn.Embedding(c.vocab_size, c.dim), nn.Embedding(c.max_seq_len, c.dim)
        self.blocks = _blocks(c)
        self.norm = LayerNorm(c.dim, eps=c.norm_eps)
        self.projection = _projection(c)

    def hidden(self, tokens: Tensor, *, skip: int = 0, norm: bool = True) -> Tensor:
        """States (B, T, D), skip layers before the last, with the final norm or without.

        Raises LimitError if the text is longer than the positions.
        """
        assert 0 <= skip <= len(self.blocks)
        x = self._run(self._embedded(tokens), slice(0, len(self.blocks) - skip))
        return torch.as_tensor(self.norm(x)) if norm else x

    def hidden_and_embedding(self, tokens: Tensor, *, skip: int) -> tuple[Tensor, Tensor]:
        """hidden(tokens, skip=skip, norm=False) and self(tokens), in one pass."""
        part = len(self.blocks) - skip
        early = self._run(self._embedded(tokens), slice(0, part))
        last = self._run(early, slice(part, None))
        return early, torch.as_tensor(self.projection(self._at_end(tokens, self.norm(last))))

    def pooled(self, tokens: Tensor) -> Tensor:
        """The last state, normed, of the end of each text, (B, D). Every row holds an end of text."""
        return self._at_end(tokens, self.hidden(tokens))

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.as_tensor(self.projection(self.pooled(tokens)))

    def initialise(self, generator: torch.Generator | None) -> None:
        """As section 2.4 and the released code."""
        _initialise(self, self.config, generator)
        init.normal(self.embed.weight, 0.02, generator)
        init.normal(self.position.weight, 0.01, generator)

    def _embedded(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        if length > self.config.max_seq_len:
            raise LimitError("tokens", why=f"{length} exceed the {self.config.max_seq_len} positions")
        return torch.as_tensor(self.embed(tokens) + self.position.weight[:length])  # (B, T, D)

    def _run(self, x: Tensor, layers: slice) -> Tensor:
        context = Context(causal=True)
        for block in list(self.blocks)[layers]:
            x = block(x, context)
        return x

    def _at_end(self, tokens: Tensor, states: Tensor) -> Tensor:
        eos = self.config.eos_id
        place = tokens.argmax(-1) if eos is None else (tokens == eos).int().argmax(-1)
        return states[torch.arange(len(tokens), device=tokens.device), place]


class VisionTower(nn.Module):
    """pixels (B, 3, S, S), S = image_size, to embeddings (B, E). Raises LimitError for another size."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        c, norm = config, partial(LayerNorm, config.dim, eps=config.norm_eps)
        self.config = config
        self.patches = PatchEmbedding(c.dim, c.patch_size)
        self.cls = nn.Parameter(torch.empty(c.dim))
        self.position = nn.Embedding((c.image_size // c.patch_size) ** 2 + 1, c.dim)
        self.norm_in, self.blocks, self.norm_out = norm(), _blocks(c), norm()
        self.projection = _projection(c)

    def hidden(self, pixels: Tensor) -> Tensor:
        """Last states (B, 1 + N, D) of the class token and the patches, without the final norm."""
        size = self.config.image_size
        if pixels.shape[-2:] != (size, size):
            why = f"are {pixels.shape[-1]} x {pixels.shape[-2]} pixels, this model reads {size} x {size}"
            raise LimitError("pixels", why=why, hint="make them with kiban.inputs.image.clip_pixels")
        patches = self.patches(pixels)  # (B, N, D)
        x = torch.cat((self.cls.to(patches.dtype).expand(len(patches), 1, -1), patches), dim=1) + self.position.weight
        return torch.as_tensor(self.blocks(self.norm_in(x), Context()))

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.as_tensor(self.projection(self.norm_out(self.hidden(pixels)[:, 0])))

    def initialise(self, generator: torch.Generator | None) -> None:
        """As the text tower; class token and positions D^-1/2, patches (3 P^2)^-1/2."""
        _initialise(self, self.config, generator)
        init.normal(self.cls, self.config.dim**-0.5, generator)
        init.normal(self.patches.conv.weight, (3 * self.config.patch_size**2) ** -0.5, generator)


class CLIP(nn.Module):
    """Embeddings of length 1 of texts and images; how alike two are is their product."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.text = TextTower(config.text)
        self.vision = _vision(config.vision)
        self.logit_scale = nn.Parameter(torch.tensor(FIRST_SCALE))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 to (B, E), of length 1."""
        return F.normalize(self.text(tokens), dim=-1)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, E), of length 1."""
        return F.normalize(self.vision(pixels), dim=-1)

    def scale(self) -> Tensor:
        """What products are multiplied by before a softmax, a scalar of at most 100 (section 2.5)."""
        if self.training:
            # The parameter itself stays in range: a clamp on the way alone would leave it without a gradient outside.
            with torch.no_grad():
                self.logit_scale.clamp_(0.0, MAX_SCALE)
        return self.logit_scale.exp()

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Logits (images, texts)."""
        return self.scale() * self.encode_image(pixels) @ self.encode_text(tokens).mT

    def initialise(self, generator: torch.Generator | None) -> None:
        """The scale alone; towers draw their own."""
        nn.init.constant_(self.logit_scale, FIRST_SCALE)


def text_batch(tokenizer: Tokenizer, texts: Sequence[str], c: TextConfig) -> Tensor:
    """tokens (B, T) int64 of texts: each ends as c says, also one that is cut to its positions, and is padded with the end.

    Raises ConfigError if neither c nor the tokenizer has an end of text.
    """
    eos = tokenizer.eos_id if c.eos_id is None else c.eos_id
    if eos is None:
        raise ConfigError("tokenizer", why="has no end of text, whose state stands for the text in CLIP")
    rows = [row[: row.index(eos)] if eos in row else row for row in tokenizer.encode_batch(texts)]
    return pad_batch([[*row[: c.max_seq_len - 1], eos] for row in rows], eos)[0]


def _vision(c: VisionConfig | ResNetConfig) -> VisionTower | ModifiedResNet:
    if isinstance(c, VisionConfig):
        return VisionTower(c)
    return ModifiedResNet(
        c.num_blocks, width=c.width, num_heads=c.num_heads, image_size=c.image_size, embed_dim=c.embed_dim
    )


def config_of(settings: Mapping[str, Any]) -> CLIPConfig:
    vision = settings["vision"]
    kind = ResNetConfig if "num_blocks" in vision else VisionConfig
    return CLIPConfig(text=TextConfig(**settings["text"]), vision=kind(**vision))


def from_hf(values: Mapping[str, Any]) -> CLIPConfig:
    """config.json of a CLIPModel."""
    return config_of(clip_config.from_hf(values))


def to_hf(c: CLIPConfig) -> dict[str, Any]:
    """config.json that transformers reads. Raises FormatError for a ResNet."""
    return clip_config.to_hf(asdict(c))


def hf_names(c: CLIPConfig) -> NameTable:
    """CLIPModel. Raises FormatError for a ResNet."""
    to_hf(c)
    return clip_names.hf()


def _text(dim: int, embed_dim: int, *, num_layers: int = 12, quick: bool = True) -> TextConfig:
    return TextConfig(
        num_layers=num_layers, dim=dim, num_heads=dim // 64, ffn_dim=4 * dim, embed_dim=embed_dim, quick_gelu=quick
    )


def _vit(
    num_layers: int,
    dim: int,
    patch_size: int,
    text: TextConfig,
    *,
    image_size: int = 224,
    ffn_dim: int = 0,
    heads: int = 0,
) -> CLIPConfig:
    vision = VisionConfig(
        num_layers=num_layers,
        dim=dim,
        num_heads=heads or dim // 64,
        ffn_dim=ffn_dim or 4 * dim,
        embed_dim=text.embed_dim,
        quick_gelu=text.quick_gelu,
        image_size=image_size,
        patch_size=patch_size,
    )
    return CLIPConfig(text=text, vision=vision)


def _resnet(num_blocks: tuple[int, ...], width: int, image_size: int, embed_dim: int, text_dim: int) -> CLIPConfig:
    vision = ResNetConfig(
        num_blocks=num_blocks, width=width, num_heads=width // 2, image_size=image_size, embed_dim=embed_dim
    )
    return CLIPConfig(text=_text(text_dim, embed_dim), vision=vision)


# Sizes of table 19 and 20; ViT-H/14 and bigG/14 of Cherti et al. 2023. The tiny one reads 64 x 64 pixels and 32 tokens.
PRESETS = {
    "clip-vit-b-32": _vit(12, 768, 32, _text(512, 512)),
    "clip-vit-b-16": _vit(12, 768, 16, _text(512, 512)),
    "clip-vit-l-14": _vit(24, 1024, 14, _text(768, 768)),
    "clip-vit-l-14-336": _vit(24, 1024, 14, _text(768, 768), image_size=336),
    "clip-rn50": _resnet((3, 4, 6, 3), 64, 224, 1024, 512),
    "clip-rn101": _resnet((3, 4, 23, 3), 64, 224, 512, 512),
    "clip-rn50x4": _resnet((4, 6, 10, 6), 80, 288, 640, 640),
    "clip-rn50x16": _resnet((6, 8, 18, 8), 96, 384, 768, 768),
    "clip-rn50x64": _resnet((3, 15, 36, 10), 128, 448, 1024, 1024),
    "clip-vit-h-14": _vit(32, 1280, 14, _text(1024, 1024, num_layers=24, quick=False), heads=16),
    "clip-vit-bigg-14": _vit(48, 1664, 14, _text(1280, 1280, num_layers=32, quick=False), heads=16, ffn_dim=8192),
    "clip-tiny": CLIPConfig(
        text=TextConfig(
            num_layers=4, dim=128, num_heads=4, ffn_dim=512, embed_dim=128, vocab_size=2048, max_seq_len=32, eos_id=2047
        ),
        vision=VisionConfig(
            num_layers=4, dim=128, num_heads=4, ffn_dim=512, embed_dim=128, image_size=64, patch_size=8
        ),
    ),
}

FAMILY = Family(
    name="clip",
    config_class=CLIPConfig,
    build=CLIP,
    traits=Traits(reads=frozenset({"text", "image"}), writes=frozenset({"embedding"}), causal=False),
    presets=PRESETS,
    architecture="CLIPModel",
    hf_model_types=("clip",),
    from_hf=from_hf,
    to_hf=to_hf,
    hf_names=hf_names,
    preprocessor=lambda config: clip_config.preprocessor(config.vision.image_size),
)
