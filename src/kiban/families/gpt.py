"""GPT. Radford et al. 2018 (GPT-1), 2019 (GPT-2); Brown et al. 2020 (GPT-3). Learned positions, biases, tanh GELU, tied.

GPT-3.5 and GPT-4 are unpublished and have no preset here. GPT-1 normalises behind its blocks, the others before them and
once more at the end. GPT-3 alternates dense layers with "locally banded sparse" ones whose width was never published;
band=256 is our stand-in, and None makes every layer dense. Deviation: no dropout; we train for less than one epoch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.config import Family, Traits
from kiban.errors import ConfigError, FormatError, LimitError
from kiban.nn.attention import Attention, Context, causal_context
from kiban.nn.block import PostNormBlock, PreNormBlock
from kiban.nn.cache import KVCache
from kiban.nn.decoder import Decoder
from kiban.nn.feedforward import FeedForward
from kiban.nn.norm import LayerNorm
from kiban.nn.stack import Stack
from kiban.weights.names import SKIP, NameTable, Rule, Same, Split, Transposed, both

gelu = partial(F.gelu, approximate="tanh")


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes of a GPT. post_norm: as GPT-1. band: tokens that every second layer sees, itself included; None for all."""

    vocab_size: int
    num_layers: int
    dim: int
    num_heads: int
    max_seq_len: int
    norm_eps: float = 1e-5
    post_norm: bool = False
    band: int | None = None
    pad_id: int | None = None

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ConfigError(f"dim={self.dim} is not divisible by num_heads={self.num_heads}")
        if self.band is not None and self.band < 1:
            raise ConfigError(f"band={self.band} must be at least 1")

    @property
    def num_kv_heads(self) -> int:
        """Every head has its own keys."""
        return self.num_heads

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.dim // self.num_heads


