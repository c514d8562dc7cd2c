"""Runs an exhibit: seed by seed, in a folder that can be taken up again."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiban.config import Progress, read_yaml, silent, to_dict, write_yaml
from kiban.errors import ConfigError, FormatError, KibanError, NonFiniteError
from kiban.files import exclusive, read_json, write_text
from kiban.tour.exhibit import MIN_SEEDS, PICTURES, Bar, Estimate, Exhibit, Lang, Outcome, kept_pictures
from kiban.tour.page import page, picture, record

if TYPE_CHECKING:
    from torch import nn

    from kiban.data.loader import Loader
    from kiban.objectives.base import Objective
    from kiban.train.settings import Hooks, TrainConfig, TrainResult


def fit(
    objective: Objective,
    module: nn.Module,
    loader: Loader[Any],
    config: TrainConfig,
    folder: Path,
    progress: Progress,
    *,
    hooks: Hooks | None = None,
) -> TrainResult:
    """Train to the end, or raise KibanError if a signal came before; the same call then goes on from the checkpoint."""
    from kiban.train.trainer import Trainer

    result = Trainer(objective, module, loader, config, folder=folder, hooks=hooks, progress=progress).run()
    if result.stopped_by == "sigterm":
        raise KibanError(folder, why="was stopped by a signal", hint="the same command goes on from there")
    return result


def run(
    exhibit: Exhibit,
    folder: Path,
    *,
    seeds: int = MIN_SEEDS,
    quick: bool = False,
    lang: Lang = "en",
    progress: Progress = silent,
) -> Outcome:
    """Measure seeds 0, 1, ... and write result.json, README.md and the plot below folder.

    A folder where the exhibit ran before with the same settings is taken up: seeds that it holds are not measured again.
    Raises ConfigError if it holds another run, NonFiniteError if a measure is no number.
    """
    settings = exhibit.quick if quick else exhibit.full
    _refuse_strangers(folder)
    (folder / "seeds").mkdir(parents=True, exist_ok=True)
    busy = ConfigError(folder, why="another kiban process works on this run", hint="wait for it")
    with exclusive(folder / ".lock", error=busy):
        _claim(folder, {"exhibit": exhibit.name, "quick": quick, "settings": to_dict(settings)})
        found = [_seed(exhibit, settings, seed, seeds, folder / "seeds", progress) for seed in range(seeds)]
        names = list(found[0]["measures"])
        estimates = {name: Estimate.of([one["measures"][name] for one in found]) for name in names}
        outcome = Outcome(
            exhibit=exhibit,
            folder=folder,
            quick=quick,
            settings=settings,
            estimates=estimates,
            bars=tuple(Bar.of(asked, estimates[asked.measure]) for asked in exhibit.requirements),
            seconds=tuple(one["seconds"] for one in found),
        )
        outcome.plot.parent.mkdir(exist_ok=True)
        picture(outcome, lang, outcome.plot)
        write_text(folder / "result.json", json.dumps(record(outcome), ensure_ascii=False, indent=1) + "\n")
        write_text(folder / "README.md", page(outcome, lang) + "\n")
    return outcome


def _refuse_strangers(folder: Path) -> None:
    if folder.is_dir() and not (folder / "config.yaml").exists():
        strangers = sorted(path.name for path in folder.iterdir() if path.name not in ("seeds", ".lock"))
        if strangers:
            raise ConfigError(folder, why=f"holds {strangers[0]}, and is no run of the tour", hint="give a new folder")


def _claim(folder: Path, wanted: dict[str, Any]) -> None:
    """Make the folder that of a run with these settings. Raises ConfigError if it is that of another."""
    path = folder / "config.yaml"
    if not path.exists():
        write_yaml(path, wanted)
    elif read_yaml(path) != json.loads(json.dumps(wanted)):
        raise ConfigError(folder, why="holds a run with other settings", hint="give a new folder")


def _seed(exhibit: Exhibit, settings: Any, seed: int, seeds: int, folder: Path, progress: Progress) -> dict[str, Any]:
    """What seed-N.json of an earlier sitting says, else what is measured now."""
    path, work = folder / f"seed-{seed}.json", folder / f"seed-{seed}"
    if path.exists():
        stored = read_json(path)
        if set(stored) != {"seconds", "measures"}:
            raise FormatError(path, why="is not the measurement of a seed", hint="remove it to measure again")
        return stored

    def tell(stage: str, done: int, total: int | None) -> None:
        progress(f"{exhibit.name} {seed + 1}/{seeds} | {stage}", done, total)

    started = time.perf_counter()
    measures = exhibit.measure(settings, seed=seed, folder=work, progress=tell)
    for name, value in measures.items():
        if not math.isfinite(value):
            raise NonFiniteError(f"{exhibit.name}, seed {seed}", field=name, why=f"is {value}")
    if (work / PICTURES).exists():
        shutil.copyfile(work / PICTURES, kept_pictures(folder, seed))
    facts = {"seconds": time.perf_counter() - started, "measures": dict(measures)}
    write_text(path, json.dumps(facts, indent=1) + "\n")
    shutil.rmtree(work, ignore_errors=True)
    return facts
