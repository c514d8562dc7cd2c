"""A Llama arranged for speed: q, k, v as one matrix, gate and up as one matrix, and on a CPU weights in fewer bits.

Rotary pairs are interleaved inside the plan, unlike everywhere else in kiban: one product of complex numbers then turns
queries and keys. Attention does not notice, since both are permuted alike. Sums along the layers stay in float32 whatever
the weights are, attention and the keys on a CPU too; a GPU has them in the weights' dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from kiban import zoo
from kiban.engine import kernels
from kiban.engine.kernels import Rounding
from kiban.engine.packed import GROUP, Dense, Int4, Int8, Packed, bf16_pays, fits_int4, settled
from kiban.engine.pages import PagedKeys, Part
from kiban.engine.ragged import Ragged
from kiban.engine.reordered import Reordered
from kiban.errors import ConfigError
from kiban.nn.attention import attend, causal_context
from kiban.nn.cache import KVCache
from kiban.nn.feedforward import GatedFeedForward
from kiban.weights.names import RopeHalves

Mix = Callable[[Tensor, Tensor, int], Tensor]
"""Attention by queries (B, T, H, Dh), keys and behind them values (B, T, 2 Hkv, Dh), and the number of the layer."""
Product = Dense | Packed | Reordered | Rounding
Weights = Literal["auto", "fp32", "bf16", "int8", "int4"]


@dataclass(frozen=True)
class Layer:
    """Its weights."""

    norm1: Tensor
    qkv: Product
    out: Product
    norm2: Tensor
    gate_up: Product
    down: Product

    @property
    def products(self) -> list[Any]:
        """Its matrices."""
        return [self.qkv, self.out, self.gate_up, self.down]


class DecoderPlan:
    """A CausalModel, made from a Llama and independent of it afterwards (fp32 shares what it need not fuse).

    weights: "fp32" is exact; "bf16" halves, "int8" quarters and "int4" eighths what a token has to read; "auto" is bf16
    where that is measured to be clearly faster, on a GPU where it has that, else fp32. The matrix of the output stays in
    int8 at "int4", as GGUF files have it. Packed weights go through kernels of ours where the machine has them
    (`engine/kernels.py`); else through torch's, with a bf16 copy for prompts where that is measured to pay. copy: take
    torch's in any case, with a copy or without. It works on the device where the model's weights lie.

    Raises ConfigError if the model is not a bare decoder, or the weights are unknown or, being packed, not on a CPU.
    """

    def __init__(self, loaded: zoo.Loaded, *, weights: Weights = "fp32", copy: bool | None = None) -> None:
        if not self.fits(loaded):
            raise ConfigError(loaded.source, why="is not a decoder of Llama's shape that predicts tokens")
        if weights not in get_args(Weights):
            raise ConfigError("weights", field=str(weights), why="unknown", hint=f"known: {get_args(Weights)}")
        module: Any = loaded.module
        blocks = list(module.blocks)
        self.device: torch.device = module.embed.weight.device
        on_gpu = self.device.type != "cpu"
        if on_gpu and weights in ("int8", "int4"):
            raise ConfigError(
                "weights", field=weights, why="is for CPUs", hint="bf16, or CUDA_VISIBLE_DEVICES= for the CPU"
            )
        with torch.no_grad():
            if weights == "auto":
                weights = usual_on_gpu() if on_gpu else "bf16" if bf16_pays(blocks[0].ffn.gate.weight) else "fp32"
            self.config, self.weights = loaded.config, weights
            self.dtype = torch.float32 if weights == "fp32" else torch.bfloat16
            self.keys_dtype = self.dtype if on_gpu else torch.float32
            self._pack = self._packer(blocks[0].ffn.gate.weight.detach(), copy)
            self.table = module.embed.weight.detach().to(self.dtype)  # (V, D)
            self.layers = [self._layer(block) for block in blocks]
            self.norm, self._root = self._scaled(module.norm.weight), _root(self.config, self.device)
            head = module.head.weight.detach()
            if isinstance(self.layers[0].qkv, Rounding):
                self.head: Product = Rounding(8, F.pad(head, (0, 0, 0, -len(head) % kernels.ROWS)))
            elif weights in ("int8", "int4"):
                self.head = settled(Int8, head.float(), copy=copy)
            else:
                self.head = self._pack(self.table if head.data_ptr() == module.embed.weight.data_ptr() else head)
        self._turns = torch.empty(0)

    @classmethod
    def of(cls, config: Any, dtype: torch.dtype, table: Tensor, norm: Tensor, layers: list[Layer]) -> DecoderPlan:
        """What makes states, from the tensors of another plan; it has no head. config: what `hidden` reads of one."""
        made = cls.__new__(cls)
        made.config, made.dtype, made.table, made.norm, made.layers = config, dtype, table, norm, layers
        made._root = _root(config, table.device)
        return made

    @staticmethod
    def fits(loaded: zoo.Loaded) -> bool:
        """Whether a plan can be made: a bare decoder with rotary positions and gated feed-forward layers."""
        module: Any = loaded.module
        return (
            loaded.family.traits.causal
            and loaded.head is None
            and hasattr(module, "rotary")
            and all(isinstance(block.ffn, GatedFeedForward) for block in module.blocks)
        )

    @property
    def num_bytes(self) -> int:
        """Memory of all weights."""
        parts = [part for layer in self.layers for part in layer.products]
        total: int = sum(part.num_bytes for part in [*parts, self.head])
        shared = isinstance(self.head, Dense) and self.head.weight.data_ptr() == self.table.data_ptr()
        return total + (0 if shared else self.table.numel() * self.table.element_size())

    def make_cache(self, batch: int, max_len: int) -> KVCache:
        """An empty cache for batch sequences of at most max_len tokens."""
        c, place = self.config, {"dtype": self.keys_dtype, "device": self.device}
        return KVCache(c.num_layers, batch, c.num_kv_heads, c.head_dim, max_len, **place)  # type: ignore[arg-type]

    @torch.inference_mode()
    def __call__(
        self, tokens: Tensor, *, mask: Tensor | None = None, cache: KVCache | None = None, last_only: bool = False
    ) -> Tensor:
        """Logits (B, T, V) float32, or (B, 1, V) for the last position alone. Arguments as in `Llama`."""
        past, length = (cache.length if cache else 0), tokens.shape[1]
        if cache is not None:
            cache.reserve(length)
        allowed, causal, positions = causal_context(
            length, mask=mask, past=past, window=self.config.sliding_window, device=tokens.device
        )

        def mix(q: Tensor, kv: Tensor, layer: int) -> Tensor:
            q, (k, v) = q.transpose(1, 2), kv.transpose(1, 2).chunk(2, dim=1)
            if cache is not None:
                k, v = cache.append(layer, k, v)
            return attend(q, k, v, allowed=allowed, causal=causal).transpose(1, 2)

        x = self.hidden(tokens, self.rotation(positions, past + length), mix)
        if cache is not None:
            cache.advance(length)
        return self.logits(x[:, -1:] if last_only else x)

    @torch.inference_mode()
    def step(self, parts: Sequence[Part], keys: PagedKeys) -> Tensor:
        """New tokens of many answers of different lengths as one row, so that weights are read once for all of them.

        Stores their keys; logits (sum of num_logits, V) float32, in the order of parts.
        """
        ragged = Ragged(parts, keys, window=self.config.sliding_window)
        x = self.hidden(ragged.tokens, self.rotation(ragged.positions, ragged.longest), ragged.attend)
        return self.logits(x[0, ragged.rows]) if ragged.rows else x.new_empty(0, self.config.vocab_size)

    def hidden(self, tokens: Tensor, rotate: Callable[[Tensor], Tensor], mix: Mix) -> Tensor:
        """States (B, T, D) before the final norm. rotate: queries, keys and values (B, T, H + 2 Hkv, Dh) by their positions.

        Few and small operations: for one token they cost as much as the products. So keys and values stay together, and the
        rotation takes values along, turned by nothing.
        """
        c = self.config
        shape = (*tokens.shape, c.num_heads + 2 * c.num_kv_heads, c.head_dim)
        x = F.embedding(tokens.flatten(), self.table).float()  # (B T, D)
        if isinstance(self.layers[0].qkv, Rounding):
            return self._hidden_by_kernels(x, shape, rotate, mix).view(*tokens.shape, -1)
        for number, layer in enumerate(self.layers):
            h = layer.qkv(self.normed(x, layer.norm1)).float()  # (B T, (H + 2 Hkv) Dh)
            h = rotate(h.view(shape))
            mixed = mix(h[:, :, : c.num_heads], h[:, :, c.num_heads :], number)  # (B, T, H, Dh)
            x = x + layer.out(mixed.flatten(2).flatten(0, 1).to(self.dtype))
            gate, up = layer.gate_up(self.normed(x, layer.norm2)).chunk(2, -1)
            x = x + layer.down(F.silu(gate).mul_(up))
        return x.view(*tokens.shape, -1)

    def _hidden_by_kernels(
        self, x: Tensor, shape: tuple[int, ...], rotate: Callable[[Tensor], Tensor], mix: Mix
    ) -> Tensor:
        """The same with norms, gates and sums in the calls that multiply. x: (B T, D); shape: of queries to values."""
        heads, floor = self.config.num_heads, _floor(self.config)
        layer: Any
        for number, layer in enumerate(self.layers):
            h = rotate(layer.qkv(x, norm=layer.norm1, floor=floor).view(shape))
            mixed = mix(h[:, :, :heads], h[:, :, heads:], number)  # (B, T, H, Dh)
            x = layer.out(mixed.flatten(2).flatten(0, 1), plus=x)
            x = layer.down(layer.gate_up(x, norm=layer.norm2, floor=floor), gated=True, plus=x)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """States (..., D) to logits (..., V) float32."""
        if isinstance(self.head, Rounding):
            found = self.head(x, norm=self.norm, floor=_floor(self.config))
            return found[..., : self.config.vocab_size]
        return self.head(self.normed(x, self.norm)).float()

    def normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm; three small operations instead of six. |(|x|, sqrt(D eps))| = sqrt(D) sqrt(mean(x^2) + eps)."""
        if x.is_cuda:  # there it is one operation
            return F.rms_norm(x, weight.shape, weight, self.config.norm_eps).to(self.dtype)
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x / torch.hypot(size, self._root) * weight).to(self.dtype)

    def _scaled(self, weight: Tensor) -> Tensor:
        """The weight of a norm, with the sqrt(D) that `normed` leaves out on a CPU."""
        weight = weight.detach().float()
        return weight if weight.is_cuda else weight * math.sqrt(self.config.dim)

    def rotation(self, positions: Tensor, most: int) -> Callable[[Tensor], Tensor]:
        """What `hidden` rotates by, at positions (B or 1, T) below most; it also brings the result into the keys' dtype."""
        turn = self.turn(positions, most)

        def rotate(h: Tensor) -> Tensor:
            pairs = torch.view_as_complex(h.view(*h.shape[:-1], -1, 2)) * turn  # (B, T, H + 2 Hkv, Dh / 2)
            return torch.view_as_real(pairs).flatten(-2).to(self.keys_dtype)

        return rotate

    def turn(self, positions: Tensor, most: int) -> Tensor:
        """exp(i position frequency) for queries and keys and 1 for values, (B or 1, T, H + 2 Hkv, Dh / 2) complex64.

        It comes from a table that grows by doubling.
        """
        c = self.config
        if len(self._turns) < most:
            steps = torch.arange(max(256, 2 * most), dtype=torch.float32)
            frequency = 1.0 / c.rope_base ** (torch.arange(0, c.head_dim, 2, dtype=torch.float32) / c.head_dim)
            self._turns = torch.polar(torch.ones(()), steps[:, None] * frequency).to(self.device)
        turned = self._turns[positions][:, :, None].expand(-1, -1, c.num_heads + c.num_kv_heads, -1)
        return F.pad(turned, (0, 0, 0, c.num_kv_heads), value=1.0)

    def _packer(self, sample: Tensor, copy: bool | None) -> Callable[..., Product]:
        """How a weight (N, K) and its bias become a layer; measured on a sample."""
        if copy is None and self.weights in ("int4", "int8") and self._suits_kernels(*sample.shape):
            return partial(Rounding, 4 if self.weights == "int4" else 8)
        if self.weights in ("fp32", "bf16"):
            dense = Dense if self.weights == "fp32" or self.device.type != "cpu" else Reordered
            return lambda weight, bias=None: dense(weight.to(self.dtype), None if bias is None else bias.to(self.dtype))
        kind: type[Int4 | Int8] = Int4 if self.weights == "int4" and fits_int4(sample) else Int8
        few_rows = settled(kind, sample.float(), copy=copy).few_rows

        def pack(weight: Tensor, bias: Tensor | None = None) -> Packed:
            fitting = kind if kind is Int8 or fits_int4(weight) else Int8
            return fitting(weight.float(), bias, few_rows=few_rows)

        return pack

    def _suits_kernels(self, ffn_dim: int, dim: int) -> bool:
        """Whether there are kernels of ours, and all matrices fit them."""
        c = self.config
        inputs, outputs = (dim, ffn_dim, c.num_heads * c.head_dim), (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
        return kernels.library() is not None and not any(n % GROUP for n in inputs) and outputs % kernels.ROWS == 0

    def _layer(self, block: Any) -> Layer:
        c, attn, ffn = self.config, block.attn, block.ffn
        parts = []
        for part, heads in ((attn.q, c.num_heads), (attn.k, c.num_kv_heads), (attn.v, 0)):
            tensors = [t.detach() for t in (part.weight, part.bias) if t is not None]
            parts.append([RopeHalves("", num_heads=heads).save(t) for t in tensors] if heads else tensors)
        qkv = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
        gate_up = torch.cat([ffn.gate.weight.detach(), ffn.up.weight.detach()])
        return Layer(
            norm1=self._scaled(block.norm1.weight),
            qkv=self._pack(*qkv),
            out=self._pack(attn.o.weight.detach()),
            norm2=self._scaled(block.norm2.weight),
            gate_up=self._pack(gate_up),
            down=self._pack(ffn.down.weight.detach()),
        )


def usual_on_gpu() -> Literal["bf16", "fp32"]:
    """What "auto" is there: bf16 where the card itself has it."""
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def _floor(config: Any) -> float:
    """D eps: what a norm adds to the sum of squares."""
    return float(config.dim * config.norm_eps)


def _root(config: Any, device: torch.device) -> Tensor:
    """Its root, as `DecoderPlan.normed` wants it."""
    return torch.tensor(math.sqrt(_floor(config)), device=device)
