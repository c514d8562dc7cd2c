"""What is found in pictures is there, copies never straddle the split, and what is not there is not found."""

from __future__ import annotations

import csv
import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from kiban.adopt.classes import MIN_ROWS
from kiban.adopt.duplicate_images import photo_groups
from kiban.adopt.findings import sentence
from kiban.adopt.profile_images import Looked
from kiban.adopt.sources import open_source
from kiban.adopt.split import split
from kiban.data.photos import in_folder, read_photos
from kiban.errors import DatasetError, IntegrityError


def patches(seed: int, size: tuple[int, int] = (60, 60)) -> Image.Image:
    colours = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of 20 pictures that are all different."""
    for seed, (number, name) in enumerate(itertools.product(range(20), ("cat", "dog", "newt"))):
        path = tmp_path / "pets" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        patches(1000 + seed).save(path)
    return tmp_path / "pets"


def look(folder: Path, **how: Any) -> Looked:
    return open_source(folder, **how).look(0)


def found_in(looked: Looked) -> dict[str, dict[str, Any]]:
    for finding in looked.profile.findings:
        assert sentence(finding, "ja") and sentence(finding, "en")
    return {finding.code: finding.values for finding in looked.profile.findings}


def test_clean_pictures_have_no_findings(folder: Path) -> None:
    looked = look(folder)
    assert not found_in(looked)
    assert looked.labels == ["cat", "dog", "newt"] and looked.profile.language == "en"
    assert looked.inputs == [str(folder / name) for name in looked.names] and looked.names[0] == "cat/0.png"
    assert [looked.labels[t] for t in looked.targets] == [name.partition("/")[0] for name in looked.names]
    assert looked.profile.usable_rows == 60 and looked.profile.length_p50 == 60
    assert len(set(looked.groups)) == 60


def test_the_language_is_that_of_the_classes(folder: Path) -> None:
    for old, new in (("cat", "ねこ"), ("dog", "いぬ"), ("newt", "イモリ")):
        (folder / old).rename(folder / new)
    assert look(folder).profile.language == "ja"
    (folder / "いぬ").rename(folder / "dog")
    assert look(folder).profile.language == "mixed"


def changed(image: Image.Image) -> list[Image.Image]:
    """As copies on the web are: smaller, larger, a little brighter, a little cropped."""
    width, height = image.size
    return [
        image.resize((width // 2, height // 2), Image.Resampling.LANCZOS),
        image.resize((3 * width, 3 * height)),
        ImageEnhance.Brightness(image).enhance(1.03),
        image.crop((1, 0, width, height)),
    ]


def test_copies_and_near_copies_never_straddle(folder: Path) -> None:
    for number in range(6):
        original = folder / "cat" / f"{number}.png"
        shutil.copy(original, folder / "cat" / f"copy-{number}.png")
        whole = Image.open(original).convert("RGB")
        whole.save(folder / "cat" / f"lossy-{number}.jpg", quality=70)
        for i, image in enumerate(changed(whole)):
            image.save(folder / "cat" / f"changed-{number}-{i}.png")
    shutil.copy(folder / "dog" / "3.png", folder / "newt" / "3-again.png")
    looked = look(folder)
    found = found_in(looked)
    assert found["exact_picture_copies"] == {"rows": 7} and found["near_picture_copies"] == {"rows": 30}
    assert found["conflicting_pictures"]["groups"] == 1
    assert sorted(found["conflicting_pictures"]["names"]) == ["dog/3.png", "newt/3-again.png"]
    original = {name: looked.groups[i] for i, name in enumerate(looked.names)}
    for number in range(6):
        alike = [group for name, group in original.items() if re.match(rf"cat/[a-z]+-{number}\b", name)]
        assert len(alike) == 6 and set(alike) == {original[f"cat/{number}.png"]}
    assert len(set(looked.groups)) == 60
    for seed in range(5):
        parts = split(looked.groups, looked.targets, seed=seed)
        sides = [{looked.groups[i] for i in part} for part in (parts.train, parts.validation, parts.test)]
        assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]


def test_drawings_on_white_are_not_taken_for_each_other(tmp_path: Path) -> None:
    """A small dark mark at another place is another picture, though most of the sheet is the same."""
    for row, column in itertools.product(range(5), range(5)):
        sheet = Image.new("RGB", (64, 64), "white")
        sheet.paste((20, 20, 20), (8 + 10 * column, 8 + 10 * row, 20 + 10 * column, 20 + 10 * row))
        path = tmp_path / "marks" / str(row) / f"{column}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    photos = read_photos(in_folder(tmp_path / "marks"), tmp_path / "marks").photos
    assert len(set(photo_groups(photos))) == 25


def test_small_and_long_pictures_and_sizes_that_tell_the_class(folder: Path) -> None:
    for number in range(20):
        patches(number, (80, 80)).save(folder / "dog" / f"{number}.png")
        patches(40 + number, (90, 60)).save(folder / "newt" / f"{number}.png")
    patches(1, (20, 20)).save(folder / "cat" / "icon.png")
    patches(2, (120, 40)).save(folder / "cat" / "banner.png")
    found = found_in(look(folder))
    assert found["small_pictures"] == {"rows": 1, "side": 32} and found["long_pictures"] == {"rows": 1, "times": 3}
    assert found["class_by_size"] == {"percent": 97}


def test_broken_pictures_are_counted_and_kept_apart(folder: Path, tmp_path: Path) -> None:
    (folder / "cat" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"'cat/broken.png'.*--on-bad-row skip"):
        look(folder)
    quarantine = tmp_path / "run" / "quarantine.jsonl"
    looked = look(folder, on_bad_row="skip", quarantine=quarantine)
    assert found_in(looked)["bad_pictures"] == {"rows": 1, "name": "cat/broken.png"}
    assert looked.profile.rows == 61 and looked.profile.usable_rows == 60
    assert '"raw": "cat/broken.png"' in quarantine.read_text("utf-8")


def test_too_little_is_told(folder: Path) -> None:
    for name in ("cat", "dog"):
        shutil.move(folder / name, folder.parent / name)
    with pytest.raises(DatasetError, match=f"only 20 rows have both a picture and a class.*{MIN_ROWS}"):
        look(folder)
    for number in range(20, 40):
        patches(number).save(folder / "newt" / f"{number}.png")
    with pytest.raises(DatasetError, match="has one value only"):
        look(folder)
    shutil.copy(folder / "newt" / "1.png", folder.parent / "cat" / "99.png")
    shutil.rmtree(folder.parent / "dog")
    shutil.move(folder.parent / "cat" / "99.png", folder / "rare.png")
    with pytest.raises(DatasetError, match="not in one"):
        look(folder)


def test_rare_classes_are_left_out(folder: Path) -> None:
    (folder / "rare").mkdir()
    patches(7777).save(folder / "rare" / "1.png")
    looked = look(folder)
    assert found_in(looked)["rare_classes"]["classes"] == ["rare"] and "rare" not in looked.labels


def as_table(folder: Path, header: tuple[str, str, str] = ("file", "kind", "note")) -> Path:
    path = folder / "list.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for place in in_folder(folder):
            writer.writerow((place.name, place.label, "a long note about this animal, which nobody wrote by hand"))
    return path


def test_a_table_of_paths_is_known_by_its_values(folder: Path) -> None:
    source = open_source(as_table(folder))
    assert (source.kind, source.text, source.label) == ("image", "file", "kind")
    looked = source.look(0)
    assert looked.labels == ["cat", "dog", "newt"] and looked.lines[:2] == [2, 3]
    assert looked.targets == look(folder).targets and looked.inputs == look(folder).inputs
    # A column that is named for texts, or on the command line, wins.
    assert open_source(as_table(folder), text="note").kind == "single_label"
    assert open_source(as_table(folder, ("file", "kind", "text"))).kind == "single_label"
    assert open_source(as_table(folder, ("file", "kind", "text")), text="file").kind == "image"
    assert open_source(as_table(folder), label="note").label == "note"
    with pytest.raises(DatasetError, match="did you mean 'file'"):
        open_source(as_table(folder), text="flie")
    (folder / "two.csv").write_text("".join(f"cat/{i}.png,{i % 2},{i // 10}\n" for i in range(20)), "utf-8")
    (folder / "two.csv").write_text("file,a,b\n" + (folder / "two.csv").read_text("utf-8"), "utf-8")
    with pytest.raises(DatasetError, match="label column is not clear"):
        open_source(folder / "two.csv")


def test_rows_without_path_or_label_are_left_out(folder: Path) -> None:
    path = as_table(folder)
    with path.open("a", encoding="utf-8") as file:
        file.write(",cat,x\ncat/1.png,,x\n")
    looked = look(path, label="kind")
    assert found_in(looked)["empty_picture_rows"] == {"rows": 2} and looked.profile.rows == 62


def test_pictures_that_changed_are_not_those_of_the_run(folder: Path) -> None:
    first = open_source(folder).sha256
    assert open_source(folder, sha256=first).sha256 == first
    patches(31337).save(folder / "cat" / "0.png")
    with pytest.raises(IntegrityError, match="is not the set of pictures that the run began with"):
        open_source(folder, sha256=first)