class GPT(Decoder):
    """tokens (B, T) int64 to logits (B, T, V)."""

    stds: ClassVar[Mapping[str, float]] = {"position.weight": 0.01}

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        c, norm = config, partial(LayerNorm, config.dim, eps=config.norm_eps)
        self.config = config
        self.embed, self.position = nn.Embedding(c.vocab_size, c.dim), nn.Embedding(c.max_seq_len, c.dim)
        block = PostNormBlock if c.post_norm else PreNormBlock
        self.blocks = Stack(
            block(
                attn=Attention(c.dim, c.num_heads, bias=True, layer=layer),
                ffn=FeedForward(c.dim, 4 * c.dim, activation=gelu),
                norm=norm,
            )
            for layer in range(c.num_layers)
        )
        self.norm = nn.Identity() if c.post_norm else norm()
        self.head = nn.Linear(c.dim, c.vocab_size, bias=False)
        self.head.weight = self.embed.weight

    def hidden(self, tokens: Tensor, *, mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Last states after the final norm, (B, T, D).

        mask: (B, past + T) bool, True where a token is real, or (B, T, past + T) bool, True where a query may look; None if
        all are real. cache: the past, extended in place. Raises LimitError if the positions end.
        """
        past, length = (cache.length if cache else 0), tokens.shape[1]
        if past + length > self.config.max_seq_len:
            raise LimitError("tokens", why=f"{past + length} exceed the {self.config.max_seq_len} positions")
        if cache is not None:
            cache.reserve(length)
        look = partial(causal_context, length, mask=mask, past=past, device=tokens.device)
        allowed, causal, positions = look(window=None)
        dense = banded = Context(allowed=allowed, causal=causal, cache=cache)
        if self.config.band is not None:
            allowed, causal, _ = look(window=self.config.band)
            banded = Context(allowed=allowed, causal=causal, cache=cache)
        x = self.embed(tokens) + self.position(positions)  # (B, T, D)
        for layer, block in enumerate(self.blocks):
            x = block(x, banded if layer % 2 else dense)
        if cache is not None:
            cache.advance(length)
        return torch.as_tensor(self.norm(x))


def _qkv(published: str, *, transposed: bool) -> dict[str, Rule]:
    """One matrix for queries, keys and values."""
    return {
        f"{published}.{part}": Split(tuple(f"blocks.{{}}.attn.{letter}.{part}" for letter in "qkv"), transposed)
        for part in ("weight", "bias")
    }


def hf_names(c: GPTConfig) -> NameTable:
    """GPT2LMHeadModel and OpenAIGPTLMHeadModel. Conv1D keeps its weights as (in, out)."""
    table: dict[str, Rule] = {
        "tokens_embed.weight" if c.post_norm else "wte.weight": Same("embed.weight"),
        "positions_embed.weight" if c.post_norm else "wpe.weight": Same("position.weight"),
        **both("h.{}.ln_1", "blocks.{}.norm1"),
        **both("h.{}.ln_2", "blocks.{}.norm2"),
        **_qkv("h.{}.attn.c_attn", transposed=True),
        **both("h.{}.attn.c_proj", "blocks.{}.attn.o", rule=Transposed),
        **both("h.{}.mlp.c_fc", "blocks.{}.ffn.up", rule=Transposed),
        **both("h.{}.mlp.c_proj", "blocks.{}.ffn.down", rule=Transposed),
        "h.{}.attn.bias": SKIP,  # the causal mask, a buffer
        "h.{}.attn.masked_bias": SKIP,
        **({} if c.post_norm else both("ln_f", "norm")),
    }
    # Files of the first release have no prefix.
    named = {f"transformer.{name}": dataclasses.replace(rule, aliases=(name,)) for name, rule in table.items()}
    return {**named, "lm_head.weight": SKIP}  # tied to the token embeddings


def gguf_names(c: GPTConfig) -> NameTable:
    """GGUF of architecture "gpt2"; its matrices are (out, in)."""
    return {
        "token_embd.weight": Same("embed.weight"),
        "position_embd.weight": Same("position.weight"),
        **both("blk.{}.attn_norm", "blocks.{}.norm1"),
        **both("blk.{}.ffn_norm", "blocks.{}.norm2"),
        **_qkv("blk.{}.attn_qkv", transposed=False),
        **both("blk.{}.attn_output", "blocks.{}.attn.o"),
        **both("blk.{}.ffn_up", "blocks.{}.ffn.up"),
        **both("blk.{}.ffn_down", "blocks.{}.ffn.down"),
        **both("output_norm", "norm"),
        "output.weight": SKIP,  # the tied matrix again
    }


def from_hf(values: Mapping[str, Any]) -> GPTConfig:
    """config.json of GPT2LMHeadModel or OpenAIGPTLMHeadModel."""
    first = values.get("model_type") == "openai-gpt"
    # GPT-1 calls tanh GELU "gelu"; for GPT-2 that would be the exact one.
    known = ("gelu",) if first else ("gelu_new", "gelu_pytorch_tanh")
    activation = values.get("afn" if first else "activation_function", known[0])
    if activation not in known:
        raise FormatError("config.json", field="activation_function", why=f"{activation!r} is not GPT's tanh GELU")
    for switch, usual in _SWITCHES.items():
        if values.get(switch, usual) != usual:
            raise FormatError("config.json", field=switch, why="is not as GPT-2 has it", hint=f"only {usual} is known")
    dim, inner = int(values["n_embd"]), values.get("n_inner")
    if inner is not None and inner != 4 * dim:
        raise FormatError("config.json", field="n_inner", why=f"is {inner}, expected four times n_embd")
    return GPTConfig(
        vocab_size=int(values["vocab_size"]),
        num_layers=int(values["n_layer"]),
        dim=dim,
        num_heads=int(values["n_head"]),
        max_seq_len=int(values["n_positions"]),
        norm_eps=float(values.get("layer_norm_epsilon", 1e-5)),
        post_norm=first,
        pad_id=values.get("pad_token_id"),
    )


_SWITCHES = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def to_hf(c: GPTConfig) -> dict[str, Any]:
    """config.json that transformers reads. Raises ConfigError for banded attention, which its GPT-2 does not have."""
    if c.band is not None:
        raise ConfigError("band", why="GPT2LMHeadModel has no banded layers", hint="train with band=None to export")
    kind = ("openai-gpt", "OpenAIGPTLMHeadModel") if c.post_norm else ("gpt2", "GPT2LMHeadModel")
    values: dict[str, Any] = {
        "model_type": kind[0],
        "architectures": [kind[1]],
        "vocab_size": c.vocab_size,
        "n_layer": c.num_layers,
        "n_embd": c.dim,
        "n_head": c.num_heads,
        "n_positions": c.max_seq_len,
        "layer_norm_epsilon": c.norm_eps,
        "tie_word_embeddings": True,
        "pad_token_id": c.pad_id,
    }
    # Dropout is 0, as we train: who goes on training elsewhere gets the same model.
    values |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return values | ({"afn": "gelu"} if c.post_norm else {"activation_function": "gelu_new"})


def from_gguf(metadata: Mapping[str, Any]) -> GPTConfig:
    """The metadata of a GGUF file of architecture gpt2."""
    return GPTConfig(
        vocab_size=len(metadata["tokenizer.ggml.tokens"]),
        num_layers=int(metadata["gpt2.block_count"]),
        dim=int(metadata["gpt2.embedding_length"]),
        num_heads=int(metadata["gpt2.attention.head_count"]),
        max_seq_len=int(metadata["gpt2.context_length"]),
        norm_eps=float(f"{metadata['gpt2.attention.layer_norm_epsilon']:.7g}"),  # was a float32
        pad_id=metadata.get("tokenizer.ggml.padding_token_id"),
    )


def to_gguf(c: GPTConfig) -> dict[str, Any]:
    """The metadata of a GGUF file. Raises ConfigError for GPT-1 and banded attention, which the format does not know."""
    if c.band is not None or c.post_norm:
        raise ConfigError("gpt", why="GGUF knows GPT-2 alone: norms before the blocks, every layer dense")
    return {
        "general.architecture": "gpt2",
        "gpt2.block_count": c.num_layers,
        "gpt2.embedding_length": c.dim,
        "gpt2.feed_forward_length": 4 * c.dim,
        "gpt2.attention.head_count": c.num_heads,
        "gpt2.context_length": c.max_seq_len,
        "gpt2.attention.layer_norm_epsilon": c.norm_eps,
    }


def _gpt2(num_layers: int, dim: int, num_heads: int) -> GPTConfig:
    return GPTConfig(vocab_size=50257, num_layers=num_layers, dim=dim, num_heads=num_heads, max_seq_len=1024)


def _gpt3(num_layers: int, dim: int, num_heads: int) -> GPTConfig:
    return dataclasses.replace(_gpt2(num_layers, dim, num_heads), max_seq_len=2048, band=256)


PRESETS = {
    "gpt1": GPTConfig(vocab_size=40478, num_layers=12, dim=768, num_heads=12, max_seq_len=512, post_norm=True),
    "gpt2-small": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
    "gpt3-small": _gpt3(12, 768, 12),
    "gpt3-medium": _gpt3(24, 1024, 16),
    "gpt3-large": _gpt3(24, 1536, 16),
    "gpt3-xl": _gpt3(24, 2048, 16),  # the table prints 24 heads, which do not divide 2048
    "gpt3-2.7b": _gpt3(32, 2560, 32),
    "gpt3-6.7b": _gpt3(32, 4096, 32),
    "gpt3-13b": _gpt3(40, 5120, 40),  # the table prints 5140, which the published total contradicts
    "gpt3-175b": _gpt3(96, 12288, 96),
    "gpt-tiny": GPTConfig(vocab_size=512, num_layers=2, dim=64, num_heads=4, max_seq_len=256),
}

FAMILY = Family(
    name="gpt",
    config_class=GPTConfig,
    build=GPT,
    traits=Traits(reads=frozenset({"text"}), writes=frozenset({"text"}), causal=True),
    presets=PRESETS,
    architecture="GPT2LMHeadModel",
    hf_model_types=("gpt2", "openai-gpt"),
    from_hf=from_hf,
    to_hf=to_hf,
    hf_names=hf_names,
    gguf_architectures=("gpt2",),
    from_gguf=from_gguf,
    gguf_names=gguf_names,
    to_gguf=to_gguf,
)
