"""One file per way to adopt a model. Each is imported on first use, so that measuring one loads only that one."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from kiban.adopt.strategies.base import Predictor, Strategy, TaskKind
from kiban.config import did_you_mean
from kiban.errors import ConfigError, FormatError
from kiban.files import read_json

# Cheap ones first, the baseline before all.
BY_KIND: dict[TaskKind, tuple[str, ...]] = {
    "single_label": ("baseline", "linear_head", "zero_shot", "few_shot", "finetune_encoder", "lora_decoder"),
    "image": ("image_baseline", "image_zero_shot", "image_neighbours", "image_head", "small_cnn", "image_lora"),
}
NAMES = tuple(name for names in BY_KIND.values() for name in names)
BASELINES = frozenset(names[0] for names in BY_KIND.values())


def strategy(name: str) -> Strategy:
    """The strategy of this name. Raises ConfigError if there is none."""
    if name not in NAMES:
        raise ConfigError("strategies", field=name, why="unknown strategy", hint=did_you_mean(name, NAMES))
    return cast(Strategy, importlib.import_module(f"kiban.adopt.strategies.{name}").STRATEGY)


def load_predictor(folder: Path) -> Predictor:
    """Open a folder that a strategy's predictor saved (a candidate's `model/`, a run's `final/`).

    Raises FormatError if it is something else.
    """
    manifest = read_json(folder / "kiban.json") if (folder / "kiban.json").is_file() else {}
    name = manifest.get("strategy")
    if name not in NAMES:
        raise FormatError(folder, why="holds no adopted model", hint="give the final/ folder of a `kiban adopt` run")
    module = importlib.import_module(f"kiban.adopt.strategies.{name}")
    try:
        return cast(Predictor, module.PREDICTOR.load(folder))
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(folder, why=f"a setting is missing or of the wrong kind: {error!r}") from error
