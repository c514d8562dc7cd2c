"""Pictures to PNG files that say how they were made, and several of them on one sheet."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from kiban.errors import DatasetError, KibanError
from kiban.files import staged_file
from kiban.inputs.image import WHITE, Colour, read_image

KEY = "kiban"  # of the text chunk


def write_png(image: Image.Image, path: Path, facts: Mapping[str, Any]) -> None:
    """Write or replace a PNG file that holds facts as JSON. Raises KibanError if the system cannot write it."""
    info, data = PngInfo(), io.BytesIO()
    info.add_itxt(KEY, json.dumps(facts, ensure_ascii=False))
    image.save(data, "PNG", pnginfo=info)
    try:
        with staged_file(path) as staged:
            staged.write_bytes(data.getvalue())
    except OSError as error:
        raise KibanError(
            path, why=f"could not be written: {error.strerror or error}", hint="check the folder"
        ) from error


def read_facts(path: Path) -> dict[str, Any]:
    """What `write_png` put into a file. Raises DatasetError if it is no picture, or if it says nothing."""
    read_image(path)  # refuses what is broken or too large
    with Image.open(path) as image:
        text = image.text.get(KEY, "") if isinstance(image, PngImageFile) else ""
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        hint = "only PNG files as kiban wrote them do; programs that edit pictures often drop it"
        raise DatasetError(path, why="does not say how it was made", hint=hint)
    return facts


def contact_sheet(
    images: Sequence[Image.Image], *, num_columns: int | None = None, gap: int = 4, background: Colour = WHITE
) -> Image.Image:
    """Pictures row by row on one, each in the middle of a cell. num_columns None: about as many as rows. gap in pixels."""
    assert images, "a sheet needs a picture"
    columns = num_columns or math.ceil(math.sqrt(len(images)))
    width, height = max(image.width for image in images), max(image.height for image in images)
    lines = math.ceil(len(images) / columns)
    size = (columns * (width + gap) + gap, lines * (height + gap) + gap)
    sheet = Image.new("RGB", size, background)
    for number, image in enumerate(images):
        line, column = divmod(number, columns)
        left = gap + column * (width + gap) + (width - image.width) // 2
        top = gap + line * (height + gap) + (height - image.height) // 2
        sheet.paste(image, (left, top))
    return sheet
