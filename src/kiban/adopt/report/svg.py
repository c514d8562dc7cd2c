"""Just enough SVG: escaped text, measured text, labels that keep out of each other's way."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass, field
from html import escape

# Colours are CSS variables that the page sets (light, dark, print); the fallbacks serve a plot opened on its own.
STYLE = """
text{font-family:system-ui,"Hiragino Sans","Yu Gothic UI","Meiryo","Noto Sans CJK JP","Noto Sans JP",sans-serif;
fill:var(--ink,#1c2430)}
.soft{fill:var(--soft,#5b6675)}.grid{stroke:var(--line,#dde2e8)}.axis{stroke:var(--soft,#5b6675)}
.accent{fill:var(--accent,#1f5fc4)}.accent-line{stroke:var(--accent,#1f5fc4);fill:none}
.bar{stroke:var(--soft,#5b6675)}.hollow{fill:var(--card,#fff);stroke:var(--soft,#5b6675)}
.halo{paint-order:stroke;stroke:var(--card,#fff);stroke-width:3px;stroke-linejoin:round}
.wrong{fill:var(--wrong,#d9822b)}.on{fill:var(--on-accent,#fff)}.bold{font-weight:700}
.empty{fill:var(--empty,#f4f6f8)}.back{fill:var(--card,#fff)}
"""

Box = tuple[float, float, float, float]  # left, top, right, bottom


def text_width(text: str, size: float) -> float:
    """About how wide a text is; East Asian wide characters take a full em."""
    return size * sum(1.0 if unicodedata.east_asian_width(c) in "WFA" else 0.56 for c in text)


def clip(text: str, size: float, width: float) -> str:
    """The text, ended by an ellipsis if it is wider than width."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text + "…"


def clip_middle(text: str, size: float, width: float) -> str:
    """As clip, but the end stays too: "question type 11" and "question type 12" must not become one."""
    if text_width(text, size) <= width:
        return text
    keep = len(text) - 1
    while keep > 1 and text_width(text[: keep - keep // 2] + "…" + text[-(keep // 2) :], size) > width:
        keep -= 1
    return text[: keep - keep // 2] + "…" + (text[-(keep // 2) :] if keep > 1 else "")


def overlap(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0


@dataclass
class Canvas:
    """Collects shapes; coordinates are in pixels of the given width and height."""

    width: float
    height: float
    alt: str
    parts: list[str] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str, *, width: float = 1, dash: str = "") -> None:
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}" '
            f'stroke-width="{width}"{dashes}/>'
        )

    def path(self, points: list[tuple[float, float]], kind: str, *, width: float = 1, dash: str = "") -> None:
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        where = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{where}" class="{kind}" fill="none" stroke-width="{width}"{dashes}/>')

    def circle(self, x: float, y: float, radius: float, kind: str, *, title: str = "", width: float = 1.5) -> None:
        inside = f"<title>{escape(title)}</title>" if title else ""
        self.parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="{kind}" stroke-width="{width}">{inside}</circle>'
        )

    def rect(self, box: Box, kind: str, *, opacity: float = 1.0, title: str = "") -> None:
        left, top, right, bottom = box
        inside = f"<title>{escape(title)}</title>" if title else ""
        self.parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}" rx="2" '
            f'class="{kind}" fill-opacity="{opacity:.3f}">{inside}</rect>'
        )

    def text(
        self, x: float, y: float, text: str, *, size: float = 12, anchor: str = "start", kind: str = "", turn: float = 0
    ) -> None:
        turned = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
        name = f' class="{kind}"' if kind else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}"{name}{turned}>'
            f"{escape(text)}</text>"
        )

    def svg(self, *, alone: bool = False) -> str:
        """The picture. alone: with its style and a background, as a file of its own."""
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:.0f} {self.height:.0f}" role="img"'
        own = f'<style>{STYLE}</style><rect width="100%" height="100%" class="back"/>' if alone else ""
        size = f' width="{self.width:.0f}" height="{self.height:.0f}"'
        return f'{head}{size} aria-label="{escape(self.alt)}">{own}{"".join(self.parts)}</svg>'


@dataclass
class Labels:
    """Places labels near points so that they cover neither each other nor what is marked as taken."""

    frame: Box
    size: float = 12
    taken: list[Box] = field(default_factory=list)

    def place(self, canvas: Canvas, x: float, y: float, text: str, *, kind: str = "", radius: float = 6) -> None:
        """Draw text where it collides least around (x, y), near places first, with a leader if it had to move away."""
        wide, high = text_width(text, self.size), self.size * 1.15
        best: tuple[float, Box] | None = None
        for distance in (radius + step for step in (5, 10, 20, 32, 48, 66, 86)):
            for angle in (0, 180, 90, 270, 35, 325, 145, 215, 60, 300, 120, 240):
                dx, dy = math.cos(math.radians(angle)), -math.sin(math.radians(angle))
                # The label's nearest edge, not its middle, sits at the distance.
                middle_x = x + dx * distance + (wide / 2 * (dx > 0.3) - wide / 2 * (dx < -0.3))
                middle_y = y + dy * (distance + 2)
                box = (middle_x - wide / 2, middle_y - high / 2, middle_x + wide / 2, middle_y + high / 2)
                outside = wide * high - overlap(box, self.frame)
                cost = sum(overlap(box, other) for other in self.taken) + 4 * outside + 0.02 * distance
                if best is None or cost < best[0] - 1e-9:
                    best = (cost, box)
        assert best is not None
        box = best[1]
        self.taken.append(box)
        near = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
        if math.dist((x, y), near) > 20:
            canvas.line(x, y, *near, "axis", width=0.6)
        canvas.text(box[0], box[3] - high * 0.24, text, size=self.size, kind=f"halo {kind}".strip())
