"""What the exhibits of the tour share: seeds and intervals, bars, a table, a plot, and a run folder that can be taken up again.

An exhibit is a file of this package with `EXHIBIT = Exhibit(...)` in it. It measures one seed at a time and gives plain
numbers by name; everything else happens here.
"""

from __future__ import annotations

import json
import math
import os
import pkgutil
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from kiban.config import Progress, did_you_mean, read_yaml, silent, to_dict, write_yaml
from kiban.errors import ConfigError, FormatError, KibanError, NonFiniteError
from kiban.files import exclusive, read_json

if TYPE_CHECKING:
    from torch import nn

    from kiban.data.loader import Loader
    from kiban.objectives.base import Objective
    from kiban.train.settings import TrainConfig, TrainResult

Lang = Literal["ja", "en"]
Words = Mapping[Lang, str]
Measures = Mapping[str, float]
MIN_SEEDS = 3  # fewer say too little about the next seed for a bar to count
JAPANESE_FONTS = ("Noto Sans CJK JP", "IPAexGothic", "Hiragino Sans", "Yu Gothic", "Meiryo", "TakaoGothic")


class Measure(Protocol):
    """Trains and measures one seed. What it writes below folder lets it go on if it is stopped, and is removed at the end."""

    def __call__(self, settings: Any, *, seed: int, folder: Path, progress: Progress) -> Measures: ...


