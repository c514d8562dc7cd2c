"""A BERT without padding: every matrix product runs over the real tokens of all texts at once, and only attention goes by
groups of equal length. On mixed lengths that is where most of an encoder's time is lost otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kiban import zoo
from kiban.errors import ConfigError
from kiban.nn.attention import attend

MAX_TOKENS = 4096  # of one pass: the activations should stay near the processor


class EncoderPlan:
    """Sentence embeddings of a Bert: the mean of the last states, in the order of the texts."""

    def __init__(self, loaded: zoo.Loaded, *, max_len: int | None = None) -> None:
        """max_len: texts are cut after so many tokens. Raises ConfigError if the model is not an encoder."""
        if loaded.family.traits.causal or loaded.tokenizer is None:
            raise ConfigError(
                loaded.source, why="is not an encoder", hint="choose a model that embeds (`kiban models`)"
            )
        self.tokenizer = loaded.tokenizer
        self.body = loaded.module if loaded.head is None else loaded.module.get_submodule("body")
        self.max_len = min(max_len or loaded.config.max_seq_len, loaded.config.max_seq_len)
        self.fused = [_fuse(block) for block in self.body.get_submodule("blocks").children()]

    def embed(self, texts: Sequence[str], *, normalise: bool = True) -> Tensor:
        """(N, D) float32; rows of length 1 if normalise."""
        return self.embed_ids(self.tokenizer.encode_batch(list(texts), max_len=self.max_len), normalise=normalise)

    @torch.inference_mode()
    def embed_ids(self, rows: Sequence[Sequence[int]], *, normalise: bool = True) -> Tensor:
        """The same for token ids."""
        dim: int = self.body.config.dim  # type: ignore[union-attr,assignment]
        result = torch.zeros(len(rows), dim)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        start = 0
        while start < len(order):
            end, tokens = start, 0
            while end < len(order) and (end == start or tokens + len(rows[order[end]]) <= MAX_TOKENS):
                tokens += len(rows[order[end]])
                end += 1
            chosen = order[start:end]
            result[chosen] = self._means([rows[i] for i in chosen])
            start = end
        return F.normalize(result, dim=-1) if normalise else result

    def _means(self, rows: list[Sequence[int]]) -> Tensor:
        """Mean states (N, D) of rows sorted by length."""
        lengths = [len(row) for row in rows]
        tokens = torch.tensor([id for row in rows for id in row])
        places = torch.cat([torch.arange(length) for length in lengths])
        embed = self.body.get_submodule("embed")
        x = embed.token(tokens) + embed.segment.weight[0] + embed.position(places)  # type: ignore[operator,union-attr,index]
        x = embed.norm(x)  # type: ignore[operator]  # (S, D), S the sum of lengths
        groups = _groups(lengths)
        for block, (weight, bias) in zip(self.body.get_submodule("blocks").children(), self.fused, strict=True):
            x = _block(block, x, weight, bias, groups)
        parts = [x[start : start + count * length].view(count, length, -1).mean(1) for start, count, length in groups]
        return torch.cat(parts)


def _groups(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Runs of equal length in sorted lengths: (first token, number of rows, length)."""
    groups, start = [], 0
    for length in dict.fromkeys(lengths):
        count = lengths.count(length)
        groups.append((start, count, length))
        start += count * length
    return groups


def _fuse(block: nn.Module) -> tuple[Tensor, Tensor]:
    """q, k and v of a block as one layer: weight (3D, D), bias (3D,)."""
    parts = [block.get_submodule(f"attn.{name}") for name in "qkv"]
    weight = torch.cat([part.weight.detach() for part in parts])  # type: ignore[misc]
    return weight, torch.cat([part.bias.detach() for part in parts])  # type: ignore[misc]


def _block(block: nn.Module, x: Tensor, weight: Tensor, bias: Tensor, groups: Sequence[tuple[int, int, int]]) -> Tensor:
    """One post-norm block over packed tokens (S, D)."""
    attn = block.get_submodule("attn")
    heads, head_dim = int(attn.num_heads), int(attn.head_dim)  # type: ignore[arg-type]
    qkv = F.linear(x, weight, bias)  # (S, 3D)
    mixed = torch.empty_like(x)
    for start, count, length in groups:
        part = qkv[start : start + count * length].view(count, length, 3, heads, head_dim)
        q, k, v = part.permute(2, 0, 3, 1, 4)  # each (count, H, length, Dh)
        mixed[start : start + count * length] = attend(q, k, v).transpose(1, 2).reshape(count * length, -1)
    x = block.norm1(x + attn.o(mixed))  # type: ignore[operator]
    return torch.as_tensor(block.norm2(x + block.ffn(x)))  # type: ignore[operator]
