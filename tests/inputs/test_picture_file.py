"""PNG files that say how they were made, and sheets of several pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from kiban.errors import DatasetError, KibanError
from kiban.inputs.picture_file import contact_sheet, read_facts, write_png


def test_facts_and_pixels_come_back(tmp_path: Path) -> None:
    facts = {"prompt": "赤いりんご 🍎", "seed": 2**63 - 1, "drawing": {"width": 64}}
    image = Image.linear_gradient("L").convert("RGB")
    write_png(image, tmp_path / "a.png", facts)
    assert read_facts(tmp_path / "a.png") == facts
    assert Image.open(tmp_path / "a.png").tobytes() == image.tobytes()
    write_png(image, tmp_path / "a.png", {})
    assert read_facts(tmp_path / "a.png") == {} and len(list(tmp_path.iterdir())) == 1


def test_a_picture_that_says_nothing_is_told(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    image.save(tmp_path / "bare.png")
    image.save(tmp_path / "other.jpg")
    for name in ("bare.png", "other.jpg"):
        with pytest.raises(DatasetError, match="how it was made"):
            read_facts(tmp_path / name)
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(DatasetError, match=r"text\.png"):
        read_facts(tmp_path / "text.png")


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(KibanError, match="could not be written"):
        write_png(Image.new("RGB", (8, 8)), tmp_path / "no" / "a.png", {})


def test_a_sheet_shows_each_picture_in_its_cell() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9), (1, 2, 3)]
    images = [Image.new("RGB", (10, 6 if n else 4), colour) for n, colour in enumerate(colours)]
    sheet = contact_sheet(images, gap=2)
    assert sheet.size == (3 * 12 + 2, 2 * 8 + 2)
    centres = [(2 + column * 12 + 5, 2 + line * 8 + 3) for line in range(2) for column in range(3)]
    assert [sheet.getpixel(place) for place in centres] == [*colours, (255, 255, 255)]
    assert sheet.getpixel((7, 2)) == (255, 255, 255)  # the first picture is lower, and stands in the middle
    assert contact_sheet(images, num_columns=5, gap=0).size == (50, 6)
