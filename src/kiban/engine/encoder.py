"""A BERT without padding: every matrix product runs over the real tokens of all texts at once, and only attention goes by
groups of equal length. On mixed lengths that is where most of an encoder's time is lost otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kiban import zoo
from kiban.engine.reordered import Reordered
from kiban.errors import ConfigError, LimitError
from kiban.nn.attention import attend

MAX_TOKENS = 1024  # of one pass: the activations should stay near the processor

Rows = Sequence[Sequence[int]]
Groups = list[tuple[int, int, int]]  # runs of equal length: first token, number of rows, length


@dataclass(frozen=True)
class _Norm:
    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class _Block:
    qkv: Reordered
    out: Reordered
    norm1: _Norm
    up: Reordered
    down: Reordered
    norm2: _Norm


class EncoderPlan:
    """Sentence embeddings or class logits of a Bert on the CPU, in the order of the texts.

    The weights are those of the moment of construction. dtype: float32 agrees with the model to rounding; bfloat16 is
    several times faster where matrix products are (see `packed.bf16_pays`) and good to about two digits.
    """

    def __init__(self, loaded: zoo.Loaded, *, max_len: int | None = None, dtype: torch.dtype = torch.float32) -> None:
        """max_len: texts are cut after so many tokens. Raises ConfigError if the model is no encoder of texts."""
        if loaded.tokenizer is None:
            raise ConfigError(loaded.source, why="has no tokenizer, which an encoder of texts needs")
        if loaded.family.traits.causal:
            raise ConfigError(
                loaded.source, why="is not an encoder", hint="choose a model that embeds (`kiban models`)"
            )
        self.tokenizer, self.config, self.dtype = loaded.tokenizer, loaded.config, dtype
        self.max_len = min(max_len or loaded.config.max_seq_len, loaded.config.max_seq_len)
        module: Any = loaded.module
        body = module if loaded.head is None else module.body
        with torch.no_grad():
            embed = body.embed
            self.token = embed.token.weight.detach().to(dtype)  # (V, D)
            # All texts are first segments here, so the segment is part of the position.
            self.place = (embed.position.weight + embed.segment.weight[0]).detach().to(dtype)
            self.norm = self._norm(embed.norm)
            self.blocks = [self._block(block) for block in body.blocks]
            classifies = loaded.head == "sequence_classification"
            self.pooler = self._linear(body.pooler) if classifies else None
            self.classifier = self._linear(module.classifier) if classifies else None

    def embed(self, texts: Sequence[str], *, normalise: bool = True) -> Tensor:
        """Means of the last states, (N, D) float32; of length 1 if normalise."""
        return self.embed_ids(self.tokenizer.encode_batch(list(texts), max_len=self.max_len), normalise=normalise)

    def embed_ids(self, rows: Rows, *, normalise: bool = True) -> Tensor:
        """The same for token ids. Raises LimitError for a row longer than the model takes."""
        result = self._each(rows, self.config.dim, _means)
        return F.normalize(result, dim=-1) if normalise else result

    def classify(self, texts: Sequence[str]) -> Tensor:
        """Logits (N, C) float32. Raises ConfigError if the model has no sequence-classification head."""
        return self.classify_ids(self.tokenizer.encode_batch(list(texts), max_len=self.max_len))

    def classify_ids(self, rows: Rows) -> Tensor:
        """The same for token ids."""
        pooler, classifier = self.pooler, self.classifier
        if pooler is None or classifier is None:
            raise ConfigError("model", why="has no head that classifies", hint="load it with head and labels")
        return self._each(rows, classifier.num_out, lambda x, groups: classifier(pooler(_firsts(x, groups)).tanh()))

    @torch.inference_mode()
    def hidden_packed(self, rows: Rows) -> tuple[Tensor, Groups]:
        """Last states (S, D) of all tokens of rows sorted by length, one after the other, and the runs of equal length."""
        lengths = [len(row) for row in rows]
        groups, start = [], 0
        for length in dict.fromkeys(lengths):
            count = lengths.count(length)
            groups.append((start, count, length))
            start += count * length
        # oneDNN makes and keeps a program for every number of rows, so there should be few numbers.
        filling = [0] * (-start % (8 if start < 64 else 32))
        tokens = torch.tensor([id for row in rows for id in row] + filling)
        places = torch.cat([torch.arange(length) for length in lengths] + [torch.tensor(filling, dtype=torch.int64)])
        x = self.norm(self.token[tokens] + self.place[places])
        for block in self.blocks:
            x = block.norm1(block.out(self._attend(block.qkv(x), groups), plus=x))
            x = block.norm2(block.down(block.up(x), plus=x))
        return x[:start], groups

    def _each(self, rows: Rows, width: int, reduce: Callable[[Tensor, Groups], Tensor]) -> Tensor:
        """reduce(states, groups) for all rows in passes of like lengths, (N, width) in the order of rows."""
        limit = self.config.max_seq_len
        for row in rows:
            if not 1 <= len(row) <= limit:
                raise LimitError("text", why=f"has {len(row)} tokens, the model takes 1 to {limit}", hint="set max_len")
        result = torch.zeros(len(rows), width)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        start = 0
        while start < len(order):
            end, tokens = start, 0
            while end < len(order) and (end == start or tokens + len(rows[order[end]]) <= MAX_TOKENS):
                tokens += len(rows[order[end]])
                end += 1
            chosen = order[start:end]
            with torch.inference_mode():
                found = reduce(*self.hidden_packed([rows[i] for i in chosen])).float()
            result[chosen] = found
            start = end
        return result

    def _attend(self, qkv: Tensor, groups: Groups) -> Tensor:
        """qkv: (S, 3D). Out: (S, D), 0 for what belongs to no group."""
        heads = self.config.num_heads
        parts, end = [], 0
        for start, count, length in groups:
            part = qkv[start : start + count * length].view(count, length, 3, heads, -1)
            q, k, v = part.permute(2, 0, 3, 1, 4)  # each (count, H, length, Dh)
            end = start + count * length
            parts.append(attend(q, k, v).transpose(1, 2).reshape(count * length, -1))
        if end < len(qkv):
            parts.append(qkv.new_zeros(len(qkv) - end, parts[0].shape[1]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _block(self, block: Any) -> _Block:
        q, k, v = block.attn.q, block.attn.k, block.attn.v
        weight, bias = torch.cat([q.weight, k.weight, v.weight]), torch.cat([q.bias, k.bias, v.bias])
        return _Block(
            qkv=Reordered(weight.detach().to(self.dtype), bias.detach().to(self.dtype)),
            out=self._linear(block.attn.o),
            norm1=self._norm(block.norm1),
            up=self._linear(block.ffn.up, gelu=True),
            down=self._linear(block.ffn.down),
            norm2=self._norm(block.norm2),
        )

    def _linear(self, layer: Any, *, gelu: bool = False) -> Reordered:
        return Reordered(layer.weight.detach().to(self.dtype), layer.bias.detach().to(self.dtype), gelu=gelu)

    def _norm(self, norm: Any) -> _Norm:
        return _Norm(norm.weight.detach().to(self.dtype), norm.bias.detach().to(self.dtype), norm.eps)


def _means(x: Tensor, groups: Groups) -> Tensor:
    """The mean state of each row, (N, D)."""
    return torch.cat([x[s : s + count * length].view(count, length, -1).float().mean(1) for s, count, length in groups])


def _firsts(x: Tensor, groups: Groups) -> Tensor:
    """The state of the first token of each row, (N, D)."""
    return torch.cat([x[s : s + count * length : length] for s, count, length in groups])
