"""What a run of an exhibit leaves behind: a record for machines, a page and a picture for people."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kiban.adopt.folder import environment
from kiban.config import to_dict
from kiban.tour.exhibit import MIN_SEEDS, Bar, Estimate, Lang, Outcome, Words, shown

WIDTH, HEIGHT = 7, 4.5  # inches of a plot
JAPANESE_FONTS = ("Noto Sans CJK JP", "Noto Serif CJK JP", "IPAexGothic", "Hiragino Sans", "Yu Gothic", "Meiryo")
WORDS: dict[str, Words] = {
    "bars": {"ja": "合格基準", "en": "Bars"},
    "passed": {"ja": "合格", "en": "passed"},
    "missed": {"ja": "未達", "en": "missed"},
    "at_least": {"ja": "{} 以上", "en": "at least {}"},
    "at_most": {"ja": "{} 以下", "en": "at most {}"},
    "interval": {
        "ja": "{} 個のシードの平均と 95% 区間 (Student の t)。",
        "en": "Means over {} seeds with 95% intervals (Student's t).",
    },
    "few": {
        "ja": "判定には {} 個以上のシードが必要です。",
        "en": "No bar counts as passed with fewer than {} seeds.",
    },
    "quick": {
        "ja": "縮小した実行 (--quick) の結果です。基準は通常の実行についてのものです。",
        "en": "A reduced run (--quick); the bars are meant for the full one.",
    },
}


def asked(bar: Bar, lang: Lang) -> str:
    """What a bar demands."""
    side, limit = ("at_least", bar.at_least) if bar.at_least is not None else ("at_most", bar.at_most)
    return WORDS[side][lang].format(f"{limit:,g}" if limit is not None and abs(limit) < 1000 else f"{limit:,.0f}")


def verdict(bar: Bar, lang: Lang) -> str:
    """Passed or missed."""
    return WORDS["passed" if bar.passed else "missed"][lang]


def notes(outcome: Outcome, lang: Lang) -> list[str]:
    """What must be known to read the numbers."""
    count = len(outcome.seconds)
    lines = [WORDS["interval"][lang].format(count)]
    lines += [WORDS["few"][lang].format(MIN_SEEDS)] if count < MIN_SEEDS else []
    return [*lines, WORDS["quick"][lang]] if outcome.quick else lines


def record(outcome: Outcome) -> dict[str, Any]:
    """All that was measured, as plain values; a bound that a single seed does not give is null."""

    def bounds(found: Estimate | Bar) -> dict[str, Any]:
        return {k: v if math.isfinite(v) else None for k in ("value", "low", "high") for v in [getattr(found, k)]}

    return {
        "exhibit": outcome.exhibit.name,
        "date": datetime.date.today().isoformat(),
        "quick": outcome.quick,
        "passed": outcome.passed,
        "headline": {"en": outcome.headline("en"), "ja": outcome.headline("ja")},
        "bars": [
            {
                "name": dict(bar.name),
                **bounds(bar),
                "at_least": bar.at_least,
                "at_most": bar.at_most,
                "passed": bar.passed,
            }
            for bar in outcome.bars
        ],
        "measures": {name: {**bounds(e), "seeds": list(e.seeds)} for name, e in outcome.estimates.items()},
        "settings": to_dict(outcome.settings),
        "seconds": list(outcome.seconds),
        "environment": environment(),
    }


def page(outcome: Outcome, lang: Lang) -> str:
    """README.md of the run folder."""
    exhibit = outcome.exhibit
    heads, rows = outcome.table(lang)
    table = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    bars = [f"- {verdict(bar, lang)}: {bar.name[lang]}: {shown(bar)}, {asked(bar, lang)}" for bar in outcome.bars]
    blocks = [
        f"# {exhibit.title[lang]}",
        exhibit.shows[lang],
        outcome.headline(lang),
        "\n".join(f"| {' | '.join(cells)} |" for cells in table),
        " ".join(notes(outcome, lang)),
        f"## {WORDS['bars'][lang]}",
        "\n".join(bars),
        f"![{exhibit.title[lang]}]({outcome.plot.relative_to(outcome.folder).as_posix()})",
    ]
    return "\n\n".join(blocks)


def picture(outcome: Outcome, lang: Lang, path: Path) -> None:
    """Draw the exhibit's plot as PNG, above its pictures if it has any; in English where no font has Japanese characters."""
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    known = {font.name for font in font_manager.fontManager.ttflist}
    fonts = [name for name in JAPANESE_FONTS if name in known][:1]
    spoken: Lang = "ja" if fonts and lang == "ja" else "en"
    label, exhibit = outcome.exhibit.label, outcome.exhibit
    with matplotlib.rc_context({"font.family": [*fonts, "DejaVu Sans"] if spoken == "ja" else ["DejaVu Sans", *fonts]}):
        if label is None:
            figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
            axes = figure.subplots()
        else:
            with Image.open(outcome.pictures) as image:
                pixels = np.asarray(image.convert("RGB"))
            below = WIDTH * pixels.shape[0] / pixels.shape[1]
            figure = Figure(figsize=(WIDTH, HEIGHT + below), layout="constrained")
            axes, rest = figure.subplots(2, height_ratios=(HEIGHT, below))
            rest.imshow(pixels, interpolation="nearest")
            label(rest, spoken, bool(fonts))
        axes.set_title(exhibit.title[spoken])
        exhibit.draw(axes, outcome.estimates, spoken)
        figure.savefig(path, dpi=150)


def line(axes: Any, points: Sequence[Estimate | None], *, style: str, label: str) -> None:
    """A line with intervals through the points at 0, 1, 2 ...; None where one is missing."""
    places = [place for place, point in enumerate(points) if point is not None]
    known = [point for point in points if point is not None]
    spread = [[p.value - p.low for p in known], [p.high - p.value for p in known]]
    bounded = all(len(p.seeds) > 1 for p in known)
    values = [p.value for p in known]
    axes.errorbar(places, values, yerr=spread if bounded else None, fmt=style, capsize=3, label=label)
    axes.grid(alpha=0.3)
