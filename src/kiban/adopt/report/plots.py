"""The plots of the report as SVG: text stays text, colours follow the page, no fonts and no drawing library needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kiban.adopt.report.formats import plain
from kiban.adopt.report.svg import Box, Canvas, Labels, clip, clip_middle, text_width
from kiban.adopt.result import Forecast, Interval

MAX_CONFUSION = 30  # more classes than this cannot be read as a table


@dataclass(frozen=True, kw_only=True)
class Point:
    """A candidate in the Pareto plot; cost > 0."""

    number: int
    name: str
    cost: float
    quality: Interval
    on_front: bool
    recommended: bool


@dataclass(frozen=True, kw_only=True)
class Line:
    """A learning curve: (training rows, macro-F1) in order."""

    number: int
    name: str
    points: tuple[tuple[int, float], ...]
    recommended: bool


@dataclass(frozen=True)
class Axes:
    """A plotting area and its scales."""

    box: Box
    x: Callable[[float], float]
    y: Callable[[float], float]


def _score_ticks(low: float, high: float) -> list[float]:
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2) if (high - low) / s <= 7)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _score_axis(canvas: Canvas, box: Box, values: Sequence[float], title: str) -> Callable[[float], float]:
    """Draw the vertical axis for scores in 0..1; returns score -> pixel."""
    low, high = min(values), max(values)
    room = max(0.02, 0.08 * (high - low))
    low, high = max(0.0, low - room), min(1.0, high + room)
    left, top, right, bottom = box

    def scale(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    ticks = _score_ticks(low, high)
    digits = 2 if len(ticks) > 1 and ticks[1] - ticks[0] < 0.099 else 1
    for tick in ticks:
        canvas.line(left, scale(tick), right, scale(tick), "grid")
        canvas.text(left - 7, scale(tick) + 4, f"{tick:.{digits}f}", size=11, anchor="end", kind="soft")
    canvas.text(left - 40, top - 12, title, size=12, kind="soft")
    return scale


def _log_axis(canvas: Canvas, box: Box, values: Sequence[float], title: str) -> Callable[[float], float]:
    """Draw the horizontal logarithmic axis; returns value -> pixel."""
    left, top, right, bottom = box
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max(0.2, 0.1 * (high - low))
    low, high = low - room, high + room

    def scale(value: float) -> float:
        return left + (math.log10(value) - low) / (high - low) * (right - left)

    steps = (1,) if high - low > 3.2 else (1, 3) if high - low > 1.6 else (1, 2, 5)
    ticks = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in steps]
    for tick in (t for t in ticks if low <= math.log10(t) <= high):
        canvas.line(scale(tick), top, scale(tick), bottom, "grid")
        canvas.text(scale(tick), bottom + 17, plain(tick, 1), size=11, anchor="middle", kind="soft")
    canvas.text((left + right) / 2, bottom + 38, title, size=12, anchor="middle", kind="soft")
    return scale


def pareto(points: Sequence[Point], *, width: float, x_title: str, y_title: str, alt: str) -> Canvas:
    """Quality with intervals against cost. Under 500 pixels the labels are the numbers alone."""
    narrow = width < 500
    canvas = Canvas(width, 330 if narrow else 440, alt)
    box = (46.0, 30.0, width - 14, canvas.height - 52)
    bounds = [bound for p in points for bound in (p.quality.low, p.quality.high, p.quality.value)]
    y = _score_axis(canvas, box, bounds, y_title)
    x = _log_axis(canvas, box, [p.cost for p in points], x_title)
    canvas.line(box[0], box[3], box[2], box[3], "axis")
    front = sorted((p for p in points if p.on_front), key=lambda p: p.cost)
    corners = [(x(p.cost), y(p.quality.value)) for p in front]
    # A step, because between two candidates there is nothing that could be had.
    steps = [corners[0], *(q for a, b in pairwise(corners) for q in ((b[0], a[1]), b))] if corners else []
    if steps:
        steps.append((box[2], steps[-1][1]))
        canvas.path(steps, "accent-line", width=1.5, dash="5 4")
    labels = Labels(box, size=12)
    for p in points:
        here, low, high = x(p.cost), y(p.quality.low), y(p.quality.high)
        canvas.line(here, low, here, high, "bar", width=1.4)
        for end in (low, high):
            canvas.line(here - 4, end, here + 4, end, "bar", width=1.4)
        labels.taken += [
            (here - 5, high, here + 5, low),
            (here - 9, y(p.quality.value) - 9, here + 9, y(p.quality.value) + 9),
        ]
    # Soft obstacles: a label across the front line is readable but not pretty.
    labels.taken += [
        (min(a[0], b[0]), min(a[1], b[1]) - 1, max(a[0], b[0]), max(a[1], b[1]) + 1) for a, b in pairwise(steps)
    ]
    for p in points:
        spot = (x(p.cost), y(p.quality.value))
        if p.recommended:
            canvas.circle(*spot, 10, "accent-line", width=2)
        canvas.circle(*spot, 6, "accent" if p.on_front or p.recommended else "hollow", title=p.name)
    for p in sorted(points, key=lambda p: (not p.recommended, not p.on_front, p.number)):
        text = str(p.number) if narrow else f"{p.number} {p.name}"
        kind, radius = ("bold accent", 10) if p.recommended else ("", 6)
        labels.place(canvas, x(p.cost), y(p.quality.value), text, kind=kind, radius=radius)
    return canvas


def confusion(
    labels: Sequence[str], matrix: Sequence[Sequence[int]], *, width: float, x_title: str, y_title: str, alt: str
) -> Canvas:
    """Heat map [truth][predicted]; shade is the share of the row, numbers are rows of the table."""
    size = 12.0 if width >= 500 else 9.5
    side = min(max(text_width(label, size) for label in labels) + 10, width * 0.27)
    names = [clip_middle(label, size, side - 10) for label in labels]
    lean = text_width(names[-1], size) * 0.72  # the last column's name, turned by 45 degrees, leans over the edge
    cell = min((width - side - 22 - lean) / (len(labels) - 0.5), 58.0)
    high = min(cell, 36.0)
    top = 26 + max(text_width(name, size) for name in names) * 0.72 + 10
    left = side + 18
    canvas = Canvas(width, top + high * len(labels) + 8, alt)
    canvas.text(left, 14, f"{x_title} →", size=size, kind="soft")
    canvas.text(12, top + high * len(labels) / 2, f"← {y_title}", size=size, anchor="middle", kind="soft", turn=-90)
    for i, name in enumerate(names):
        canvas.text(left - 6, top + high * (i + 0.5) + size * 0.36, name, size=size, anchor="end")
        canvas.text(left + cell * (i + 0.5) + size * 0.2, top - 6, name, size=size, turn=-45)
        total = sum(matrix[i])
        for j, count in enumerate(matrix[i]):
            spot = (left + cell * j + 1, top + high * i + 1, left + cell * (j + 1) - 1, top + high * (i + 1) - 1)
            share = count / total if total else 0.0
            canvas.rect(spot, "empty")
            if count:
                canvas.rect(
                    spot,
                    "accent" if i == j else "wrong",
                    opacity=0.18 + 0.82 * share if i == j else min(1.0, 0.22 + 1.6 * share),
                    title=f"{labels[i]} → {labels[j]}: {count} / {total} ({share:.0%})",
                )
                if cell >= 13:
                    shade = "on" if (share > 0.5 and i == j) else ""
                    middle = ((spot[0] + spot[2]) / 2, (spot[1] + spot[3]) / 2 + size * 0.36)
                    canvas.text(*middle, str(count), size=min(size, cell * 0.5), anchor="middle", kind=shade)
    return canvas


def curves(
    lines: Sequence[Line], forecast: Forecast | None, *, width: float, x_title: str, y_title: str, words: str, alt: str
) -> Canvas:
    """Learning curves; the forecast is a dashed line to an interval. words names the forecast."""
    narrow = width < 500
    canvas = Canvas(width, 300 if narrow else 380, alt)
    room = 34.0 if narrow else min(300.0, 24 + max(text_width(f"{one.number} {one.name}", 12) for one in lines))
    box = (46.0, 30.0, width - room, canvas.height - 52)
    values = [score for one in lines for _, score in one.points]
    most = max(rows for one in lines for rows, _ in one.points)
    if forecast:
        values += [forecast.macro_f1_twice.low, forecast.macro_f1_twice.high]
        most = max(most, forecast.rows_twice)
    y = _score_axis(canvas, box, values, y_title)
    x = _row_axis(canvas, box, most, x_title)
    ends: list[tuple[float, float, Line]] = []
    for one in sorted(lines, key=lambda one: one.recommended):
        path = [(x(rows), y(score)) for rows, score in one.points]
        kind = "accent-line" if one.recommended else "bar"
        canvas.path(path, kind, width=2.5 if one.recommended else 1.2)
        for spot in path:
            canvas.circle(*spot, 4 if one.recommended else 3, "accent" if one.recommended else "hollow")
        end = path[-1]
        if one.recommended and forecast:
            end = _draw_forecast(canvas, forecast, x, y, end, words)
        ends.append((*end, one))
    _end_labels(canvas, ends, box, narrow=narrow, room=room)
    return canvas


def _row_axis(canvas: Canvas, box: Box, most: int, title: str) -> Callable[[float], float]:
    left, _, right, bottom = box

    def scale(value: float) -> float:
        return left + value / most * (right - left)

    step = next(m * 10**e for e in range(9) for m in (1, 2, 5) if most / (m * 10**e) <= 6)
    for tick in range(0, most + 1, step):
        canvas.line(scale(tick), bottom, scale(tick), bottom + 4, "axis")
        canvas.text(scale(tick), bottom + 17, f"{tick:,}", size=11, anchor="middle", kind="soft")
    canvas.line(left, bottom, right, bottom, "axis")
    canvas.text((left + right) / 2, bottom + 38, title, size=12, anchor="middle", kind="soft")
    return scale


def _draw_forecast(
    canvas: Canvas,
    forecast: Forecast,
    x: Callable[[float], float],
    y: Callable[[float], float],
    start: tuple[float, float],
    words: str,
) -> tuple[float, float]:
    """The dashed line and its interval; returns where it ends."""
    guess = forecast.macro_f1_twice
    end = (x(forecast.rows_twice), y(guess.value))
    canvas.path([start, end], "accent-line", width=2, dash="3 5")
    canvas.line(end[0], y(guess.low), end[0], y(guess.high), "accent-line", width=2)
    for bound in (guess.low, guess.high):
        canvas.line(end[0] - 5, y(bound), end[0] + 5, y(bound), "accent-line", width=2)
    canvas.circle(*end, 4, "hollow")
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 - 10)
    canvas.text(*middle, words, size=11, anchor="middle", kind="halo accent")
    return end


def _end_labels(canvas: Canvas, ends: list[tuple[float, float, Line]], box: Box, *, narrow: bool, room: float) -> None:
    """Names at the right margin in the order of the lines, pushed apart until none overlap."""
    gap = 16.0
    ends = sorted(ends, key=lambda end: end[1])
    heights: list[float] = []
    for _, wanted, _ in ends:
        heights.append(max(wanted, heights[-1] + gap if heights else box[1]))
    limit = box[3]
    for i in range(len(heights) - 1, -1, -1):
        heights[i] = min(heights[i], limit)
        limit = heights[i] - gap
    for height, (end_x, end_y, one) in zip(heights, ends):
        text = str(one.number) if narrow else clip(f"{one.number} {one.name}", 12, room - 16)
        canvas.line(end_x + 6, end_y, box[2] + 6, height, "grid", width=0.8)
        canvas.text(box[2] + 10, height + 4, text, size=12, kind="bold accent" if one.recommended else "")