@dataclass(frozen=True)
class Estimate:
    """A measure over the seeds: the mean, and the 95% interval of Student's t for the mean; unbounded for a single seed."""

    seeds: tuple[float, ...]
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, seeds: Sequence[float]) -> Estimate:
        """The estimate from one number a seed."""
        from scipy.stats import t

        count = len(seeds)
        mean = sum(seeds) / count
        if count == 1:
            return cls(tuple(seeds), mean, -math.inf, math.inf)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in seeds) / (count - 1))
        half = float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)
        return cls(tuple(seeds), mean, mean - half, mean + half)


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """A bar as it is set, for one of the measures: the whole interval must be at least, or at most, so much."""

    measure: str
    name: Words
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        assert (self.at_least is None) != (self.at_most is None), "a bar has one side"


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar and what was measured. passed: the interval clears it, over at least MIN_SEEDS seeds."""

    name: Words
    value: float
    low: float
    high: float
    at_least: float | None
    at_most: float | None
    passed: bool

    @classmethod
    def of(cls, asked: Requirement, found: Estimate) -> Bar:
        """How an estimate stands to what is asked of it."""
        clears = found.low >= asked.at_least if asked.at_least is not None else found.high <= (asked.at_most or 0.0)
        return cls(
            name=asked.name,
            value=found.value,
            low=found.low,
            high=found.high,
            at_least=asked.at_least,
            at_most=asked.at_most,
            passed=clears and len(found.seeds) >= MIN_SEEDS,
        )


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One system's signature ability.

    shows: what is trained, what is measured, what the ablation takes away. full, quick: the settings, frozen dataclasses;
    quick is a reduced run that a test affords. columns: heads of the table, the first of which names the rows; rows: a name
    and the measures of the cells, None for an empty one. draw(axes, estimates, lang) draws into matplotlib axes. headline:
    one line for a README, a format string over the means.
    """

    name: str
    title: Words
    shows: Words
    full: Any
    quick: Any
    measure: Measure
    requirements: tuple[Requirement, ...]
    columns: tuple[Words, ...]
    rows: tuple[tuple[Words, tuple[str | None, ...]], ...]
    draw: Callable[[Any, Mapping[str, Estimate], Lang], None]
    headline: Words


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an exhibit measured. seconds: what each seed took, in its last sitting."""

    exhibit: Exhibit
    folder: Path
    quick: bool
    estimates: Mapping[str, Estimate]
    bars: tuple[Bar, ...]
    seconds: tuple[float, ...]

    @property
    def passed(self) -> bool:
        """All bars are cleared."""
        return all(bar.passed for bar in self.bars)

    @property
    def plot(self) -> Path:
        """The picture."""
        return self.folder / "plots" / f"{self.exhibit.name}.png"

    def headline(self, lang: Lang) -> str:
        """One line that says what came out."""
        return self.exhibit.headline[lang].format_map({name: found.value for name, found in self.estimates.items()})

    def table(self, lang: Lang) -> tuple[list[str], list[list[str]]]:
        """Heads and rows as text."""
        cells = [
            [name[lang], *("" if measure is None else shown(self.estimates[measure]) for measure in measures)]
            for name, measures in self.exhibit.rows
        ]
        return [words[lang] for words in self.exhibit.columns], cells


def shown(found: Estimate | Bar) -> str:
    """A value with its interval; whole numbers where the digits behind the point say nothing."""
    digits = 0 if abs(found.value) >= 1000 else 1
    if not math.isfinite(found.low):
        return f"{found.value:,.{digits}f} (–)"
    return f"{found.value:,.{digits}f} ({found.low:,.{digits}f} – {found.high:,.{digits}f})"


def exhibits() -> dict[str, Exhibit]:
    """Every exhibit by name: a scan of this package."""
    import kiban.tour

    names = [module.name for module in pkgutil.iter_modules(kiban.tour.__path__)]
    modules = [import_module(f"kiban.tour.{name}") for name in sorted(names) if name != "exhibit"]
    found = [module.EXHIBIT for module in modules if hasattr(module, "EXHIBIT")]
    return {exhibit.name: exhibit for exhibit in found}


def find(name: str) -> Exhibit:
    """The exhibit of this name. Raises ConfigError if there is none."""
    known = exhibits()
    if name not in known:
        raise ConfigError("exhibit", field=name, why="is not on the tour", hint=did_you_mean(name, known))
    return known[name]


def fit(
    objective: Objective, module: nn.Module, loader: Loader[Any], config: TrainConfig, folder: Path, progress: Progress
) -> TrainResult:
    """Train to the end, or raise KibanError if a signal came before; the same call then goes on from the checkpoint."""
    from kiban.train.trainer import Trainer

    result = Trainer(objective, module, loader, config, folder=folder, progress=progress).run()
    if result.stopped_by == "sigterm":
        raise KibanError(folder, why="was stopped by a signal", hint="the same command goes on from there")
    return result


def run(
    exhibit: Exhibit, folder: Path, *, seeds: int = MIN_SEEDS, quick: bool = False, progress: Progress = silent
) -> Outcome:
    """Measure seeds 0, 1, ... and write result.json, README.md and the plot below folder.

    A folder where the exhibit ran before with the same settings is taken up: seeds that it holds are not measured again.
    Raises ConfigError if it holds another run, NonFiniteError if a measure is no number.
    """
    settings = exhibit.quick if quick else exhibit.full
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
            estimates=estimates,
            bars=tuple(Bar.of(asked, estimates[asked.measure]) for asked in exhibit.requirements),
            seconds=tuple(one["seconds"] for one in found),
        )
        _write(outcome, settings)
    return outcome


def _claim(folder: Path, wanted: dict[str, Any]) -> None:
    """Make the folder that of a run with these settings. Raises ConfigError if it belongs to something else."""
    path = folder / "config.yaml"
    if not path.exists():
        strangers = [p.name for p in folder.iterdir() if p.name not in ("seeds", ".lock")]
        if strangers:
            raise ConfigError(folder, why=f"holds {strangers[0]}, and is no run of the tour", hint="give a new folder")
        write_yaml(path, wanted)
    elif read_yaml(path) != json.loads(json.dumps(wanted)):
        raise ConfigError(folder, why="holds a run with other settings", hint="give a new folder")


def _seed(
    exhibit: Exhibit, settings: Any, seed: int, seeds: int, folder: Path, progress: Progress
) -> dict[str, Any]:
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
    facts = {"seconds": time.perf_counter() - started, "measures": dict(measures)}
    _put(path, json.dumps(facts, indent=1))
    shutil.rmtree(work, ignore_errors=True)
    return facts


def _put(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text + "\n", encoding="utf-8")
    beside.replace(path)


def _write(outcome: Outcome, settings: Any) -> None:
    outcome.plot.parent.mkdir(exist_ok=True)
    picture(outcome.exhibit, outcome.estimates, outcome.plot)
    _put(outcome.folder / "result.json", json.dumps(record(outcome, settings), ensure_ascii=False, indent=1))
    _put(outcome.folder / "README.md", "\n\n".join(page(outcome, lang) for lang in ("en", "ja")))
