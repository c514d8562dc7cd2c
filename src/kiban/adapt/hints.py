"""Pictures that tell a ControlNet where things are: edges (Canny 1986), and people as OpenPose (Cao et al. 2021) draws."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kiban.errors import ConfigError

Floats = NDArray[np.float64]
Point = tuple[float, float]

JOINTS = tuple(
    "nose neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist right_hip right_knee right_ankle"
    " left_hip left_knee left_ankle right_eye left_eye right_ear left_ear".split()
)
# In the order of their colours.
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0), (0, 14),
    (14, 16), (0, 15), (15, 17),
)  # fmt: skip
COLOURS = 18  # evenly spaced around the circle of hues, red first; joints have them all, limbs at 60 percent
THICKNESS = 4 / 512  # of a line, as a share of the shorter side


def edges(image: Image.Image, *, low: float = 100.0, high: float = 200.0, blur: float = 1.0) -> Image.Image:
    """White edges on black, RGB (Canny 1986): the crests of the gradient above high, and those above low that touch them.

    low, high: of the length of the Sobel gradient of grey values 0 to 255. blur: deviation in pixels of a Gaussian before.
    Raises ConfigError unless 0 < low <= high and blur is at least 0.
    """
    from scipy import ndimage

    if not 0 < low <= high or blur < 0:
        raise ConfigError("edges", why=f"low={low}, high={high}, blur={blur} is out of range")
    grey = ndimage.gaussian_filter(np.asarray(image.convert("L"), dtype=np.float64), blur)
    across, down = ndimage.sobel(grey, axis=1, mode="nearest"), ndimage.sobel(grey, axis=0, mode="nearest")
    crests = _crests(np.hypot(across, down), across, down)
    places, count = ndimage.label(crests >= low, structure=np.ones((3, 3)))
    strong = np.zeros(count + 1, dtype=bool)
    strong[places[crests >= high]] = True
    strong[0] = False
    found = (strong[places] * 255).astype(np.uint8)
    return Image.fromarray(found).convert("RGB")


def _crests(length: Floats, across: Floats, down: Floats) -> Floats:
    """The gradient's length where neither neighbour along it is longer, else 0. The border has no neighbours and is 0."""
    padded = np.pad(length, 1, constant_values=np.inf)
    octant = np.rint(np.arctan2(down, across) / (math.pi / 4)).astype(int) % 4
    result = np.zeros_like(length)
    for number, (dy, dx) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        before = padded[1 - dy : padded.shape[0] - 1 - dy, 1 - dx : padded.shape[1] - 1 - dx]
        after = padded[1 + dy : padded.shape[0] - 1 + dy, 1 + dx : padded.shape[1] - 1 + dx]
        # Of two that are equal one stays, so that a line is thin.
        crest = (octant == number) & (length > before) & (length >= after)
        result[crest] = length[crest]
    return result


def skeletons(people: Sequence[Mapping[str, Point]], *, width: int, height: int) -> Image.Image:
    """People as coloured sticks on black, RGB. people: (x, y) in pixels of those of `JOINTS` that are seen.

    Raises ConfigError if a joint has another name.
    """
    picture = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(picture)
    thick = max(1, round(THICKNESS * min(width, height)))
    for person in people:
        unknown = sorted(set(person) - set(JOINTS))
        if unknown:
            raise ConfigError("skeletons", field=unknown[0], why="is no joint", hint=f"known: {', '.join(JOINTS)}")
        for number, ends in enumerate(LIMBS):
            points = [person[JOINTS[end]] for end in ends if JOINTS[end] in person]
            if len(points) == 2:
                draw.line(points, fill=_colour(number, 0.6), width=2 * thick)
        for number, joint in enumerate(JOINTS):
            if joint in person:
                x, y = person[joint]
                draw.ellipse((x - thick, y - thick, x + thick, y + thick), fill=_colour(number, 1.0))
    return picture


def _colour(number: int, value: float) -> tuple[int, int, int]:
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(number / COLOURS, 1.0, value))
    return red, green, blue
