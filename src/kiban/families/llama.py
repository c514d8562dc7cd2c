"""Llama 2. Touvron et al. 2023. Pre-norm decoder: RMSNorm, rotary positions, SiLU-gated feed-forward, no biases.

The same shape with other sizes is ELYZA, Swallow (further trained in Japanese), SmolLM2; with a sliding window RakutenAI
(Mistral 7B, Jiang et al. 2023); with biases on q, k and v Qwen2.5 (Yang et al. 2024). Deviation: no dropout, as in the
released models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban.config import Family, Head, Traits
from kiban.errors import ConfigError, FormatError
from kiban.nn import init
from kiban.nn.attention import Attention, Context, causal_context
from kiban.nn.block import PreNormBlock
from kiban.nn.cache import KVCache
from kiban.nn.decoder import Decoder
from kiban.nn.feedforward import GatedFeedForward
from kiban.nn.norm import RMSNorm
from kiban.nn.positions import Rotary
from kiban.nn.stack import Stack
from kiban.weights.names import SKIP, NameTable, RopeHalves, Rule, Same, prefixed


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes of a Llama. sliding_window: tokens that a query sees, itself included; None for all."""

    vocab_size: int
    num_layers: int
    dim: int
    num_heads: int
    ffn_dim: int
    num_kv_heads: int
    head_dim: int = 0
    max_seq_len: int = 4096
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = False
    qkv_bias: bool = False
    sliding_window: int | None = None
    pad_id: int | None = None

    def __post_init__(self) -> None:
        if not self.head_dim:
            if self.dim % self.num_heads:
                raise ConfigError(f"dim={self.dim} is not divisible by num_heads={self.num_heads}")
            object.__setattr__(self, "head_dim", self.dim // self.num_heads)
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_heads={self.num_heads} is not divisible by num_kv_heads={self.num_kv_heads}")


class Llama(Decoder):
    """tokens (B, T) int64 to logits (B, T, V)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        c, norm = config, partial(RMSNorm, config.dim, eps=config.norm_eps)
        self.config = config
        self.rotary = Rotary(c.head_dim, base=c.rope_base)
        self.embed = nn.Embedding(c.vocab_size, c.dim)
        self.blocks = Stack(
            PreNormBlock(
                attn=Attention(
                    c.dim,
                    c.num_heads,
                    num_kv_heads=c.num_kv_heads,
                    head_dim=c.head_dim,
                    qkv_bias=c.qkv_bias,
                    layer=layer,
                ),
                ffn=GatedFeedForward(c.dim, c.ffn_dim, activation=F.silu),
                norm=norm,
            )
            for layer in range(c.num_layers)
        )
        self.norm = norm()
        self.head = nn.Linear(c.dim, c.vocab_size, bias=False)
        if c.tied:
            self.head.weight = self.embed.weight

    def hidden(self, tokens: Tensor, *, mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Last states after the final norm, (B, T, D).

        mask: (B, past + T) bool, True where a token is real, or (B, T, past + T) bool, True where a query may look; None if
        all are real. cache: the past, extended in place.
        """
        past, length = (cache.length if cache else 0), tokens.shape[1]
        if cache is not None:
            cache.reserve(length)
        allowed, causal, positions = causal_context(
            length, mask=mask, past=past, window=self.config.sliding_window, device=tokens.device
        )
        x = self.embed(tokens)  # (B, T, D)
        cos, sin = self.rotary.table(positions)
        rotary = (cos[:, None].to(x.dtype), sin[:, None].to(x.dtype))  # (B or 1, 1, T, Dh)
        x = self.blocks(x, Context(allowed=allowed, causal=causal, rotary=rotary, cache=cache))
        if cache is not None:
            cache.advance(length)
        return torch.as_tensor(self.norm(x))


class LlamaClassifier(nn.Module):
    """Logits (B, C) from the state of the last real token."""

    def __init__(self, body: Llama, num_labels: int) -> None:
        super().__init__()
        self.body = body
        self.body.head = nn.Identity()  # the vocabulary is not predicted
        self.score = nn.Linear(body.config.dim, num_labels, bias=False)

    def features(self, tokens: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """The state of the last real token, (B, D). tokens: (B, T) int64; mask: (B, T) bool."""
        hidden = self.body.hidden(tokens, mask=mask)
        if mask is None:
            return hidden[:, -1]
        places = torch.arange(tokens.shape[1], device=tokens.device)
        last = torch.where(mask, places, -1).amax(-1)  # (B,) also right for padding on the left
        return hidden[torch.arange(len(last)), last]

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """tokens: (B, T) int64; mask: (B, T) bool."""
        return torch.as_tensor(self.score(self.features(tokens, mask=mask)))

    def initialise(self, generator: torch.Generator | None) -> None:
        """The head alone: N(0, 0.02^2)."""
        init.normal(self.score.weight, 0.02, generator)


def _body_names(c: LlamaConfig) -> dict[str, Rule]:
    """The decoder without its head, under the names of Hugging Face's LlamaModel."""
    table: dict[str, Rule] = {
        "embed_tokens.weight": Same("embed.weight"),
        "layers.{}.input_layernorm.weight": Same("blocks.{}.norm1.weight"),
        "layers.{}.post_attention_layernorm.weight": Same("blocks.{}.norm2.weight"),
        "layers.{}.mlp.gate_proj.weight": Same("blocks.{}.ffn.gate.weight"),
        "layers.{}.mlp.up_proj.weight": Same("blocks.{}.ffn.up.weight"),
        "layers.{}.mlp.down_proj.weight": Same("blocks.{}.ffn.down.weight"),
        "norm.weight": Same("norm.weight"),
        "layers.{}.self_attn.rotary_emb.inv_freq": SKIP,  # a buffer of transformers before 4.31
    }
    for letter in "qkvo":
        table[f"layers.{{}}.self_attn.{letter}_proj.weight"] = Same(f"blocks.{{}}.attn.{letter}.weight")
        if c.qkv_bias and letter != "o":
            table[f"layers.{{}}.self_attn.{letter}_proj.bias"] = Same(f"blocks.{{}}.attn.{letter}.bias")
    return table


def hf_names(c: LlamaConfig) -> NameTable:
    """LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM."""
    head: Rule = SKIP if c.tied else Same("head.weight")  # some files repeat the tied matrix
    return {**prefixed(_body_names(c), "model.", ""), "lm_head.weight": head}


def classifier_names(c: LlamaConfig) -> NameTable:
    """LlamaForSequenceClassification."""
    return {
        **prefixed(_body_names(c), "model.", "body."),
        "score.weight": Same("score.weight"),
        "lm_head.weight": SKIP,
    }


def meta_names(c: LlamaConfig) -> NameTable:
    """The names of Meta's release; rotary pairs are interleaved there."""
    return {
        "tok_embeddings.weight": Same("embed.weight"),
        "layers.{}.attention.wq.weight": RopeHalves("blocks.{}.attn.q.weight", num_heads=c.num_heads),
        "layers.{}.attention.wk.weight": RopeHalves("blocks.{}.attn.k.weight", num_heads=c.num_kv_heads),
        "layers.{}.attention.wv.weight": Same("blocks.{}.attn.v.weight"),
        "layers.{}.attention.wo.weight": Same("blocks.{}.attn.o.weight"),
        "layers.{}.feed_forward.w1.weight": Same("blocks.{}.ffn.gate.weight"),
        "layers.{}.feed_forward.w2.weight": Same("blocks.{}.ffn.down.weight"),
        "layers.{}.feed_forward.w3.weight": Same("blocks.{}.ffn.up.weight"),
        "layers.{}.attention_norm.weight": Same("blocks.{}.norm1.weight"),
        "layers.{}.ffn_norm.weight": Same("blocks.{}.norm2.weight"),
        "norm.weight": Same("norm.weight"),
        "output.weight": SKIP if c.tied else Same("head.weight"),
        "rope.freqs": SKIP,
    }


def gguf_names(c: LlamaConfig) -> NameTable:
    """GGUF: architecture "llama" interleaves rotary pairs; "qwen2" (the one with biases) keeps the halves."""
    q: Rule = Same("blocks.{}.attn.q.weight")
    k: Rule = Same("blocks.{}.attn.k.weight")
    if not c.qkv_bias:
        q = RopeHalves("blocks.{}.attn.q.weight", num_heads=c.num_heads)
        k = RopeHalves("blocks.{}.attn.k.weight", num_heads=c.num_kv_heads)
    table: dict[str, Rule] = {
        "token_embd.weight": Same("embed.weight"),
        "blk.{}.attn_norm.weight": Same("blocks.{}.norm1.weight"),
        "blk.{}.ffn_norm.weight": Same("blocks.{}.norm2.weight"),
        "blk.{}.attn_q.weight": q,
        "blk.{}.attn_k.weight": k,
        "blk.{}.attn_v.weight": Same("blocks.{}.attn.v.weight"),
        "blk.{}.attn_output.weight": Same("blocks.{}.attn.o.weight"),
        "blk.{}.ffn_gate.weight": Same("blocks.{}.ffn.gate.weight"),
        "blk.{}.ffn_up.weight": Same("blocks.{}.ffn.up.weight"),
        "blk.{}.ffn_down.weight": Same("blocks.{}.ffn.down.weight"),
        "output_norm.weight": Same("norm.weight"),
        "output.weight": SKIP if c.tied else Same("head.weight"),
        "rope_freqs.weight": SKIP,
    }
    if c.qkv_bias:
        for letter in "qkv":
            table[f"blk.{{}}.attn_{letter}.bias"] = Same(f"blocks.{{}}.attn.{letter}.bias")
    return table


def from_hf(values: Mapping[str, Any]) -> LlamaConfig:
    """config.json of LlamaForCausalLM, MistralForCausalLM or Qwen2ForCausalLM, from transformers 4 or 5."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise FormatError("config.json", field="rope_scaling", why=f"{kind!r} is not supported")
    if values.get("attention_bias") or values.get("mlp_bias"):
        raise FormatError("config.json", field="attention_bias", why="biases on o or in the feed-forward are unknown")
    qwen = values.get("model_type") == "qwen2"
    heads = int(values["num_attention_heads"])
    window = values.get("sliding_window") if values.get("use_sliding_window", not qwen) else None
    return LlamaConfig(
        vocab_size=int(values["vocab_size"]),
        num_layers=int(values["num_hidden_layers"]),
        dim=int(values["hidden_size"]),
        num_heads=heads,
        num_kv_heads=int(values.get("num_key_value_heads") or heads),
        head_dim=int(values.get("head_dim") or 0),
        ffn_dim=int(values["intermediate_size"]),
        max_seq_len=int(values.get("max_position_embeddings", 2048)),
        rope_base=float(rope.get("rope_theta", values.get("rope_theta", 10_000.0))),
        norm_eps=float(values.get("rms_norm_eps", 1e-6)),
        tied=bool(values.get("tie_word_embeddings", False)),
        qkv_bias=qwen,
        sliding_window=int(window) if window else None,
        pad_id=values.get("pad_token_id"),
    )


def to_hf(c: LlamaConfig) -> dict[str, Any]:
    """config.json that transformers 4 and 5 read."""
    kind = "qwen2" if c.qkv_bias else "mistral" if c.sliding_window else "llama"
    values: dict[str, Any] = {
        "model_type": kind,
        "architectures": [{"qwen2": "Qwen2", "mistral": "Mistral", "llama": "Llama"}[kind] + "ForCausalLM"],
        "vocab_size": c.vocab_size,
        "num_hidden_layers": c.num_layers,
        "hidden_size": c.dim,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.ffn_dim,
        "max_position_embeddings": c.max_seq_len,
        "rope_theta": c.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_base},
        "rms_norm_eps": c.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": c.tied,
        "pad_token_id": c.pad_id,
    }
    if c.sliding_window:
        values["sliding_window"] = c.sliding_window
    return values


def from_gguf(metadata: Mapping[str, Any]) -> LlamaConfig:
    """The metadata of a GGUF file of architecture llama or qwen2."""
    kind = metadata["general.architecture"]
    get = partial(_gguf_value, metadata, kind)
    heads, dim = int(get("attention.head_count")), int(get("embedding_length"))
    return LlamaConfig(
        vocab_size=int(metadata.get(f"{kind}.vocab_size") or len(metadata["tokenizer.ggml.tokens"])),
        num_layers=int(get("block_count")),
        dim=dim,
        num_heads=heads,
        num_kv_heads=int(metadata.get(f"{kind}.attention.head_count_kv", heads)),
        head_dim=int(metadata.get(f"{kind}.attention.key_length", dim // heads)),
        ffn_dim=int(get("feed_forward_length")),
        max_seq_len=int(get("context_length")),
        rope_base=float(metadata.get(f"{kind}.rope.freq_base", 10_000.0)),
        norm_eps=float(get("attention.layer_norm_rms_epsilon")),
        tied=bool(metadata.get("kiban.tied", False)),
        qkv_bias=kind == "qwen2",
        pad_id=metadata.get("tokenizer.ggml.padding_token_id"),
    )


def _gguf_value(metadata: Mapping[str, Any], kind: str, key: str) -> Any:
    try:
        return metadata[f"{kind}.{key}"]
    except KeyError:
        raise FormatError("GGUF metadata", field=f"{kind}.{key}", why="is missing") from None


_7B = LlamaConfig(vocab_size=32000, num_layers=32, dim=4096, num_heads=32, num_kv_heads=32, ffn_dim=11008)
_13B = LlamaConfig(vocab_size=32000, num_layers=40, dim=5120, num_heads=40, num_kv_heads=40, ffn_dim=13824)
_70B = LlamaConfig(vocab_size=32000, num_layers=80, dim=8192, num_heads=64, num_kv_heads=8, ffn_dim=28672)


def _sized(base: LlamaConfig, **changes: Any) -> LlamaConfig:
    return LlamaConfig(**{**base.__dict__, **changes})


PRESETS = {
    "llama2-7b": _7B,
    "llama2-13b": _13B,
    "llama2-34b": _sized(_70B, num_layers=48, ffn_dim=22016),  # never released
    "llama2-70b": _70B,
    "elyza-7b": _7B,
    "elyza-7b-fast": _sized(_7B, vocab_size=45043, norm_eps=1e-6),
    "swallow-7b": _sized(_7B, vocab_size=43176),
    "swallow-13b": _sized(_13B, vocab_size=43176),
    "swallow-70b": _sized(_70B, vocab_size=43176),
    "rakutenai-7b": _sized(
        _7B, vocab_size=48000, num_kv_heads=8, ffn_dim=14336, max_seq_len=32768, sliding_window=4096
    ),
    "smollm2-135m": LlamaConfig(
        vocab_size=49152,
        num_layers=30,
        dim=576,
        num_heads=9,
        num_kv_heads=3,
        ffn_dim=1536,
        max_seq_len=8192,
        rope_base=100_000.0,
        tied=True,
    ),
    "qwen2.5-coder-1.5b": LlamaConfig(
        vocab_size=151936,
        num_layers=28,
        dim=1536,
        num_heads=12,
        num_kv_heads=2,
        ffn_dim=8960,
        max_seq_len=32768,
        rope_base=1_000_000.0,
        norm_eps=1e-6,
        tied=True,
        qkv_bias=True,
    ),
    "llama-tiny": LlamaConfig(
        vocab_size=512, num_layers=2, dim=64, num_heads=4, num_kv_heads=2, ffn_dim=176, max_seq_len=256
    ),
}

FAMILY = Family(
    name="llama",
    config_class=LlamaConfig,
    build=Llama,
    traits=Traits(reads=frozenset({"text"}), writes=frozenset({"text"}), causal=True),
    presets=PRESETS,
    architecture="LlamaForCausalLM",
    hf_model_types=("llama", "mistral", "qwen2"),
    from_hf=from_hf,
    to_hf=to_hf,
    hf_names=hf_names,
    heads={
        "sequence_classification": Head(
            build=LlamaClassifier, architecture="ForSequenceClassification", names=classifier_names
        )
    },
    gguf_architectures=("llama", "qwen2"),
    from_gguf=from_gguf,
    gguf_names=gguf_names,
)
