"""config.yaml of a pretraining run."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kiban.config import did_you_mean, from_dict, override, read_yaml, to_dict
from kiban.errors import ConfigError
from kiban.recipes.base import Recipe, find
from kiban.recipes.corpus import Corpus
from kiban.recipes.pretrain import Plan

FAMILIES = ("gpt", "llama", "bert")
CHANGEABLE = ("lr", "batch_tokens", "micro_tokens", "optimizer", "weight_decay", "schedule", "warmup", "z_loss")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """config.yaml of a run: all that repeats it. seconds are of the whole run; of steps, tokens and seconds one is given."""

    family: str
    data: str
    size: str = "auto"
    seconds: float | None = None
    tokens: int | None = None
    steps: int | None = None
    tokenizer: str | None = None
    vocab_size: int = 0
    field: str = "text"
    precision: str = "auto"
    compile: bool = False
    recompute: bool = False
    ema: float = 0.0
    processes: int = 0
    seed: int = 0
    lang: str = "en"
    recipe: dict[str, Any] | None = None  # settings of the recipe that differ from its own: lr, batch_tokens ...


def resolve(given: Mapping[str, Any], config: Path | None, changes: Sequence[str]) -> Settings:
    """Settings from what was given, else from a config.yaml, else the usual; changes are `name=value`.

    Raises ConfigError for what is unknown, missing or contradictory.
    """
    usual = to_dict(Settings(family="", data=""))
    values = {**usual, **(read_yaml(config) if config else {})}
    values |= {key: value for key, value in given.items() if value is not None and (value != usual[key] or not config)}
    if values["recipe"] is None:
        values["recipe"] = {}
    names = {change.partition("=")[0].removeprefix("recipe.") for change in changes if change.startswith("recipe.")}
    settings = from_dict(Settings, override({**values, "recipe": dict.fromkeys(names) | values["recipe"]}, changes))
    if settings.family not in FAMILIES:
        hint = did_you_mean(settings.family or "", FAMILIES)
        raise ConfigError("pretrain", field=settings.family or "family", why="there is no recipe for it", hint=hint)
    if not settings.data:
        raise ConfigError("pretrain", field="--data", why="is missing", hint="give a file or folder of text")
    if sum(bool(value) for value in (settings.seconds, settings.tokens, settings.steps)) != 1:
        raise ConfigError("pretrain", why="needs one of --time, --tokens and --steps", hint="for example --time 20m")
    return settings


def read(folder: Path) -> Settings:
    """The settings of a run. Raises ConfigError if the folder holds none."""
    path = folder / "config.yaml"
    if not path.exists():
        raise ConfigError(folder, why="is not a run folder", hint="give the folder that `kiban pretrain` printed")
    return from_dict(Settings, read_yaml(path))


def recipes(settings: Settings) -> dict[str, Recipe]:
    """The recipe that was asked for, or those that a time budget chooses from."""
    module = importlib.import_module(f"kiban.recipes.{settings.family}")
    if settings.size == "auto" and not settings.seconds:
        raise ConfigError("--size", why="is needed with --tokens and --steps", hint="one of --sizes, or give --time")
    names = module.LADDER if settings.size == "auto" else (settings.size,)
    changes = settings.recipe or {}
    for key in changes:
        if key not in CHANGEABLE:
            raise ConfigError("recipe", field=key, why="cannot be set", hint=did_you_mean(key, CHANGEABLE))
    return {name: replace(find(module.SIZES, name), **changes) for name in names}


def plan(settings: Settings, recipe: Recipe, corpus: Corpus) -> Plan:
    """What is trained, as the settings say."""
    return Plan(
        recipe=recipe,
        corpus=corpus,
        seed=settings.seed,
        precision=settings.precision,  # type: ignore[arg-type]
        compile=settings.compile,
        recompute=settings.recompute,
        ema=settings.ema,
    )
