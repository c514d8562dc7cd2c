"""Pictures of coloured shapes with names in two languages, for tests of what learns from pictures and captions."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from kiban.data.pairs import Pair
from kiban.tour import shapes


def pair(combination: shapes.Combination, number: int) -> Pair:
    colour = list(shapes.COLOURS.values())[combination.colour][1]
    shape = list(shapes.SHAPES.values())[combination.shape]
    image = Image.fromarray(shapes.render(combination, np.random.default_rng([*combination, number]), 64))
    file = io.BytesIO()
    image.save(file, "PNG")
    captions = {
        "ja": (f"{colour['ja']}{shape['ja'][0]}", f"{shape['ja'][1]}、{colour['ja']}"),
        "en": (f"{colour['en']} {shape['en'][0]}",),
    }
    return Pair(f"{number}.png", file.getvalue(), captions, None, Path("shapes"))


def pairs(first: int, count: int) -> list[Pair]:
    some = [combination for combination in shapes.ALL if combination.place == 0]  # 36 names
    return [pair(combination, number) for number in range(first, first + count) for combination in some]
