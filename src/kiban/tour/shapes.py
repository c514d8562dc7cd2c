"""A small world of pictures and captions: one coloured shape in a quarter of the picture, in Japanese and in English.

6 shapes x 6 colours x 4 places are 144 combinations, of which 24 are held out: each shape at each place in one colour, so
that every shape, colour and place is seen in training, and none of the held-out combinations. Size, turn, exact place and
shade, the background and a little noise differ from picture to picture and are in no caption.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

Lang = Literal["ja", "en"]
FINE = 4  # times the size that a picture is drawn at, for smooth edges

SHAPES: dict[str, dict[Lang, tuple[str, ...]]] = {
    "circle": {"ja": ("丸", "円"), "en": ("circle", "disc")},
    "square": {"ja": ("四角", "正方形"), "en": ("square", "box")},
    "triangle": {"ja": ("三角", "三角形"), "en": ("triangle", "wedge")},
    "star": {"ja": ("星", "星形"), "en": ("star", "starlet")},
    "cross": {"ja": ("十字", "十字形"), "en": ("cross", "plus")},
    "ring": {"ja": ("輪", "輪っか"), "en": ("ring", "hoop")},
}
COLOURS: dict[str, tuple[tuple[int, int, int], dict[Lang, str]]] = {
    "red": ((220, 40, 40), {"ja": "赤い", "en": "red"}),
    "green": ((40, 160, 60), {"ja": "緑の", "en": "green"}),
    "blue": ((50, 80, 220), {"ja": "青い", "en": "blue"}),
    "yellow": ((235, 200, 40), {"ja": "黄色い", "en": "yellow"}),
    "purple": ((150, 60, 180), {"ja": "紫の", "en": "purple"}),
    "black": ((35, 35, 35), {"ja": "黒い", "en": "black"}),
}
PLACES: dict[str, tuple[tuple[float, float], dict[Lang, tuple[str, ...]]]] = {
    "top left": ((0.28, 0.28), {"ja": ("左上",), "en": ("top", "left")}),
    "top right": ((0.72, 0.28), {"ja": ("右上",), "en": ("top", "right")}),
    "bottom left": ((0.28, 0.72), {"ja": ("左下",), "en": ("bottom", "left")}),
    "bottom right": ((0.72, 0.72), {"ja": ("右下",), "en": ("bottom", "right")}),
}


class Combination(NamedTuple):
    """Places of a shape, a colour and a place in the tables above."""

    shape: int
    colour: int
    place: int

    @property
    def held_out(self) -> bool:
        """Whether it is never trained on."""
        return self.colour == (self.shape + self.place) % len(COLOURS)


ALL = tuple(
    Combination(shape, colour, place)
    for shape in range(len(SHAPES))
    for colour in range(len(COLOURS))
    for place in range(len(PLACES))
)
TRAIN = tuple(combination for combination in ALL if not combination.held_out)
HELD_OUT = tuple(combination for combination in ALL if combination.held_out)


def render(combination: Combination, rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """A picture (size, size, 3)."""
    whole = FINE * size
    shade = rng.integers(200, 256, 3)
    image = Image.new("RGB", (whole, whole), tuple(int(x) for x in shade))
    colour = np.array(list(COLOURS.values())[combination.colour][0]) + rng.integers(-18, 19, 3)
    centre = np.array(list(PLACES.values())[combination.place][0]) + rng.uniform(-0.06, 0.06, 2)
    radius, turn = rng.uniform(0.13, 0.21), rng.uniform(-0.25, 0.25)
    _paint(
        ImageDraw.Draw(image),
        list(SHAPES)[combination.shape],
        tuple(int(x) for x in np.clip(colour, 0, 255)),
        (float(centre[0]) * whole, float(centre[1]) * whole),
        radius * whole,
        turn,
    )
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BOX), np.float64)
    return np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)


def _paint(
    draw: ImageDraw.ImageDraw,
    shape: str,
    colour: tuple[int, ...],
    centre: tuple[float, float],
    radius: float,
    turn: float,
) -> None:
    x, y = centre
    around = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        draw.ellipse(around, fill=colour)
    elif shape == "ring":
        draw.ellipse(around, outline=colour, width=round(radius * 0.45))
    elif shape == "cross":
        for angle in (turn, turn + math.pi / 2):
            dx, dy = radius * math.cos(angle), radius * math.sin(angle)
            draw.line((x - dx, y - dy, x + dx, y + dy), fill=colour, width=round(radius * 0.6))
    else:
        corners = {"square": 4, "triangle": 3, "star": 10}[shape]
        start = turn + {"square": math.pi / 4, "triangle": -math.pi / 2, "star": -math.pi / 2}[shape]
        points = []
        for i in range(corners):
            length = radius * (0.45 if shape == "star" and i % 2 else 1.1)
            angle = start + 2 * math.pi * i / corners
            points.append((x + length * math.cos(angle), y + length * math.sin(angle)))
        draw.polygon(points, fill=colour)


def caption(combination: Combination, lang: Lang, rng: np.random.Generator | None = None) -> list[str]:
    """The words of a caption; with rng one of several ways to say it, else the first."""
    shape = list(SHAPES.values())[combination.shape][lang]
    colour = list(COLOURS.values())[combination.colour][1][lang]
    place = list(list(PLACES.values())[combination.place][1][lang])
    form = 0 if rng is None else int(rng.integers(3))
    name = shape[0] if rng is None else shape[int(rng.integers(len(shape)))]
    if lang == "ja":
        ways = ([*place, "に", colour, name], [colour, name, "が", *place, "に", "ある"], [*place, "の", colour, name])
    else:
        ways = (
            ["a", colour, name, "at", "the", *place],
            ["at", "the", *place, "a", name, "in", colour],
            ["the", *place, "has", "a", colour, name],
        )
    return ways[form]


def vocabulary() -> dict[str, int]:
    """Every word of both languages, behind padding (0) and the ends (1 and, the largest id, the end)."""
    rng, words = np.random.default_rng(0), set()
    for combination in ALL:
        for lang in ("ja", "en"):
            for _ in range(30):
                words.update(caption(combination, lang, rng))
    return {"<pad>": 0, "<start>": 1, **{word: 2 + i for i, word in enumerate(sorted(words))}}


def tokens(captions: Sequence[Sequence[str]], words: dict[str, int], length: int) -> Tensor:
    """(N, length) int64: start, words, end, padding. The end is the largest id."""
    end, rows = len(words), torch.zeros(len(captions), length, dtype=torch.int64)
    for row, text in zip(rows, captions, strict=True):
        ids = [1, *(words[word] for word in text), end]
        row[: len(ids)] = torch.tensor(ids)
    return rows


def pixels(combinations: Sequence[Combination], rng: np.random.Generator, size: int) -> Tensor:
    """(N, 3, size, size) float32 in [-1, 1]."""
    images = np.stack([render(combination, rng, size) for combination in combinations])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
