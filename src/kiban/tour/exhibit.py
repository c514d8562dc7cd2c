"""What an exhibit of the tour is: how it measures, what is asked of it, and what came out.

An exhibit is a file of this package with `EXHIBIT = Exhibit(...)` in it. It measures one seed at a time and gives plain
numbers by name; seeds, intervals, bars, table, files and picture are made of those in `running` and `page`.
"""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from kiban.config import Progress, did_you_mean
from kiban.errors import ConfigError

Lang = Literal["ja", "en"]
Words = Mapping[Lang, str]
Measures = Mapping[str, float]
PICTURES = "pictures.png"  # what a measure may leave in its folder to be shown
MIN_SEEDS = 3  # fewer say too little about the next seed for a bar to count


class Measure(Protocol):
    """Trains and measures one seed. What it writes below folder lets a stopped run go on, and is removed at the end.

    PICTURES, if it is written there, is kept.
    """

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


@dataclass(frozen=True)
class Requirement:
    """A bar as it is set, for one of the measures: the whole interval must be at least, or at most, so much."""

    measure: str
    name: Words
    at_least: float | None = field(default=None, kw_only=True)
    at_most: float | None = field(default=None, kw_only=True)

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
    one line for a README, a format string over the means. label(axes, lang, japanese), where measure leaves PICTURES: names
    the rows and columns of the first seed's, which axes show; japanese: whether Japanese characters can be written.
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
    label: Callable[[Any, Lang, bool], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an exhibit measured. settings: those that it ran with; seconds: what each seed took, in its last sitting."""

    exhibit: Exhibit
    folder: Path
    quick: bool
    settings: Any
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

    @property
    def pictures(self) -> Path:
        """The pictures of the first seed, if the exhibit has any."""
        return kept_pictures(self.folder / "seeds", 0)

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
    """A value with its interval, to three digits or so."""
    digits = 0 if abs(found.value) >= 1000 else 1 if abs(found.value) >= 10 else 2
    if not math.isfinite(found.low):
        return f"{found.value:,.{digits}f} (–)"
    return f"{found.value:,.{digits}f} ({found.low:,.{digits}f} – {found.high:,.{digits}f})"


def kept_pictures(folder: Path, seed: int) -> Path:
    """Where a run keeps the pictures of a seed."""
    return folder / f"seed-{seed}.png"


def exhibits() -> dict[str, Exhibit]:
    """Every exhibit by name: a scan of this package. An exhibit is named as its file."""
    found = {name: getattr(import_module(f"kiban.tour.{name}"), "EXHIBIT", None) for name in _files()}
    return {name: exhibit for name, exhibit in found.items() if exhibit is not None}


def find(name: str) -> Exhibit:
    """The exhibit of this name. Raises ConfigError if there is none."""
    exhibit = getattr(import_module(f"kiban.tour.{name}"), "EXHIBIT", None) if name in _files() else None
    if exhibit is None:
        raise ConfigError("exhibit", field=name, why="is not on the tour", hint=did_you_mean(name, exhibits()))
    assert isinstance(exhibit, Exhibit) and exhibit.name == name
    return exhibit


def _files() -> list[str]:
    import kiban.tour

    return sorted(module.name for module in pkgutil.iter_modules(kiban.tour.__path__))
