"""The size of a drawing, and the pictures that it starts from, as a latent diffusion model reads them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kiban.errors import ConfigError
from kiban.inputs.image import FACTOR, Picture, cover, diffusion_pixels, read_image

Task = Literal["draw", "edit", "inpaint"]


@dataclass(frozen=True)
class Canvas:
    """Sides in pixels; picture: what is changed, edited or filled in, of that size; mask: white where to paint."""

    width: int
    height: int
    picture: Image.Image | None = None
    mask: Image.Image | None = None

    def pixels(self) -> Tensor:
        """picture, (1, 3, H, W) from -1 to 1."""
        assert self.picture is not None
        return diffusion_pixels(self.picture)[None]

    def painted(self) -> Tensor:
        """mask, (1, 1, H, W) bool, True where to paint."""
        assert self.mask is not None
        return torch.from_numpy(np.asarray(self.mask) > 0)[None, None]

    def painted_latents(self, factor: int) -> Tensor:
        """mask at the size of latents, (1, 1, H/f, W/f) bool: True where any of the pixels is painted."""
        return F.max_pool2d(self.painted().float(), factor) > 0

    def restore(self, drawn: Image.Image) -> Image.Image:
        """drawn, with the pixels of picture where nothing is painted: an autoencoder does not give them back exactly."""
        if self.mask is None or self.picture is None:
            return drawn
        return Image.composite(drawn, self.picture, self.mask)


def canvas(
    task: Task,
    *,
    usual: int,
    width: int | None,
    height: int | None,
    init: Picture | None,
    mask: Picture | None,
    edit: Picture | None,
) -> Canvas:
    """The canvas of a model for this task. usual: side of the pictures that it was trained on, in pixels.

    A picture keeps its proportions; if only one side is given, or none, the other follows from them, and without any the
    picture gets the usual area. Raises ConfigError if the model cannot do what is asked, DatasetError for unfit pictures.
    """
    _check_task(task, init=init, mask=mask, edit=edit)
    given = edit if edit is not None else init
    picture = None if given is None else read_image(given, name="" if isinstance(given, str) else "picture")
    sides = _sides(width, height, picture, usual)
    if picture is None:
        return Canvas(*sides)
    return Canvas(*sides, _fitted(picture, sides), None if mask is None else _mask(mask, picture, sides))


def _check_task(task: Task, *, init: Picture | None, mask: Picture | None, edit: Picture | None) -> None:
    if mask is not None and init is None:
        raise ConfigError("mask", why="needs the picture in which to paint", hint="give it as init")
    if task == "edit" and (edit is None or init is not None):
        raise ConfigError("edit", why="this model edits a picture as the prompt says", hint="give edit, and no init")
    if task != "edit" and edit is not None:
        hint = "give the picture as init, and what the result shall show as the prompt"
        raise ConfigError("edit", why="this model does not follow instructions", hint=hint)
    if task == "inpaint" and mask is None:
        hint = "give init, and a mask that is white where to paint"
        raise ConfigError("mask", why="this model fills in part of a picture", hint=hint)


def _sides(width: int | None, height: int | None, picture: Image.Image | None, usual: int) -> tuple[int, int]:
    for name, value in (("width", width), ("height", height)):
        if value is not None and (value < FACTOR or value % FACTOR):
            near = max(FACTOR, round(value / FACTOR) * FACTOR)
            raise ConfigError(name, why=f"{value} is not a multiple of {FACTOR}", hint=f"for example {near}")
    if picture is None:
        return width or usual, height or usual
    ratio = (picture.width / picture.height) ** 0.5
    high = height or (width / ratio**2 if width else usual / ratio)
    wide = width or (height * ratio**2 if height else usual * ratio)
    return _whole(wide), _whole(high)


def _whole(side: float) -> int:
    return max(FACTOR, round(side / FACTOR) * FACTOR)


def _fitted(picture: Image.Image, sides: tuple[int, int]) -> Image.Image:
    return cover(picture, *sides, resample=Image.Resampling.LANCZOS)


def _mask(mask: Picture, picture: Image.Image, sides: tuple[int, int]) -> Image.Image:
    read = read_image(mask)
    if read.size != picture.size:
        why = f"is {read.width} x {read.height} pixels, the picture {picture.width} x {picture.height}"
        raise ConfigError("mask", why=why, hint="make both of the same size")
    levels = cover(read.convert("L"), *sides, resample=Image.Resampling.NEAREST)
    painted = levels.point(lambda level: 255 if level >= 128 else 0)
    if painted.getbbox() is None:
        raise ConfigError("mask", why="is black, so that nothing would be painted", hint="white is where to paint")
    return painted


def fingerprint(image: Image.Image) -> str:
    """The sha256 of a picture's size and pixels."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
