"""Small copies of pictures, for the report."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from kiban.inputs.image import read_image

SIDE = 96  # pixels of the longer side
QUALITY = 80


def thumbnail(path: str | Path) -> str:
    """A JPEG as base64. Raises DatasetError if the picture cannot be read any more."""
    image, data = read_image(path), io.BytesIO()
    image.thumbnail((SIDE, SIDE))
    image.save(data, "JPEG", quality=QUALITY)
    return base64.b64encode(data.getvalue()).decode("ascii")
