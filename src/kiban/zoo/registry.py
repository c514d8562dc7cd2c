"""Every family and size by name, and models with random weights."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kiban import families as families_package
from kiban.config import Family, Head, did_you_mean
from kiban.errors import ConfigError
from kiban.inputs.tokenizer import Tokenizer


@dataclass
class Loaded:
    """A model in memory with all that belongs to it. head names its task head, None for the bare model.

    more_tokenizers: of the text towers behind the first, in a system that has several; they pad in ways of their own.
    """

    family: Family
    config: Any
    module: nn.Module
    tokenizer: Tokenizer | None
    head: str | None
    labels: tuple[str, ...]
    source: str
    path: Path | None
    more_tokenizers: tuple[Tokenizer, ...] = ()

    @property
    def tokenizers(self) -> tuple[Tokenizer, ...]:
        """All tokenizers, the first one first."""
        return (() if self.tokenizer is None else (self.tokenizer,)) + self.more_tokenizers

    @property
    def num_parameters(self) -> int:
        """Parameters, shared ones counted once."""
        return sum(p.numel() for p in self.module.parameters())


@cache
def families() -> dict[str, Family]:
    """Every family by name."""
    names = [module.name for module in pkgutil.iter_modules(families_package.__path__)]
    found = [importlib.import_module(f"kiban.families.{name}").FAMILY for name in names]
    return {family.name: family for family in found}


def presets() -> dict[str, tuple[Family, Any]]:
    """Every published size by name, with its family and configuration."""
    return {name: (family, config) for family in families().values() for name, config in family.presets.items()}


def find_preset(name: str) -> tuple[Family, Any]:
    """The family and configuration of a published size. Raises ConfigError with the closest one."""
    if name not in presets():
        raise ConfigError("preset", field=name, why="unknown", hint=did_you_mean(name, presets()))
    return presets()[name]


def create(
    preset: str,
    *,
    head: str | None = None,
    labels: Sequence[str] = (),
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Loaded:
    """A new model with random weights (on device "meta": sizes only). Raises ConfigError if the preset is unknown."""
    family, config = find_preset(preset)
    return new(family, config, preset, head=head, labels=labels, generator=generator, dtype=dtype, device=device)


def new(
    family: Family,
    config: Any,
    source: str,
    *,
    head: str | None = None,
    labels: Sequence[str] = (),
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Loaded:
    """A model of this configuration with random weights, named source. As `create`."""
    with torch.device(device):
        module = family.build(config).to(dtype)
        module = module if head is None else head_of(family, head).build(module, len(labels)).to(dtype)
    if torch.device(device).type != "meta":
        initialise(module, generator)
    return Loaded(family, config, module, None, head, tuple(labels), source, None)


def initialise(module: nn.Module, generator: torch.Generator | None) -> nn.Module:
    """Draw all weights of a model, body first, as its paper does; returns it."""
    for part in [m for m in module.children() if hasattr(m, "initialise")] + [module]:
        part.initialise(generator)  # type: ignore[operator]
    return module


def head_of(family: Family, name: str) -> Head:
    """A task head of a family by name. Raises ConfigError with the closest one."""
    if name not in family.heads:
        raise ConfigError(family.name, field=name, why="has no such head", hint=did_you_mean(name, family.heads))
    return family.heads[name]
