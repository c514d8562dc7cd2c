"""Reversible rules between published weight names and ours. A name table is data; loading and saving read the same table.

    HF_NAMES = {"model.layers.{}.self_attn.q_proj.weight": Same("blocks.{}.attn.q.weight")}

`{}` stands for a number. Every rule maps one published tensor to one or more of ours and back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kiban.errors import FormatError


@dataclass(frozen=True)
class Same:
    """The same tensor under another name. optional: a file may lack it. aliases: older spellings, read only."""

    ours: str
    optional: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.ours,)

    def load(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return (tensor,)

    def save(self, *ours: Tensor) -> Tensor:
        return ours[0]


@dataclass(frozen=True)
class Transposed(Same):
    """Stored (in, out), as Conv1D does; ours is (out, in)."""

    def load(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return (tensor.mT.contiguous(),)

    def save(self, *ours: Tensor) -> Tensor:
        return ours[0].mT.contiguous()


@dataclass(frozen=True)
class RopeHalves(Same):
    """Rotary weights stored with interleaved pairs (Meta, GGUF); ours pairs i with i + Dh/2. num_heads of the tensor."""

    num_heads: int = 1

    def load(self, tensor: Tensor) -> tuple[Tensor, ...]:
        pairs = tensor.reshape(self.num_heads, -1, 2, *tensor.shape[1:])  # (H, Dh/2, 2, ...)
        return (pairs.transpose(1, 2).reshape(tensor.shape),)

    def save(self, *ours: Tensor) -> Tensor:
        halves = ours[0].reshape(self.num_heads, 2, -1, *ours[0].shape[1:])  # (H, 2, Dh/2, ...)
        return halves.transpose(1, 2).reshape(ours[0].shape)


@dataclass(frozen=True)
class Split:
    """One published tensor that packs several of ours along the first axis, in equal parts."""

    ours: tuple[str, ...]
    transposed: bool = False
    optional: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return self.ours

    def load(self, tensor: Tensor) -> tuple[Tensor, ...]:
        whole = tensor.mT if self.transposed and tensor.ndim == 2 else tensor
        return tuple(part.contiguous() for part in whole.reshape(len(self.ours), -1, *whole.shape[1:]))

    def save(self, *ours: Tensor) -> Tensor:
        whole = torch.cat(ours, dim=0)
        return whole.mT.contiguous() if self.transposed and whole.ndim == 2 else whole


@dataclass(frozen=True)
class Skip:
    """A published tensor that holds no weights (buffers of masks, positions); never written."""

    optional: bool = True
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return ()


SKIP = Skip()
Rule = Same | Split | Skip
NameTable = Mapping[str, Rule]


def both(published: str, ours: str, *, rule: type[Same] = Same, **options: Any) -> dict[str, Rule]:
    """Weight and bias of one layer. rule: of the weight; options: of both."""
    return {
        f"{published}.weight": rule(f"{ours}.weight", **options),
        f"{published}.bias": Same(f"{ours}.bias", **options),
    }


def prefixed(table: NameTable, published: str, ours: str) -> dict[str, Rule]:
    """The table with every published and every own name put behind a prefix."""
    result: dict[str, Rule] = {}
    for pattern, rule in table.items():
        aliases = tuple(published + alias for alias in rule.aliases)
        if isinstance(rule, Skip):
            result[published + pattern] = Skip(aliases=aliases)
        elif isinstance(rule, Split):
            names = tuple(ours + name for name in rule.ours)
            result[published + pattern] = Split(names, rule.transposed, rule.optional, aliases)
        else:
            fields = {**rule.__dict__, "ours": ours + rule.ours, "aliases": aliases}
            result[published + pattern] = type(rule)(**fields)
    return result


def to_ours(
    table: NameTable, tensors: Mapping[str, Tensor], *, wanted: Iterable[str], source: str
) -> dict[str, Tensor]:
    """Published tensors under our names; wanted are all that the architecture has.

    Raises FormatError that lists unknown and missing names, or names a tensor that stands twice or cannot be split.
    """
    rules = [(_regex(name), rule) for pattern, rule in table.items() for name in (pattern, *rule.aliases)]
    wanted = set(wanted)
    found: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in tensors.items():
        matches = ((regex.fullmatch(name), rule) for regex, rule in rules)
        match, rule = next(((match, rule) for match, rule in matches if match), (None, SKIP))
        own = [pattern.format(*match.groups()) for pattern in rule.names] if match else []
        if not match or not (rule.optional or wanted.issuperset(own)):
            unknown.append(name)  # a layer more than the architecture has is no less unknown
            continue
        if not found.keys().isdisjoint(own):
            raise FormatError(source, field=name, why=f"stands twice, under two spellings of {', '.join(own)}")
        found.update(_parts(rule, own, name, tensor, source))
    free = [_regex(pattern) for rule in table.values() if rule.optional for pattern in rule.names]
    missing = [n for n in sorted(wanted - found.keys()) if not any(regex.fullmatch(n) for regex in free)]
    if unknown or missing:
        words = [f"{what}: {_some(names)}" for what, names in (("unknown", unknown), ("missing", missing)) if names]
        raise FormatError(source, why=f"weights do not match the architecture; {'; '.join(words)}")
    return {name: value for name, value in found.items() if name in wanted}


def _parts(rule: Rule, own: list[str], name: str, tensor: Tensor, source: str) -> dict[str, Tensor]:
    """What a rule makes of one published tensor."""
    if isinstance(rule, Skip):
        return {}
    try:
        return dict(zip(own, rule.load(tensor), strict=True))
    except RuntimeError as error:  # of a shape that cannot be transposed, split or paired
        why = f"has shape {tuple(tensor.shape)}, which does not fit the architecture"
        raise FormatError(source, field=name, why=why) from error


def to_published(table: NameTable, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under published names. Every one of ours must be in the table."""
    result: dict[str, Tensor] = {}
    written: set[str] = set()
    for pattern, rule in table.items():
        if isinstance(rule, Skip):
            continue
        first = _regex(rule.names[0])
        for name in tensors:
            match = first.fullmatch(name)
            if not match:
                continue
            own = [n.format(*match.groups()) for n in rule.names]
            result[pattern.format(*match.groups())] = rule.save(*(tensors[n] for n in own)).contiguous()
            written |= set(own)
    left = sorted(set(tensors) - written)
    assert not left, f"no published name for {left}"
    return result


def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\{\}", r"([0-9]+)"))


def _some(names: list[str]) -> str:
    return ", ".join(f"{name!r:.100}" for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
